"""The curvature matrices as operators, and operators that are made of other operators."""
