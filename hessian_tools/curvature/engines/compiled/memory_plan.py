"""Where the operations of a graph write: over an input that nothing reads again, or into a buffer that is lent to it.

On the CPU new memory above 32 MB comes from the system page by page and is written ten times as slowly as memory used
before. On W1 of the benchmarks this took half the time of a product.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from hessian_tools.curvature.engines.compiled.simplify import ATEN, operations, tensor_of

# Elementwise operations, which may write over one of their inputs.
_ELEMENTWISE = operations("add.Tensor sub.Tensor mul.Tensor div.Tensor neg addcmul threshold_backward")
# Other operations that can be told where to write, but not over an input.
_WITH_OUT = operations("max_pool2d_with_indices_backward bmm mm")
# A smaller result is not worth a buffer.
_MIN_BUFFER_NUMEL = 2**14


@dataclass(frozen=True)
class Buffer:
    """The shape, strides, dtype and device of memory that must be lent to a graph."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def empty(self) -> Tensor:
        """New memory of this form, with arbitrary contents."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)


def reuse_memory(graph: fx.Graph) -> tuple[Buffer, ...]:
    """Rewrites a graph so that its operations reuse memory, and returns the buffers that must be lent to it.

    The buffers become the last inputs of the graph. What the graph returns never lies in one of them.
    """
    plan = _Plan(graph)
    for i, node in enumerate(plan.nodes):
        over = plan.place_for(node, i)
        if over is not None:
            node.target = _writing_variant(node.target)
            node.kwargs = {**node.kwargs, node.target._overloadname: over}
    for place in plan.lent:  # behind the inputs that were there before
        next(n for n in plan.nodes if n.op != "placeholder").prepend(place)
    return tuple(plan.lent.values())


def _writing_variant(operation: Any) -> Any:
    """The overload that writes where it is told. It is named after the argument that says where."""
    variants = operation.overloadpacket
    return variants.out if "out" in variants.overloads() else variants.grad_input


class _Plan:
    """Which node reads which memory last, and the buffers that have been lent so far."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.nodes: list[Any] = list(graph.nodes)
        self.owners = owners_of(self.nodes)
        self.last = last_uses(self.nodes, self.owners)
        self.returned = {owner for used in self.nodes[-1].all_input_nodes for owner in self.owners[used]}
        self.lent: dict[fx.Node, Buffer] = {}
        self.holds: dict[fx.Node, fx.Node] = {}  # for each buffer, the node whose result it holds
        self.within: dict[fx.Node, fx.Node] = {}  # for each node, the buffer in which its result lies

    def place_for(self, node: fx.Node, now: int) -> fx.Node | None:
        """The input or buffer to which the result of the node is to be written; None for new memory."""
        if node.target in _ELEMENTWISE and (over := self._dying_input(node, now)) is not None:
            (owner,) = self.owners[over]
            buffer = self.within.get(owner)
            if buffer is not None and node in self.returned:
                return None
        elif node.target in _ELEMENTWISE or node.target in _WITH_OUT:
            over = buffer = None if node in self.returned else self._buffer(node, now)
        else:
            return None
        if buffer is not None:
            self.within[node], self.holds[buffer] = buffer, node
        return over

    def _buffer(self, node: fx.Node, now: int) -> fx.Node | None:
        form = _form(node)
        if form is None:
            return None
        for buffer, lent in self.lent.items():
            if lent == form and self.last.get(self.holds[buffer], -1) < now:
                return buffer
        with self.graph.inserting_before(self.nodes[0]):
            buffer = self.graph.placeholder(f"buffer_{len(self.lent)}")
        self.lent[buffer] = form
        return buffer

    def _dying_input(self, node: fx.Node, now: int) -> fx.Node | None:
        """An input of the same form as the result, in memory that no other input shares and no later node reads."""
        for used in node.all_input_nodes:
            owners = self.owners[used]
            others = [other for other in node.all_input_nodes if other is not used]
            if len(owners) > 1 or any(owners & self.owners[other] for other in others):
                continue
            (owner,) = owners
            if owner.op == "call_function" and self.last[owner] == now and _alike(used, node):
                return used
        return None


def last_uses(nodes: list[fx.Node], owners: dict[fx.Node, set[fx.Node]]) -> dict[fx.Node, int]:
    """For each node that owns memory, the position of the last node that reads it."""
    return {owner: i for i, node in enumerate(nodes) for used in node.all_input_nodes for owner in owners[used]}


def owners_of(nodes: list[fx.Node]) -> dict[fx.Node, set[fx.Node]]:
    """For every node the nodes whose memory it may share: itself, or those that it may be a view of."""
    owners: dict[fx.Node, set[fx.Node]] = {}
    for node in nodes:
        shared = {owner for used in node.all_input_nodes for owner in owners[used]}
        owners[node] = shared if _may_be_view(node) and shared else {node}
    return owners


def _may_be_view(node: fx.Node) -> bool:
    if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
        returns = node.target._schema.returns
        return node.target is ATEN.reshape.default or any(r.alias_info is not None for r in returns)
    return node.op == "call_function"


def _alike(one: fx.Node, other: fx.Node) -> bool:
    a, b = tensor_of(one), tensor_of(other)
    if a is None or b is None or not _dense(b):
        return False
    return (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)


def _dense(tensor: Tensor) -> bool:
    """Whether the elements of a tensor fill a piece of memory without gaps or repetitions."""
    expected = 1
    for stride, size in sorted((st, n) for n, st in zip(tensor.shape, tensor.stride(), strict=True) if n > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _form(node: fx.Node) -> Buffer | None:
    tensor = tensor_of(node)
    if tensor is None or tensor.device.type != "cpu" or tensor.numel() < _MIN_BUFFER_NUMEL or not _dense(tensor):
        return None
    return Buffer(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)


def peak_bytes(graph: fx.Graph) -> tuple[int, int]:
    """The bytes of all tensors alive at the worst moment, and those of the largest tensor.

    Inputs are not counted, and no memory is taken to be reused.
    """
    nodes = list(graph.nodes)
    owners = owners_of(nodes)
    last = last_uses(nodes, owners)
    place = {node: i for i, node in enumerate(nodes)}
    made = {n: _bytes(n) for n in nodes if n.op == "call_function" and owners[n] == {n}}
    freed = [0] * (len(nodes) + 1)
    for node, size in made.items():
        freed[last.get(node, place[node]) + 1] += size
    alive = peak = 0
    for i, node in enumerate(nodes):
        alive += made.get(node, 0) - freed[i]
        peak = max(peak, alive)
    return peak, max((_bytes(n) for n in nodes), default=0)


def _bytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    tensors = value if isinstance(value, (tuple, list)) else (value,)
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
