"""The speed of the operators against what a user would otherwise run: ``pytest benchmarks``.

Each benchmark checks its result, then times it in turns with its peers. ``--benchmark-json FILE``
writes the measurements, and ``python -m benchmarks.report FILE`` makes a page of them.
``python -m benchmarks.compare BEFORE AFTER`` compares two runs.
"""
