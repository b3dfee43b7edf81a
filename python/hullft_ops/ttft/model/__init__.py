"""Everything that test-time finetuning does to a language model.

Loading, losses and gradients, training steps, scoring, generating, saving and restoring, and
keeping other threads away meanwhile. Imports the operators, and no other folder of ``ttft``.
"""
