"""The contestants on curvature: one module each, whose ``build(problem, quantity)`` makes a ``Job``.

quantity: "top5" (by magnitude to 1e-3, at every point), "trace" (100 probes at every point, with standard
error), "products" (Hessian-vector products), "spectrum" (all eigenvalues), "one point" (an operator
made anew at one point, and 100 products). A contestant that has nothing to say to one raises KeyError.
"""

PROBES = 100
PRODUCTS = 100
K = 5
RTOL = 1e-3


def products_for(workload: str) -> int:
    """How many single products a "products" run takes: W1's take most of a second each."""
    return 5 if workload == "W1" else PRODUCTS
