"""The compiled engine: a product is traced once and split into what depends on the point and what on the vector."""
