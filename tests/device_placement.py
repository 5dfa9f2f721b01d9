"""A fake device, which shows on a machine without a GPU what would fail on a GPU.

Its tensors claim to lie on "meta" and carry their numbers on the CPU. It refuses what CUDA refuses: an operation on
tensors of both devices (except for indices and single numbers on the CPU), a CPU generator for one of its tensors, and
``.numpy()``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

FAKE_DEVICE = torch.device("meta")
ATEN = torch.ops.aten
# CUDA accepts indices on the CPU, and copies take tensors from one device to another.
MAY_MIX = {ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default, ATEN.copy_.default}


class FakeDeviceTensor(Tensor):
    """A tensor that claims to lie on the fake device; inner: its numbers, on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "FakeDeviceTensor":
        shell = torch.empty_strided(inner.shape, inner.stride(), dtype=inner.dtype, device=FAKE_DEVICE)
        tensor = Tensor._make_subclass(cls, shell)
        tensor.inner = inner
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"FakeDeviceTensor({self.shape})"


class _FakeDeviceMode(TorchDispatchMode):
    """Sees also those operations that have no fake tensor among their arguments, such as the making of tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def fake_device() -> Iterator[torch.device]:
    """Within it ``.to(device)`` takes tensors to the fake device, and ``.cpu()`` takes them back."""
    with _FakeDeviceMode():
        yield FAKE_DEVICE


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU, and refuse it if CUDA would.

    The result is on the fake device if an argument is, or if the operation asks for this device.
    """
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    on_fake = any(isinstance(t, FakeDeviceTensor) for t in tensors)
    target = kwargs.get("device")
    on_cpu = [tuple(t.shape) for t in tensors if not isinstance(t, FakeDeviceTensor) and t.ndim > 0]
    if on_fake and target is None and func not in MAY_MIX and on_cpu:
        raise RuntimeError(f"{func}: a tensor {on_cpu[0]} on the CPU meets one that is not")
    if target is not None:
        on_fake = torch.device(target) == FAKE_DEVICE
        kwargs = kwargs | {"device": torch.device("cpu")}
    if on_fake and kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: a CPU generator for a tensor on the fake device")
    plain_args, plain_kwargs = pytree.tree_map_only(FakeDeviceTensor, lambda t: t.inner, (args, kwargs))
    if func is ATEN._efficientzerotensor.default:
        func = ATEN.zeros.default  # the zeros of forward mode have no memory to read
    out = func(*plain_args, **plain_kwargs)
    if func._schema.is_mutable:
        return args[0]
    return pytree.tree_map_only(Tensor, FakeDeviceTensor, out) if on_fake else out
