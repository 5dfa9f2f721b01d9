"""The matrices of curvature as operators, and operators made of them."""
