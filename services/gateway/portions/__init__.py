"""Token buckets that several policy processes share, kept in Valkey (or Redis)."""
