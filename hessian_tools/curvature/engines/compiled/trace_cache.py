"""Products traced once: what depends on the point apart from what depends on the vector.

A product with a Hessian is a fixed sequence of operations. Traced once for a network and shapes, it
splits into a part that the vector does not enter, done once a point and kept, and the rest, done once a
product. On a Conv4 the rest is a third of the whole product.

The trace bakes in everything but theta, batch and vector: the branch taken, frozen parameters,
buffers. So it is kept under a key that holds their versions, and checked at a second point before use.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from hessian_tools.curvature.engines.compiled.compiled_products import Traced
from hessian_tools.curvature.engines.compiled.memory_plan import peak_bytes
from hessian_tools.curvature.engines.compiled.split_graph import Product, trace_halves
from hessian_tools.loss import Batch, Loss, LossFunction
from hessian_tools.rng import stream

MOST_TRACES = 16
# By loss, for as long as it lives: then by kind, state and shapes.
_TRACES: "WeakKeyDictionary[LossFunction, OrderedDict[Hashable, Traced | None]]" = WeakKeyDictionary()


def traced_product(
    product: Product, kind: str, loss: LossFunction, theta: Float[Tensor, " param"], batch: Batch
) -> Traced | None:
    """The trace of ``product`` at a point, kept from before or made now; None where it cannot be trusted.

    kind: which product of this loss. Costs a second or two, once for a loss, kind and shapes of the process.
    One kept from before is compared with the product here first: an activation that was exchanged or a
    temperature that was turned since is in no version number.
    """
    try:
        traces = _TRACES.setdefault(loss, OrderedDict())
    except TypeError:  # a callable that cannot be referred to weakly: nothing is kept
        traces = OrderedDict()
    key = (kind, _state(loss), _signature((theta, batch)))
    known = traces.get(key)
    if key not in traces or (known is not None and not _agrees(known, product, theta, batch)):
        traces[key] = _checked_trace(product, theta, batch)
        while len(traces) > MOST_TRACES:
            traces.popitem(last=False)
    traces.move_to_end(key)
    return traces[key]


def _checked_trace(product: Product, theta: Tensor, batch: Batch) -> Traced | None:
    """Traced here, compared with the product itself at another point: a branch not taken would show."""
    try:
        product(theta, batch, _drawn(theta, "vector"))  # where this raises, tracing may end the process (nn.MSELoss)
        traced = _trace(product, theta, batch)
        elsewhere = theta + 0.1 * _drawn(theta, "shift") * theta.abs().mean()
        return traced if _agrees(traced, product, elsewhere, batch) else None
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever tracing cannot follow is done the direct way, where real errors come up again
        return None


def _trace(product: Product, theta: Tensor, batch: Batch) -> Traced:
    point, vector = trace_halves(product, theta, batch, _drawn(theta, "vector"))
    kept = sum(t.numel() * t.element_size() for t in point(theta, *_tensors(batch)))
    work_bytes, largest = peak_bytes(vector.graph)
    return Traced(point, vector, kept, work_bytes, peak_bytes(point.graph)[0], largest)


def _agrees(traced: Traced, product: Product, theta: Tensor, batch: Batch) -> bool:
    """Whether trace and product give the same at a point; where neither is finite there is nothing to tell."""
    v = _drawn(theta, "vector")
    found = traced.at(theta[None], batch, shared=True).products(v[None, :, None])[0, :, 0]
    expected = product(theta, batch, v)
    if not torch.isfinite(expected).all():
        return not torch.isfinite(found).all()
    return bool((found - expected).norm() <= 1e4 * torch.finfo(theta.dtype).eps * expected.norm())


def _state(loss: LossFunction) -> Hashable:
    """The state of a network's modules, and the versions of the tensors that a trace would bake in."""
    if not isinstance(loss, Loss):
        return None
    model, layout = loss.model, loss.layout
    fixed = [p for name, p in model.named_parameters() if name not in layout.names] + list(model.buffers())
    versions = tuple((t.data_ptr(), t._version) for t in fixed)
    return tuple(m.training for m in model.modules()), versions


def _signature(tree: Any) -> Hashable:
    leaves, spec = pytree.tree_flatten(tree)
    kinds = [(tuple(t.shape), t.dtype, str(t.device)) if isinstance(t, Tensor) else repr(t) for t in leaves]
    return str(spec), tuple(kinds)


def _tensors(batch: Batch) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]


def _drawn(theta: Tensor, name: str) -> Tensor:
    drawn = torch.randn(theta.shape, generator=stream(0, "trace", name), dtype=torch.float64, device="cpu")
    return drawn.to(theta.device, theta.dtype)
