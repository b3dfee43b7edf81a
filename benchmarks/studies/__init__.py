"""Scripts after docs/results.md."""
