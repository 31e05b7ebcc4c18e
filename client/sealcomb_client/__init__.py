"""The Python SDK of Sealcomb and, in `cli`, its command line."""
