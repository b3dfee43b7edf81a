"""The steps of `python benchmarks/gpu_check.py`, each in its own process.

``python -m benchmarks.gpu STEP --device cuda --output FILE [--small]`` runs one and writes its
results as JSON. With ``--device cpu`` the same code runs without a GPU.
"""
