"""Ingest: documents in, passages out; extraction, chunking, embedding and the jobs that run them."""
