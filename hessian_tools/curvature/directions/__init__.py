"""Curvature along directions, between eigenspaces, and through the inner loop."""
