"""The steps of `benchmarks/gpu_check.py`, each run in a process of its own.

``python -m benchmarks.gpu STEP --device cuda --output FILE [--small]`` runs one and writes what it
found as JSON. With ``--device cpu`` the same code runs without a GPU.
"""
