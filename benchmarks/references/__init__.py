"""Problems with known Hessians, on which any tool can be run: ``python -m benchmarks.references --tool FILE.py:name``.

A tool is a function ``tool(model, criterion, batch)`` that returns what it can compute, by name:

- "matvec": the product, a function of a vector [param] that returns a vector [param];
- "top": a function of k that returns the k eigenvalues of largest magnitude;
- "trace": a function without arguments that returns an estimate and its standard error.

The batch is a pair (x, y), or a list of such pairs whose loss is that of all their data at once.
"""
