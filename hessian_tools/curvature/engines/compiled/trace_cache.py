"""Traces of products, made once for a loss and shapes, checked, and kept for as long as the loss lives.

A product with a Hessian is a fixed sequence of operations. Traced once for a network and shapes, it splits into a part
that the vector does not enter, computed once a point and kept, and the rest, computed once a product. On a Conv4 the
rest is a third of the whole product.

A trace bakes in everything but theta, batch and vector: the branch that was taken, frozen parameters, buffers. It is
therefore kept under a key that holds their versions, and compared with the product itself before it is used.
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
from hessian_tools.curvature.engines.compiled.split_graph import Product, split_product
from hessian_tools.loss import Batch, Loss, LossFunction
from hessian_tools.rng import stream

MAX_TRACES = 16
# By loss, then by the name of the matrix, the state of the network and the shapes. None where tracing has failed.
_TRACES: "WeakKeyDictionary[LossFunction, OrderedDict[Hashable, Traced | None]]" = WeakKeyDictionary()


def traced_product(
    product: Product, name: str, loss: LossFunction, theta: Float[Tensor, " param"], batch: Batch
) -> Traced | None:
    """The trace of ``product`` at a point, kept from before or made now; None where it cannot be trusted.

    name: of the matrix that is multiplied. To make a trace costs a second or two on a CPU.
    """
    try:
        traces = _TRACES.setdefault(loss, OrderedDict())
    except TypeError:  # a callable that cannot be referred to weakly: nothing is kept
        traces = OrderedDict()
    key = _key(name, loss, theta, batch)
    known = traces.get(key)
    # A known trace is compared with the product as it is now, because an activation that was exchanged or a temperature
    # that was turned since is in no version number.
    if key not in traces or (known is not None and not _agrees(known, product, theta, batch)):
        traces[key] = _checked_trace(product, theta, batch)
        while len(traces) > MAX_TRACES:
            traces.popitem(last=False)
    traces.move_to_end(key)
    return traces[key]


def is_traced(name: str, loss: LossFunction, theta: Float[Tensor, " param"], batch: Batch) -> bool:
    """Whether a trace of the product is kept from before."""
    traces = _TRACES.get(loss)
    return traces is not None and traces.get(_key(name, loss, theta, batch)) is not None


def _key(name: str, loss: LossFunction, theta: Tensor, batch: Batch) -> Hashable:
    return name, _state(loss), _signature((theta, batch))


def _checked_trace(product: Product, theta: Tensor, batch: Batch) -> Traced | None:
    """The trace of the product at a point, if it gives the same as the product at another point as well."""
    try:
        # Where the product itself raises an error, tracing it may end the process (nn.MSELoss).
        product(theta, batch, _direction(theta, "vector"))
        traced = _trace(product, theta, batch)
        # At another point, because a branch that was not taken would show there.
        shifted = theta + 0.1 * _direction(theta, "shift") * theta.abs().mean()
        return traced if _agrees(traced, product, shifted, batch) else None
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever tracing cannot follow goes to another engine, where real errors come up again
        return None


def _trace(product: Product, theta: Tensor, batch: Batch) -> Traced:
    point, vector = split_product(product, theta, batch, _direction(theta, "vector"))
    kept = sum(t.numel() * t.element_size() for t in point(theta, *tensors_of(batch)))
    work_bytes, largest = peak_bytes(vector.graph)
    return Traced(point, vector, kept, work_bytes, peak_bytes(point.graph)[0], largest)


def _agrees(traced: Traced, product: Product, theta: Tensor, batch: Batch) -> bool:
    """Whether trace and product give the same at a point; where neither is finite, nothing contradicts it."""
    v = _direction(theta, "vector")
    by_trace = traced.at(theta[None], batch, shared=True).products(v[None, :, None])[0, :, 0]
    expected = product(theta, batch, v)
    if not torch.isfinite(expected).all():
        return not torch.isfinite(by_trace).all()
    return bool((by_trace - expected).norm() <= 1e4 * torch.finfo(theta.dtype).eps * expected.norm())


def _state(loss: LossFunction) -> Hashable:
    """The modes of a network's modules, and the versions of the tensors that a trace would bake in."""
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


def _direction(theta: Tensor, name: str) -> Tensor:
    """A fixed random vector of theta's length, so that the same trace is always checked in the same way."""
    drawn = torch.randn(theta.shape, generator=stream(0, "trace", name), dtype=torch.float64, device="cpu")
    return drawn.to(theta.device, theta.dtype)
