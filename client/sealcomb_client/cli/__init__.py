"""The `sealcomb` command line: what the SDK can do, for people and scripts."""
