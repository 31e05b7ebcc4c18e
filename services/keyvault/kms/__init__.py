"""The providers of account keys: one module for each KMS."""
