"""Vector search side by side with its open peers."""
