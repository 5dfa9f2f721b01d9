"""Graphs of products compiled by Inductor, the compiler behind ``torch.compile``.

Inductor joins chains of elementwise operations into one kernel each. It is given a flat graph with fixed shapes:
``torch.compile`` of a function with ``vmap`` inside would be slow to compile, and would split into several graphs.
"""

import os
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, fx

from hessian_tools.curvature.engines.compiled.simplify import agree
from hessian_tools.failures import is_out_of_memory

# No graph is compiled for fewer points than this; fewer points are padded to this number. Points leave an eigenvalue
# search one by one as they converge, and compiling a graph for each small number would cost more time than it saves.
FEWEST_POINTS = 8


class InductorGraph:
    """A graph as a function ``(V, *kept) -> products``, compiled at its first call.

    The first result is compared with that of the graph itself, point by point. If no point of a result is finite, the
    comparison says nothing, and the next result is compared as well. Raises ValueError where Inductor fails.

    points: True if V and the products have a leading point axis.
    """

    def __init__(self, module: fx.GraphModule, *, points: bool) -> None:
        self.module, self.points = module, points
        self.compiled: Callable[..., Tensor] | None = None
        self.is_checked = False

    def __call__(self, V: Tensor, *kept: Tensor) -> Tensor:
        """The products with V."""
        try:  # at every call, because torch compiles again if the settings of the process have changed
            if self.is_checked and self.compiled is not None:
                return self.compiled(V, *kept)
            return self._checked(V, *kept)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise ValueError(
                "compile=True: Inductor, the compiler of torch.compile, failed on this product; leave compile out "
                f"({_cause(error)})"
            ) from error

    def _checked(self, V: Tensor, *kept: Tensor) -> Tensor:
        """The products with V, compared with those of the graph itself. Raises RuntimeError if they differ."""
        if os.environ.get("TORCHDYNAMO_DISABLE") == "1":  # torch.compile would return the graph as it is
            raise RuntimeError("TORCHDYNAMO_DISABLE=1 switches it off")
        if self.compiled is None:
            self.compiled = torch.compile(self.module, dynamic=False, fullgraph=True)
        with warnings.catch_warnings():
            # Inductor warns where float32 is not rounded to TF32 on a GPU; for curvature it must not be.
            warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")
            product = self.compiled(V, *kept)
        expected = self.module(V, *kept)
        # A norm over all points would be that of the largest product, or NaN for a single point that has diverged.
        rows = list(zip(product, expected, strict=True)) if self.points else [(product, expected)]
        if not all(agree(*row) for row in rows):
            raise RuntimeError("its product differs from that of the graph it was given")
        self.is_checked = any(bool(row.isfinite().all()) for _, row in rows)
        return product


def _cause(error: Exception) -> str:
    """The kind and the first line of the error that made Inductor fail."""
    cause = getattr(error, "inner_exception", error)
    said = (str(cause).strip().splitlines() or [""])[0][:200]
    name = type(cause).__name__
    return said if said.startswith(name) or type(cause) is RuntimeError else f"{name}: {said}"


def compiled_size(count: int, *, before: int) -> int:
    """The number of points for which to compile the graph that multiplies ``count`` points.

    before: the number of points so far. The result is a power of two, or ``before`` if that is smaller, so that few
    graphs are compiled while points leave.

    >>> [compiled_size(count, before=100) for count in (1, 9, 50, 70)]
    [8, 16, 64, 100]
    """
    return max(count, min(before, max(FEWEST_POINTS, 2 ** (count - 1).bit_length())))
