"""What agents remember: short-term values and texts found by meaning."""
