"""Keyvault: holds one KMS key per account, releases data keys under it, and records every use."""
