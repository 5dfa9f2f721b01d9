"""Predicts how much memory a calculation will hold, and on which device, before anything is computed.

The memory of a product is counted by computing it on tensors that have shapes and no numbers.
"""

import weakref
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from hessian_tools.batches import cast_like
from hessian_tools.curvature.eigen.pairs import checked_selection, solver_plan
from hessian_tools.curvature.engines.choice import EngineName
from hessian_tools.curvature.engines.engine import Findings, PreparedProducts
from hessian_tools.curvature.engines.memory import FORWARDS_PER_PRODUCT, KEPT_FORWARDS, vectors_at_once
from hessian_tools.curvature.estimates.trace import BLOCK
from hessian_tools.curvature.objective.loader_batches import LoaderBatches, bytes_of
from hessian_tools.curvature.objective.objective import Objective
from hessian_tools.curvature.operators.loss_operator import LossOperator
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.loss import Loss
from hessian_tools.result import Result

Calculation = Literal["product", "trace", "top_eigenpairs"]

# The vectors of length param that a step of Lanczos holds while it makes the next basis vector: the product without its
# components along the last two basis vectors, a copy of it, and the product made orthogonal to the whole basis.
STEP_VECTORS = 3


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


@dataclass(frozen=True, repr=False)
class MemoryPlan(Result):
    """The memory of a calculation; ``print`` makes a table of it.

    held: the bytes of what exists already, by name. added: the bytes of what the calculation adds, by name, at the
    moment when it holds the most. results: the bytes that remain afterwards. device: where all of these bytes lie.
    engine: the name of the engine that computes the products. counted: True if the memory of a product was counted,
    False if it was estimated. vector_bytes: the bytes of a vector of length param.
    """

    calculation: Calculation
    held: dict[str, int]
    added: dict[str, int]
    results: int
    device: str
    engine: str
    counted: bool
    vector_bytes: int

    @property
    def bytes_added(self) -> int:
        """The most bytes that the calculation holds beside what exists already."""
        return sum(self.added.values())

    @property
    def bytes_in_all(self) -> int:
        """The most bytes that are held, with what exists already."""
        return sum(self.held.values()) + self.bytes_added

    @property
    def vectors(self) -> float:
        """``bytes_in_all`` in units of a vector of length param."""
        return self.bytes_in_all / self.vector_bytes

    def __repr__(self) -> str:
        how = "counted" if self.counted else "estimated"
        rows = [(name, size, "held already") for name, size in self.held.items()]
        rows += [(name, size, "") for name, size in self.added.items()]
        rows += [("added at most", self.bytes_added, ""), ("in all", self.bytes_in_all, f"{self.vectors:.1f} vectors")]
        width = max(len(name) for name, *_ in rows)
        head = f"MemoryPlan of {self.calculation} on {self.device}, engine {self.engine}, memory of a product {how}"
        lines = [f"{name:{width}}  {size / 2**20:10.1f} MiB  {note}".rstrip() for name, size, note in rows]
        return "\n".join([head, *lines])


def plan(
    H: Operator,
    calculation: Calculation = "product",
    *,
    k: int = 5,
    vectors: bool = False,
    max_basis: int | None = None,
    max_matvecs: int | None = None,
    num_probes: int = 64,
) -> MemoryPlan:
    """The memory that ``top_eigenpairs``, ``trace`` or a product with one vector will hold, before it is computed.

    H: a Hessian or a Gauss-Newton matrix at one point. k, vectors, max_basis, max_matvecs: as for
    :func:`top_eigenpairs`. num_probes: as for :func:`trace` with method="probes".
    The memory of a product is counted by computing the product on torch's fake tensors, which have a shape and no
    numbers. A loss that reads the numbers of its tensors cannot be computed in this way. The memory is then estimated
    from a forward pass, which the choice of the engine needs in any case. The memory of a product with several vectors
    is sometimes estimated from that of a product with one. For the engine "compiled" the product is traced, and the
    calculation uses this trace later. The plan does not know what is allocated outside of tensors, such as the buffers
    of a convolution.

    Raises ValueError for an operator at several points, and for one that is not the matrix of a loss.

    >>> from hessian_tools.curvature import hessian
    >>> H = hessian(lambda theta, a: (a * theta**2).sum() / 2, torch.zeros(4096), torch.ones(4096))
    >>> found = plan(H, "top_eigenpairs", k=1)
    >>> found.held, found.vector_bytes
    ({'theta': 16384, 'batches': 16384}, 16384)
    """
    k, num_probes = int(k), int(num_probes)  # NumPy's whole numbers would make results of their own type
    if not isinstance(H, LossOperator) or not isinstance(H.prepared, PreparedProducts) or (H.num_points or 1) > 1:
        raise ValueError("a plan is made for the Hessian or the Gauss-Newton matrix of one loss at one point")
    n, vector = H.num_params, H.num_params * H.dtype.itemsize
    if calculation == "product":
        product = product_bytes(H.prepared, num_products=1, columns=1)
        added, results = _of_product(product, vector), vector
    elif calculation == "trace":
        block = vectors_at_once(H.device, vector, min(BLOCK, num_probes))
        product = product_bytes(H.prepared, num_products=num_probes, columns=block)
        added, results = _of_trace(product, vector, block, block * n), 0
    else:
        # The tolerance 0.0 has no influence on memory.
        solver = solver_plan(H, (checked_selection("LM", k, 0.0, n),), max_matvecs=max_matvecs, max_basis=max_basis)
        product = product_bytes(H.prepared, num_products=solver.num_products, columns=1)
        results = k * vector if vectors else 0
        if solver.exact:  # three matrices in float64
            added = _of_product(product, vector) | {"the whole matrix and its eigenvectors": 3 * 8 * n**2}
        else:
            added = _of_lanczos(product, vector, k, solver.limits.max_basis, searches=solver.copies)
    return MemoryPlan(calculation, _held(H), added, results, str(H.device), product.engine, product.counted, vector)


