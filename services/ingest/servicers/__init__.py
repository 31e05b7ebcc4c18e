"""The public services of ingest as gRPC sees them; they translate and decide nothing."""
