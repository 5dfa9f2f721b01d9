"""Compares the speed of the library with that of its peers on the same problems: ``python -m benchmarks``.

In all modules, the "points" of a problem are the parameter vectors at which curvature is computed; for a work load of
meta-training they are its tasks.
"""
