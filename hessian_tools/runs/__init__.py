"""A run on disk: manifest, checkpoints, metrics; every file whole or absent."""
