"""What taking documents in costs; see __main__."""
