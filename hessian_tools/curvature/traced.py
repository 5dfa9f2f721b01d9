"""Products traced once: what depends on the point apart from what depends on the vector.

A product with a Hessian is a fixed sequence of operations. Traced once for a network and shapes, it
splits into a part that the vector does not enter, done once a point and kept, and the rest, done once a
product. Both are vmapped over points. On a Conv4 of width 16 the rest is a third of the whole product.

The trace bakes in everything but theta, batch and vector: the branch taken, frozen parameters,
buffers. So it is kept under a key that holds their versions, and checked at a second point before use.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, fx
from torch.func import functionalize, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from hessian_tools.loss import Batch, Loss, LossFunction
from hessian_tools.rng import stream

Product = Callable[[Tensor, Batch, Tensor], Tensor]

MOST_TRACES = 16
ENOUGH_PRODUCTS = 500
_DEMAND: "WeakKeyDictionary[Loss, int]" = WeakKeyDictionary()
# By loss, for as long as it lives: then by kind, state and shapes.
_TRACES: "WeakKeyDictionary[LossFunction, OrderedDict[Hashable, Traced | None]]" = WeakKeyDictionary()

_ATEN = torch.ops.aten
_SAME = (_ATEN.alias.default, _ATEN.detach.default)
# vmap moves axes, after which a view of memory need not exist.
_VIEWS = (_ATEN.view.default, _ATEN._unsafe_view.default)


@dataclass(frozen=True)
class Traced:
    """The two halves of a product: point(theta, *batch tensors) -> kept; vector(v, *kept) -> product."""

    point: Callable[..., tuple[Tensor, ...]]
    vector: Callable[..., Tensor]

    def at(self, thetas: Float[Tensor, "point param"], batch: Batch, *, shared: bool) -> "Kept":
        """The first half done at every point."""
        leaves = _tensors(batch)
        dims = (0, *(None if shared else 0 for _ in leaves))
        tensors = tuple(vmap(self.point, in_dims=dims)(thetas, *leaves))
        return Kept(self, tensors, torch.arange(len(thetas), device=thetas.device))


@dataclass(frozen=True)
class Kept:
    """What products at some points share, each tensor with a leading point axis; rows: the points still wanted."""

    traced: Traced
    tensors: tuple[Tensor, ...]
    rows: Int[Tensor, " point"]

    def products(self, V: Float[Tensor, "point param probe"]) -> Float[Tensor, "point param probe"]:
        """Each point's product with its columns; columns go together only where points are few."""
        size = len(self.tensors[0])
        if len(self.rows) < size:
            whole = V.new_zeros(size, *V.shape[1:])
            whole[self.rows] = V
            return self._all(whole)[self.rows]
        return self._all(V)

    def select(self, points: Int[Tensor, " chosen"]) -> "Kept":
        """The same at some of the points; what the others need is let go once they are half of all.

        Points leave one by one, and copying all that is kept each time would cost as much as the products saved.
        """
        rows = self.rows[points]
        # Only in their first order and once each can points stay where they are.
        if 2 * len(rows) > len(self.tensors[0]) and bool((rows[1:] > rows[:-1]).all()):
            return replace(self, rows=rows)
        return Kept(self.traced, tuple(t[rows] for t in self.tensors), torch.arange(len(rows), device=rows.device))

    @property
    def nbytes(self) -> int:
        """Memory kept."""
        return sum(t.numel() * t.element_size() for t in self.tensors)

    def _all(self, V: Tensor) -> Tensor:
        together = max(1, 16 // len(V))  # beyond some 16 at once, intermediate results leave the caches
        return torch.cat([self._block(columns) for columns in V.split(together, dim=-1)], dim=-1)

    def _block(self, V: Tensor) -> Tensor:
        def one_point(columns: Tensor, *kept: Tensor) -> Tensor:
            if columns.shape[-1] == 1:
                return self.traced.vector(columns[:, 0], *kept)[:, None]
            return vmap(lambda v: self.traced.vector(v, *kept), in_dims=1, out_dims=1)(columns)

        return vmap(one_point)(V, *self.tensors)


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


def worth_tracing(loss: LossFunction, num_products: int) -> bool:
    """Whether so many products of this loss have been asked for that tracing, a second or two, pays.

    By count, not by the clock: the same calls take the same route in every run. Never for a plain
    function, of which nobody can tell what else it looks at.
    """
    if not isinstance(loss, Loss):
        return False
    _DEMAND[loss] = _DEMAND.get(loss, 0) + num_products
    return _DEMAND[loss] > ENOUGH_PRODUCTS


def _checked_trace(product: Product, theta: Tensor, batch: Batch) -> Traced | None:
    """Traced here, compared with the product itself at another point: a branch not taken would show."""
    try:
        traced = _trace(product, theta, batch, _drawn(theta, "vector"))
        elsewhere = theta + 0.1 * _drawn(theta, "shift") * theta.abs().mean()
        return traced if _agrees(traced, product, elsewhere, batch) else None
    except Exception:  # whatever tracing cannot follow is done the direct way, where real errors come up again
        return None


def _agrees(traced: Traced, product: Product, theta: Tensor, batch: Batch) -> bool:
    """Whether trace and product give the same at a point; where neither is finite there is nothing to tell."""
    v = _drawn(theta, "vector")
    found = traced.at(theta[None], batch, shared=True).products(v[None, :, None])[0, :, 0]
    expected = product(theta, batch, v)
    if not torch.isfinite(expected).all():
        return not torch.isfinite(found).all()
    return bool((found - expected).norm() <= 1e4 * torch.finfo(theta.dtype).eps * expected.norm())


def _trace(product: Product, theta: Tensor, batch: Batch, v: Tensor) -> Traced:
    leaves, spec = pytree.tree_flatten(batch)
    where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def flat(theta: Tensor, v: Tensor, *tensors: Tensor) -> Tensor:
        whole = list(leaves)
        for i, tensor in zip(where, tensors, strict=True):
            whole[i] = tensor
        return product(theta, pytree.tree_unflatten(whole, spec), v)

    # Functionalised: an operation in place on what is kept would spoil the next product.
    module = make_fx(functionalize(flat))(theta, v, *_tensors(batch))
    _simplify(module.graph)
    return Traced(*_split(module))


def _simplify(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if node.op == "call_function" and node.target in _SAME:
            node.replace_all_uses_with(node.args[0])
        elif node.op == "call_function" and node.target in _VIEWS:
            node.target = _ATEN.reshape.default
        elif node.op == "call_function" and node.target is _ATEN.copy.default:
            node.target = _copied  # vmap has no rule for it
    for node in reversed(list(graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users:
            graph.erase_node(node)


def _copied(onto: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    return source.to(onto.dtype).expand(onto.shape)


def _split(module: fx.GraphModule) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The graph cut between what the second placeholder, the vector, does not reach and what it does."""
    nodes = list(module.graph.nodes)
    vector = [n for n in nodes if n.op == "placeholder"][1]
    reached = {vector}
    for node in nodes:
        if reached.intersection(node.all_input_nodes):
            reached.add(node)
    body = [n for n in nodes if n.op not in ("placeholder", "output")]
    inputs = [n for n in nodes if n.op == "placeholder" and n is not vector]
    late = [n for n in body if n in reached or n.op == "get_attr"]
    early = [n for n in body if n not in reached]
    used = {i for n in late for i in n.all_input_nodes} - reached
    kept = [n for n in [*inputs, *early] if n in used and n.op != "get_attr"]
    output = nodes[-1].args[0]
    return (
        _part(module, inputs, early, lambda env: tuple(env[n] for n in kept)),
        _part(module, [vector, *kept], late, lambda env: env[output]),
    )


def _part(module: fx.GraphModule, inputs: list[fx.Node], body: list[fx.Node], output: Callable[[Any], Any]) -> Any:
    graph, env = fx.Graph(), {}
    for node in inputs:
        env[node] = graph.placeholder(node.name)
    for node in body:
        env[node] = graph.node_copy(node, lambda n: env[n])
    graph.output(output(env))
    return fx.GraphModule(module, graph)


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
    drawn = torch.randn(theta.shape, generator=stream(0, "trace", name), dtype=torch.float64)
    return drawn.to(theta.device, theta.dtype)
