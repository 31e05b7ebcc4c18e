"""Faults of a whole installation and of what it stands on."""
