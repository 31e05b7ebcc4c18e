"""The one way out: every request that ingest sends to the internet."""
