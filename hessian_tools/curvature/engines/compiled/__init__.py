"""The compiled engine: a product is traced once and split into two parts.

The first part depends only on the point and is computed once; the second depends on the vector.
"""
