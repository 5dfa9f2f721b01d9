"""Learning on real data: meta-train, judge on held-out classes, keep the numbers, draw and table them.

``python -m benchmarks.learning --help``. What came of it is kept in ``docs/results/``.
"""
