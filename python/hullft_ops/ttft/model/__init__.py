"""What is done to a language model: loading, loss, scoring, generation, saving and restoring.

Imports no other folder of ``ttft``.
"""
