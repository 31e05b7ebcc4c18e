"""The schema of keyvault's database, step by step."""
