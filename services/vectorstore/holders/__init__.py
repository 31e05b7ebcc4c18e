"""Which replica holds which collection: at most one at a time, and whoever held it before cannot write."""
