"""The contestants: one module each, whose ``build(problem, quantity)`` makes a :class:`~benchmarks.problem.Job`.

quantity: "top5" (by magnitude to 1e-3, at every point), "trace" (100 probes at every point, with standard
error), "products" (Hessian-vector products), "spectrum" (all eigenvalues), "one point" (an operator
made anew at one point, and 100 products). A contestant that has nothing to say to one raises KeyError.
"""

PROBES = 100
PRODUCTS = 100
K = 5
RTOL = 1e-3
