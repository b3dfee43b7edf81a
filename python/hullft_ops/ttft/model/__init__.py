"""What test-time finetuning does to a language model.

Loading it, its loss and gradients, the training steps, scoring and generating, saving and restoring
it, and keeping other threads from it meanwhile. Imports the operators, and no other folder of
``ttft``.
"""
