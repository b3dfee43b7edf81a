"""Scripts behind docs/results.md."""
