"""Language models: loading them, and what is checked before one is used."""
