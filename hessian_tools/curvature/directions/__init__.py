"""Curvature along directions, comparisons of eigenspaces, and the Jacobian of the inner loop."""
