"""Faults of a vectorstore process: killed at every durable system call, and with a disk that fails."""
