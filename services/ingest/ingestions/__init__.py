"""Ingestions: documents brought from a source into a collection, once or again and again."""
