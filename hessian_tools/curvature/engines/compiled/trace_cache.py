"""Makes and checks the traces of products, and keeps them for as long as the loss lives.

A product with a Hessian is a fixed sequence of operations, which is traced once for a network and the shapes of its
batch. The trace splits into a part that does not depend on the vector, computed once for each point and kept, and a
part that does, computed for each product. For a network of four convolutions the second part takes a third of the time
of the whole product.

A trace fixes everything but theta, the batch and the vector: the branch that was taken, frozen parameters, buffers. It
is therefore kept under a key that holds the versions of the fixed tensors, and compared with the product before it is
used.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from hessian_tools.curvature.engines.compiled.compiled_products import Traced, tensors_of
from hessian_tools.curvature.engines.compiled.memory_plan import peak_bytes
from hessian_tools.curvature.engines.compiled.simplify import agree
from hessian_tools.curvature.engines.compiled.split_graph import Product, split_product
from hessian_tools.failures import is_out_of_memory
from hessian_tools.loss import Batch, Loss, LossFunction
from hessian_tools.rng import stream
from hessian_tools.torch_fixes import convolutions
from hessian_tools.torch_fixes.convolutions import at_many_points

# How many traces of one loss are kept.
MAX_TRACES = 16
# The traces of each loss, by the name of the matrix, the state of the network and the shapes; None if tracing failed.
_TRACES: "WeakKeyDictionary[LossFunction, OrderedDict[Hashable, Traced | None]]" = WeakKeyDictionary()


def traced_product(
    product: Product, name: str, loss: LossFunction, theta: Float[Tensor, " param"], batch: Batch, *, points: int
) -> Traced | None:
    """The trace of ``product`` at a point, kept from before or made now; None if it cannot be made or is wrong.

    name: the name of the matrix that is multiplied. points: how many points there are; on a GPU the convolutions at
    several points are traced as matrix products. Making a trace takes a second or two on a CPU.
    """
    try:
        traces = _TRACES.setdefault(loss, OrderedDict())
    except TypeError:  # no weak reference to this callable is possible, so its traces are not kept
        traces = OrderedDict()
    key = _key(name, loss, theta, batch, points)
    known = traces.get(key)
    # The product that a trace is compared with computes its convolutions in the same way. In float32 the rounding of
    # another way may fall on the other side of a kink, which changes the product by more than rounding.
    with at_many_points(points, theta.device):
        # A known trace is compared with the present product, because the key does not show every change, such as that
        # of an activation function or of a temperature that is a plain number.
        if key not in traces or (known is not None and not _agrees(known, product, theta, batch)):
            traces[key] = _checked_trace(product, theta, batch)
    while len(traces) > MAX_TRACES:
        traces.popitem(last=False)
    traces.move_to_end(key)
    return traces[key]


def is_traced(name: str, loss: LossFunction, theta: Float[Tensor, " param"], batch: Batch, *, points: int) -> bool:
    """True if a trace of the product is kept from before."""
    traces = _TRACES.get(loss)
    return traces is not None and traces.get(_key(name, loss, theta, batch, points)) is not None


def _key(name: str, loss: LossFunction, theta: Tensor, batch: Batch, points: int) -> Hashable:
    """The key of a trace: whatever is known to change the operations of the product."""
    as_matrices = convolutions.pays(device=theta.device.type, points=points)
    return name, as_matrices, _state(loss), _signature((theta, batch))


def _checked_trace(product: Product, theta: Tensor, batch: Batch) -> Traced | None:
    """The trace of the product at a point; None if it cannot be made or differs from the product at another point."""
    try:
        # The product runs first, because tracing one that raises an error may end the process (nn.MSELoss).
        product(theta, batch, _direction(theta, "vector"))
        traced = _trace(product, theta, batch)
        # The trace is compared at another point, because there the product may take a branch that the trace lacks.
        shifted = theta + 0.1 * _direction(theta, "shift") * theta.abs().mean()
        return traced if _agrees(traced, product, shifted, batch) else None
    except Exception as error:  # another engine takes over; an error of the loss itself is raised again there
        if is_out_of_memory(error):
            raise
        return None


def _trace(product: Product, theta: Tensor, batch: Batch) -> Traced:
    """The trace of the product at a point, with its sizes in bytes."""
    point_part, vector_part = split_product(product, theta, batch, _direction(theta, "vector"))
    work_bytes, largest = peak_bytes(vector_part.graph)
    return Traced(
        point_part,
        vector_part,
        kept_bytes=sum(t.numel() * t.element_size() for t in point_part(theta, *tensors_of(batch))),
        work_bytes=work_bytes,
        point_bytes=peak_bytes(point_part.graph)[0],
        largest=largest,
    )


def _agrees(traced: Traced, product: Product, theta: Tensor, batch: Batch) -> bool:
    """True if trace and product agree at a point up to rounding, or if neither is finite."""
    v = _direction(theta, "vector")
    by_trace = traced.prepare(theta[None], batch, shared=True).products(v[None, :, None])[0, :, 0]
    return agree(by_trace, product(theta, batch, v))


def _state(loss: LossFunction) -> Hashable:
    """The modes of a network's modules, and the versions of the tensors that a trace fixes."""
    if not isinstance(loss, Loss):
        return None
    model, layout = loss.model, loss.layout
    fixed = [p for name, p in model.named_parameters() if name not in layout.names] + list(model.buffers())
    versions = tuple((t.data_ptr(), t._version) for t in fixed)
    return tuple(m.training for m in model.modules()), versions


def _signature(tree: Any) -> Hashable:
    """The shapes, dtypes and devices of the tensors of a pytree, and its other leaves."""
    leaves, spec = pytree.tree_flatten(tree)
    kinds = [(tuple(t.shape), t.dtype, str(t.device)) if isinstance(t, Tensor) else repr(t) for t in leaves]
    return str(spec), tuple(kinds)


def _direction(theta: Tensor, name: str) -> Tensor:
    """A fixed random vector of theta's length, so that the same trace is always checked in the same way."""
    drawn = torch.randn(theta.shape, generator=stream(0, "trace", name), dtype=torch.float64, device="cpu")
    return drawn.to(theta.device, theta.dtype)
