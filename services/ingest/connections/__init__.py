"""Connections to sources: granted by OAuth or opened by a secret, sealed each under a key of its own."""
