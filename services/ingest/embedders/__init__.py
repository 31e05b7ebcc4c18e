"""What turns text into vectors: models in process, an endpoint, and the threads that run them."""
