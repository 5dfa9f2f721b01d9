"""A run on disk (manifest, checkpoints, metrics, each written completely or not at all) and its worker processes."""
