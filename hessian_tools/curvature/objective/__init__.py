"""The pure data that a curvature matrix is made of: a loss, points (parameter vectors), and their batches."""
