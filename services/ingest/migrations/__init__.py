"""The schema of ingest's database, step by step."""
