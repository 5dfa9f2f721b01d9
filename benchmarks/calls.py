"""Counts the Python calls of the library's own code in a Hessian-vector product and in a search for eigenvalues.

An engine is one of the library's ways to compute a product. For every engine, ``python -m benchmarks.calls`` prints the
number of calls, and the largest number of stack frames of a product. Only functions defined in ``hessian_tools`` are
counted, and nothing inside the loss (the user's network).
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import hessian_tools as ht
from hessian_tools.curvature.engines.choice import Route
from hessian_tools.loss import Loss

LIBRARY = str(Path(ht.__file__).parent)
LOSS = str(Path(LIBRARY, "loss.py"))
# The argument ``route`` names the engines, two of them by older words: "kept" is double_backward, "traced" is compiled.
ROUTES: tuple[Route, ...] = ("direct", "kept", "traced", "auto")


class Profile:
    """The number of calls of library functions, and the largest number of their frames on the stack at one moment."""

    def __init__(self) -> None:
        self.calls = self.deepest = 0
        self._depth = self._inside_loss = 0

    def run(self, function: Callable[[], object]) -> "Profile":
        """Call the function once, count the calls that it makes, and return this object."""
        sys.setprofile(self._count)
        try:
            function()
        finally:
            sys.setprofile(None)
        return self

    def _count(self, frame: FrameType, event: str, _: Any) -> None:
        """Python calls this at every call and return of a function while ``run`` is active."""
        if event not in ("call", "return") or not frame.f_code.co_filename.startswith(LIBRARY):
            return
        step = 1 if event == "call" else -1
        # Calls inside the loss are followed, in order to notice its end, but they are not counted.
        if self._inside_loss or frame.f_code.co_filename == LOSS:
            self._inside_loss += step
            return
        self._depth += step
        if event == "call":
            self.calls += 1
            self.deepest = max(self.deepest, self._depth)


def problem() -> tuple[Loss, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """An MLP 8-16-3 with the cross-entropy of 20 examples, at three parameter vectors."""
    generator = torch.Generator().manual_seed(0)
    model = ht.seeded(lambda: nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)), seed=0)
    theta, layout = ht.flatten(model)
    thetas = theta + 0.1 * torch.randn(3, len(theta), generator=generator)
    batch = torch.randn(3, 20, 8, generator=generator), torch.randint(3, (3, 20), generator=generator)
    return ht.make_loss(model, F.cross_entropy, layout), thetas, batch


def main() -> None:
    """Print the table. Every function is called once before it is measured, so that tracing is not counted."""
    loss, thetas, batch = problem()
    v = torch.ones_like(thetas)
    print(
        f"{'engine':10s} {'frames of H.mv(v)':>18s} {'calls of H.mv(v)':>18s} {'calls of top_eigenpairs, k = 3':>32s}"
    )
    for route in ROUTES:
        H = ht.hessian(loss, thetas, batch, route=route)
        profiles = []
        for function in (lambda H=H: H.mv(v), lambda H=H: ht.top_eigenpairs(H, k=3)):
            function()
            profiles.append(Profile().run(function))
        product, eigenpairs = profiles
        print(f"{route:10s} {product.deepest:18d} {product.calls:18d} {eigenpairs.calls:32d}")


if __name__ == "__main__":
    main()
