"""From a prompt to its support: the texts to train on, and the number of steps on each.

The selection methods, the selector that applies one to a store, and activeft's interface. Imports
``ttft.store`` and ``ttft.model`` at most.
"""
