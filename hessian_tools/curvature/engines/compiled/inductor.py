"""Graphs of products compiled by Inductor, the compiler behind ``torch.compile``.

Inductor joins chains of elementwise operations into one kernel each. It is given a flat graph with fixed shapes:
``torch.compile`` of a function with ``vmap`` inside would be slow to compile, and would split into several graphs.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, fx

from hessian_tools.curvature.engines.compiled.simplify import agree
from hessian_tools.failures import is_out_of_memory

# Fewer points than this are not multiplied by a compiled graph of their own. Points leave an eigenvalue search one by
# one, and a graph for each of the last numbers of points would cost more time to compile than it saves.
FEWEST_POINTS = 8


class InductorGraph:
    """A graph as a function ``(V, *kept) -> products``, compiled at its first call.

    The first result is compared with that of the graph itself. Raises ValueError where Inductor fails.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.compiled: Callable[..., Tensor] | None = None

    def __call__(self, V: Tensor, *kept: Tensor) -> Tensor:
        """The products with V."""
        try:  # each call, because torch compiles anew where it finds that the process's settings have changed
            return self._first(V, *kept) if self.compiled is None else self.compiled(V, *kept)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise ValueError(
                "compile=True: Inductor, the compiler of torch.compile, failed on this product; leave compile out "
                f"({_cause(error)})"
            ) from error

    def _first(self, V: Tensor, *kept: Tensor) -> Tensor:
        compiled = torch.compile(self.module, dynamic=False, fullgraph=True)
        with warnings.catch_warnings():
            # Inductor warns where float32 is not rounded to TF32 on a GPU; for curvature it must not be.
            warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")
            product = compiled(V, *kept)
        if not agree(product, self.module(V, *kept)):
            raise RuntimeError("its product differs from that of the graph it was given")
        self.compiled = compiled
        return product


def _cause(error: Exception) -> str:
    """The kind and the first line of the error that made Inductor fail."""
    cause = getattr(error, "inner_exception", error)
    said = (str(cause).strip().splitlines() or [""])[0][:200]
    name = type(cause).__name__
    return said if said.startswith(name) or type(cause) is RuntimeError else f"{name}: {said}"


def compiled_size(count: int, *, before: int) -> int:
    """For how many points the graph is compiled that multiplies ``count`` of the ``before`` points until now.

    It is a power of two, or all points until now, so that few graphs are compiled while points leave.

    >>> [compiled_size(count, before=100) for count in (1, 9, 50, 70)]
    [8, 16, 64, 100]
    """
    return max(count, min(before, max(FEWEST_POINTS, 2 ** (count - 1).bit_length())))
