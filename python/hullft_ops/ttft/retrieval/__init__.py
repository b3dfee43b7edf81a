"""From a prompt to its support: the texts to train on, and the number of steps on each.

Imports ``ttft.store``, ``ttft.training`` and ``ttft.model`` at most.
"""
