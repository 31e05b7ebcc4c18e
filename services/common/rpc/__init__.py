"""gRPC between the services: servers, channels, who may call what, and errors as statuses."""
