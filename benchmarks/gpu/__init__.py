"""What only a GPU shows: ``pytest benchmarks/gpu --device cuda``.

Tests compare every operator and adaptations, with CUDA graphs and without; benchmarks set times
beside what the card's own rates allow. With ``--device cpu --smoke`` the same code runs
without a GPU, which shows only that it runs.
"""
