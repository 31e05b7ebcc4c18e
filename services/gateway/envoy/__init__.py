"""Envoy: its configuration, and the child process."""
