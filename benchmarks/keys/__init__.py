"""What keys cost: `python -m benchmarks.keys`."""
