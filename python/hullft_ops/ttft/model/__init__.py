"""Everything that test-time finetuning does to a language model."""
