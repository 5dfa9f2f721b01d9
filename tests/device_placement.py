"""A device that is not there: tensors that say "meta" and carry their numbers, so that a machine without a GPU
notices what would fail on one.

What CUDA refuses is refused here: an operation on tensors of both devices (but for indices and single numbers on
the CPU), a CPU generator for a tensor elsewhere, ``.numpy()``. Numbers are those of the CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

ELSEWHERE = torch.device("meta")
ATEN = torch.ops.aten
# CUDA takes indices from the CPU, and copies are how tensors get from one device to another.
MAY_MIX = {ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default, ATEN.copy_.default}


class Elsewhere(Tensor):
    """A tensor of the other device around its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Elsewhere":
        hull = torch.empty_strided(inner.shape, inner.stride(), dtype=inner.dtype, device=ELSEWHERE)
        made = Tensor._make_subclass(cls, hull)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"Elsewhere({self.shape})"


class _Elsewhere(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """Within it ``.to(device)`` takes tensors to the device that is not there, ``.cpu()`` back."""
    with _Elsewhere():
        yield ELSEWHERE


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    away = any(isinstance(t, Elsewhere) for t in tensors)
    target = kwargs.get("device")
    strangers = [tuple(t.shape) for t in tensors if not isinstance(t, Elsewhere) and t.ndim > 0]
    if away and target is None and func not in MAY_MIX and strangers:
        raise RuntimeError(f"{func}: a tensor {strangers[0]} on the CPU meets one that is not")
    if target is not None:
        away = torch.device(target) == ELSEWHERE
        kwargs = kwargs | {"device": torch.device("cpu")}
    if away and kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: a CPU generator for a tensor that is not there")
    plain_args, plain_kwargs = pytree.tree_map_only(Elsewhere, lambda t: t.inner, (args, kwargs))
    if func is ATEN._efficientzerotensor.default:
        func = ATEN.zeros.default  # forward mode's zeros without memory would be read here
    out = func(*plain_args, **plain_kwargs)
    if func._schema.is_mutable:
        return args[0]
    return pytree.tree_map_only(Tensor, Elsewhere, out) if away else out
