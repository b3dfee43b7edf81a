"""Everything that test-time finetuning does to a language model.

Imports the operators, and no other folder of ``ttft``.
"""
