"""The scripts that measured what docs/results.md reports."""
