"""The speed of the operators, compared with what a user would otherwise run: `pytest benchmarks/`.

``python -m benchmarks.run`` measures and writes `results/`. ``python -m benchmarks.compare`` says
whether one result file is slower than another.
"""
