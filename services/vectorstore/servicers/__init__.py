"""The gRPC face of the vectorstore: it validates, calls the domain and builds responses."""
