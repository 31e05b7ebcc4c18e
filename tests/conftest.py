"""Plumbing of all tests."""

import services  # noqa: F401  (first of all: it sets what grpc reads when it is imported)