def _held(H: LossOperator) -> dict[str, int]:
    """What exists before the calculation: theta, the batches, and the parameters and buffers of the model."""
    objective, theta = H.objective, H.objective.thetas
    (group,) = objective.groups
    if isinstance(group.batches, LoaderBatches):
        # The first and the largest batch are held, and one is being read.
        batches = bytes_of(group.batches.first, theta) + 2 * bytes_of(group.batches.largest, theta)
        held = {"theta": H.num_params * H.dtype.itemsize, "batches, one read at a time": batches}
    else:
        tensors = [leaf for leaf in pytree.tree_leaves(list(group.batches)) if isinstance(leaf, Tensor)]
        held = {"theta": H.num_params * H.dtype.itemsize, "batches": sum(map(_bytes, tensors))}
    if isinstance(objective.loss, Loss):
        model = objective.loss.model
        held["weights and buffers of the model"] = sum(map(_bytes, [*model.parameters(), *model.buffers()]))
    return held


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _kept(product: ProductBytes) -> dict[str, int]:
    return {"kept between products (gradient and graph)": product.kept}


def _of_product(product: ProductBytes, vector: int) -> dict[str, int]:
    return _kept(product) | {"the vector": vector, "a product and its result": product.working}


def _of_trace(product: ProductBytes, vector: int, block: int, drawn: int) -> dict[str, int]:
    """The probes as signs of one byte, a block Z of them as numbers, and a product, or else HZ and Z * HZ."""
    working = max(product.working, 2 * block * vector)
    probes = {
        "probes, one byte for each sign": drawn,
        f"{block} {'probe' if block == 1 else 'probes'} as numbers": block * vector,
    }
    return _kept(product) | probes | {"a product and its result": working}


def _of_lanczos(product: ProductBytes, vector: int, k: int, basis: int, *, searches: bool) -> dict[str, int]:
    """What Lanczos holds in the stage that needs most: a step, the pairs beside the basis, or the check of the pairs.

    searches: True if further runs search for eigenvalues that the first run missed.
    """
    steps = {f"Krylov basis ({basis} vectors)": basis * vector}
    steps["a product, or a step of Lanczos"] = max(product.working, STEP_VECTORS * vector)
    ending = {f"Krylov basis ({basis} vectors)": basis * vector, f"pairs ({k})": k * vector}
    check = {f"pairs ({k}), twice, and products with them": 3 * k * vector}
    check["a product, or a selection of pairs"] = max(product.working, k * vector)
    if searches:  # the pairs found so far are held, and each search has a basis that holds a copy of them
        steps[f"known pairs ({k}), twice"] = 2 * k * vector
    return _kept(product) | max((steps, ending, check), key=lambda stage: sum(stage.values()))


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
        return _product_bytes(name, kept, working * (columns // together), batchwise, counted=together == columns)
    forward, vector_bytes = fresh._forward(), objective.thetas.numel() * objective.thetas.element_size()
    # The engine double_backward keeps theta and its gradient besides the graph, and multiplies one column at a time.
    kept = (KEPT_FORWARDS * forward + 2 * vector_bytes) if name == "double_backward" else 0
    forwards = FORWARDS_PER_PRODUCT * (1 if name == "double_backward" else columns)
    working = forwards * forward + 2 * columns * vector_bytes
    return _product_bytes(name, kept, working, batchwise, counted=False)


def _product_bytes(name: EngineName, kept: int, working: int, batchwise: bool, *, counted: bool) -> ProductBytes:
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
