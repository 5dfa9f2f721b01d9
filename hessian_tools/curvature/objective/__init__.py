"""The pure data that a curvature matrix is made of: a loss, points, and batches in groups of one shape."""
