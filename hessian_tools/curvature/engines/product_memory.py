"""The memory of a product, counted beforehand: the product is computed on tensors that have shapes and no numbers."""

import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from hessian_tools.batches import cast_like
from hessian_tools.curvature.engines.choice import EngineName
from hessian_tools.curvature.engines.engine import Findings, PreparedProducts
from hessian_tools.curvature.engines.memory import FORWARDS_PER_PRODUCT, KEPT_FORWARDS
from hessian_tools.curvature.objective.loader_batches import LoaderBatches, bytes_of
from hessian_tools.curvature.objective.objective import Objective


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations make.

    now: the bytes of the storages that are alive now. peak: the largest value that ``now`` has had.

    >>> with PeakBytes() as count:
    ...     a = torch.zeros(10) + torch.ones(10)
    >>> count.now, count.peak
    (40, 120)
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the operation and counts what it has made."""
        out = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
                self.add(leaf)
        return out

    def add(self, tensor: Tensor) -> None:
        """Counts the storage of a tensor until it is freed, unless it is counted already."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._alive:
            self._alive[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, key).atexit = False

    def _freed(self, key: int) -> None:
        """Called when the storage with this key is freed."""
        self.now -= self._alive.pop(key)


@dataclass(frozen=True)
class ProductBytes:
    """The memory of the products of a matrix at one point.

    engine: the engine that would be chosen. kept: the bytes that are kept between products. working: the bytes that a
    product takes while it is computed, with its result and without its vectors. counted: True if kept and working were
    counted; False if they were estimated from the product of one vector or from a forward pass, because the product
    cannot be computed on tensors without numbers.
    """

    engine: EngineName
    kept: int
    working: int
    counted: bool


def product_bytes(prepared: PreparedProducts, *, num_products: int, columns: int) -> ProductBytes:
    """The memory of products of ``columns`` vectors together at one point, if ``num_products`` products are announced.

    The cost is a forward pass, by which the engine is chosen, and a trace of the product if that engine is "compiled".
    """
    objective = prepared.objective
    fresh = PreparedProducts(objective, prepared.matrix, prepared.engine, Findings())
    fresh.announce(num_products)
    name = fresh._choose(columns)
    if name == "compiled":
        device, budget = objective.thetas.device, prepared.engine.memory.budget(objective.thetas.device)
        traces = fresh._traces()
        working = max(trace.working_bytes(device, budget) for trace in traces)
        return ProductBytes(name, sum(trace.kept_bytes for trace in traces), working, True)
    # If the batches are taken one after the other, nothing is kept between products, and the largest batch takes most.
    batchwise = fresh.is_batchwise
    part = _largest_batch(objective) if batchwise else objective
    # vmap refuses some products of several vectors on tensors without numbers. Then a product of one vector is counted.
    for together in dict.fromkeys((columns, 1)):
        try:
            kept, working = _counted(replace(fresh, objective=part), name, together)
        except Exception:  # whatever a loss may raise on tensors without numbers
            continue
        return _bytes(name, kept, working * (columns // together), batchwise, counted=together == columns)
    forward, vector_bytes = fresh._forward(), objective.thetas.numel() * objective.thetas.element_size()
    # The engine double_backward keeps theta and its gradient besides the graph, and multiplies one column at a time.
    kept = (KEPT_FORWARDS * forward + 2 * vector_bytes) if name == "double_backward" else 0
    forwards = FORWARDS_PER_PRODUCT * (1 if name == "double_backward" else columns)
    working = forwards * forward + 2 * columns * vector_bytes
    return _bytes(name, kept, working, batchwise, counted=False)


def _bytes(name: EngineName, kept: int, working: int, batchwise: bool, *, counted: bool) -> ProductBytes:
    """The result; if the batches are taken one after the other, the kept bytes exist only during a product."""
    return ProductBytes(name, 0 if batchwise else kept, working + (kept if batchwise else 0), counted)


def _counted(prepared: PreparedProducts, name: EngineName, columns: int) -> tuple[int, int]:
    """The bytes kept between products, and those of a product, by a product on tensors without numbers."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        (group,) = prepared.objective.groups
        thetas, batches = pytree.tree_map_only(
            Tensor, mode.from_tensor, (prepared.objective.thetas, list(group.batches))
        )
        objective = replace(prepared.objective, thetas=thetas, groups=(replace(group, batches=batches),))
        V = torch.empty(1, thetas.shape[-1], columns, dtype=thetas.dtype, device=thetas.device)
        with PeakBytes() as count:
            for given in pytree.tree_leaves((thetas, batches, V)):
                if isinstance(given, Tensor):
                    count.add(given)  # now, because otherwise it would be counted when an operation makes a view of it
            before = count.now
            products = replace(prepared, objective=objective)._build_for(name, objective)
            after = count.peak = count.now  # the peak while the kept data was built is not that of a product
            products.products(V)
            return after - before, count.peak - after


def _largest_batch(objective: Objective) -> Objective:
    """The objective of a single batch: the one with the most bytes."""
    batches, theta = objective.batches, objective.thetas
    if isinstance(batches, LoaderBatches):
        return objective.of_batch(cast_like(batches.largest, theta))
    return objective.of_batch(max(batches, key=lambda batch: bytes_of(batch, theta)))
