"""How fast the operators are, against what a user would otherwise run: `pytest benchmarks/`.

``python -m benchmarks.run`` measures and writes `results/`, ``python -m benchmarks.compare`` tells
whether one result file is slower than another.
"""
