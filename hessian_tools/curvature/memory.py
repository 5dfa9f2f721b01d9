"""How many Hessian-vector products fit in memory at once: measured beforehand, for a CPU without memory kills."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from hessian_tools.loss import Batch, LossFunction

# Bytes the products in flight may take, by device type.
MEMORY_BUDGET = {"cpu": 2**29, "cuda": 2**32}

# One product was measured to need 4 to 7 times the bytes of one forward pass (Conv4, width 16 and 64, 1 to 112
# products at once, peak resident memory); 8 leaves room.
FORWARDS_PER_PRODUCT = 8

# What a traced product keeps of a point, in the same measure: 1.5 to 3 (Conv4, width 16 and 64).
KEPT_FORWARDS = 4


def products_at_once(loss: LossFunction, theta: Float[Tensor, " param"], batches: Iterable[Batch]) -> int:
    """As many products as fit the device's budget, at least one; costs one forward pass a batch."""
    forward = max(forward_bytes(loss, theta, batch) for batch in batches)
    budget = MEMORY_BUDGET.get(theta.device.type, MEMORY_BUDGET["cpu"])
    return max(1, budget // (FORWARDS_PER_PRODUCT * max(1, forward)))


def forward_bytes(loss: LossFunction, theta: Float[Tensor, " param"], batch: Batch) -> int:
    """Bytes of all tensors that one evaluation of the loss makes, views apart.

    >>> forward_bytes(lambda theta, batch: (2 * theta).sum(), torch.zeros(10), None)  # ten floats and one
    44
    """
    with torch.no_grad(), _CountBytes() as count:
        loss(theta, batch)
    return count.total


class _CountBytes(TorchDispatchMode):
    """Adds up the bytes of every tensor an operation makes, unless it shares an input's storage."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        taken = {_storage(t) for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor) and _storage(t) not in taken]
        self.total += sum(t.numel() * t.element_size() for t in made)
        return out


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
