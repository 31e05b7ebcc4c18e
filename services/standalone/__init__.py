"""One machine's installation: keys and certificates, and the process that runs all the services."""
