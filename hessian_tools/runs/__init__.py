"""A run on disk and the processes that work on it: manifest, checkpoints, metrics; every file whole or absent."""
