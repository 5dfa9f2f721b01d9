"""How fast the engine is, against its peers on the same points: ``python -m benchmarks``."""
