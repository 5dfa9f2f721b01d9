"""Plans where the operations of a graph write, so that memory is reused.

An operation writes over one of its inputs that nothing reads again, or into a buffer that the caller passes to the
graph. On the CPU new memory above 32 MB comes from the system page by page, and writing it is ten times as slow as
writing memory that was used before. For a network of four convolutions with 64 channels on 84x84 images, this took half
the time of a product.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from hessian_tools.curvature.engines.compiled.simplify import operations, tensor_of

# Elementwise operations, which may write over one of their inputs.
_ELEMENTWISE = operations("add.Tensor sub.Tensor mul.Tensor div.Tensor neg addcmul threshold_backward")
# Other operations that can write into a given tensor, but not over an input.
_WITH_OUT = operations("max_pool2d_with_indices_backward bmm mm")
# A result of fewer numbers than this is not worth a buffer.
_MIN_BUFFER_NUMEL = 2**14


@dataclass(frozen=True)
class Buffer:
    """The shape, strides, dtype and device of a tensor that the caller passes to a graph as memory to write into."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def empty(self) -> Tensor:
        """New memory of this form, with arbitrary contents."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)


def reuse_memory(graph: fx.Graph) -> tuple[Buffer, ...]:
    """Rewrites a graph so that its operations reuse memory, and returns the buffers that it needs.

    The buffers become the last inputs of the graph. The result of the graph never lies in one of them.
    """
    plan = _Plan(graph)
    for i, node in enumerate(plan.nodes):
        destination = plan.destination_of(node, i)
        if destination is not None:
            # The overload that writes is called "out" or "grad_input", like its argument for the destination.
            variants = node.target.overloadpacket
            node.target = variants.out if "out" in variants.overloads() else variants.grad_input
            node.kwargs = {**node.kwargs, node.target._overloadname: destination}
    first_operation = next(n for n in plan.nodes if n.op != "placeholder")
    for buffer in plan.buffers:  # moved behind the inputs that the graph had before
        first_operation.prepend(buffer)
    return tuple(plan.buffers.values())


class _Plan:
    """The state of the planning: which node reads which memory last, and the buffers so far.

    owners: for each node, the nodes whose memory its result may share. last: for each node that owns memory, the
    position of the last node that reads this memory. returned: the nodes whose memory the graph returns. buffers: the
    form of each buffer, by its input node. holds: for each buffer, the node whose result it holds at present. within:
    for each node, the buffer in which its result lies.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.nodes: list[Any] = list(graph.nodes)
        self.owners = owners_of(self.nodes)
        self.last = last_uses(self.nodes, self.owners)
        output = self.nodes[-1]
        self.returned = {owner for used in output.all_input_nodes for owner in self.owners[used]}
        self.buffers: dict[fx.Node, Buffer] = {}
        self.holds: dict[fx.Node, fx.Node] = {}
        self.within: dict[fx.Node, fx.Node] = {}

    def destination_of(self, node: fx.Node, position: int) -> fx.Node | None:
        """The input or buffer into which the result of the node at this position is written; None for new memory."""
        if node.target in _ELEMENTWISE and (destination := self._input_to_overwrite(node, position)) is not None:
            (owner,) = self.owners[destination]
            buffer = self.within.get(owner)
            if buffer is not None and node in self.returned:  # what the graph returns never lies in a buffer
                return None
        elif (node.target in _ELEMENTWISE or node.target in _WITH_OUT) and node not in self.returned:
            destination = buffer = self._buffer(node, position)
        else:
            return None
        if buffer is not None:
            self.within[node], self.holds[buffer] = buffer, node
        return destination

    def _buffer(self, node: fx.Node, position: int) -> fx.Node | None:
        """A buffer for the result of a node: a free one of the same form, or a new one; None if it is not worth one."""
        form = _buffer_form(node)
        if form is None:
            return None
        for buffer, other_form in self.buffers.items():
            if other_form == form and self.last.get(self.holds[buffer], -1) < position:
                return buffer
        with self.graph.inserting_before(self.nodes[0]):
            buffer = self.graph.placeholder(f"buffer_{len(self.buffers)}")
        self.buffers[buffer] = form
        return buffer

    def _input_to_overwrite(self, node: fx.Node, position: int) -> fx.Node | None:
        """An input of the same form as the result whose memory no other input shares and no later node reads."""
        for used in node.all_input_nodes:
            owners = self.owners[used]
            others = [other for other in node.all_input_nodes if other is not used]
            if len(owners) > 1 or any(owners & self.owners[other] for other in others):
                continue
            (owner,) = owners
            if owner.op == "call_function" and self.last[owner] == position and _alike(used, node):
                return used
        return None


def last_uses(nodes: list[fx.Node], owners: dict[fx.Node, set[fx.Node]]) -> dict[fx.Node, int]:
    """For each node that owns memory, the position of the last node that reads it."""
    return {owner: i for i, node in enumerate(nodes) for used in node.all_input_nodes for owner in owners[used]}


def owners_of(nodes: list[fx.Node]) -> dict[fx.Node, set[fx.Node]]:
    """For every node, the nodes whose memory its result may share: itself, or those of which it may be a view."""
    owners: dict[fx.Node, set[fx.Node]] = {}
    for node in nodes:
        shared = {owner for used in node.all_input_nodes for owner in owners[used]}
        owners[node] = shared if _may_be_view(node) and shared else {node}
    return owners


def _may_be_view(node: fx.Node) -> bool:
    """True if the result may share memory with an input."""
    if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
        # By its schema; the result of reshape, too, may be a view.
        return any(r.alias_info is not None for r in node.target._schema.returns)
    return node.op == "call_function"  # any other function may return one of its inputs


def _alike(one: fx.Node, other: fx.Node) -> bool:
    """True if two results have the same shape, strides, dtype and device, without gaps in memory."""
    a, b = tensor_of(one), tensor_of(other)
    if a is None or b is None or not _dense(b):
        return False
    return (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)


def _dense(tensor: Tensor) -> bool:
    """True if the elements of a tensor fill a piece of memory without gaps or repetitions."""
    expected = 1
    for stride, size in sorted((st, n) for n, st in zip(tensor.shape, tensor.stride(), strict=True) if n > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def _buffer_form(node: fx.Node) -> Buffer | None:
    """The form of a buffer for the result of a node; None on a GPU and for a small result, which get no buffer."""
    tensor = tensor_of(node)
    if tensor is None or tensor.device.type != "cpu" or tensor.numel() < _MIN_BUFFER_NUMEL or not _dense(tensor):
        return None
    return Buffer(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)


def peak_bytes(graph: fx.Graph) -> tuple[int, int]:
    """The peak of the bytes of all tensors that are alive at the same time, and the bytes of the largest tensor.

    Inputs do not count towards the peak, and reuse of memory is not taken into account.
    """
    nodes = list(graph.nodes)
    owners = owners_of(nodes)
    last = last_uses(nodes, owners)
    position = {node: i for i, node in enumerate(nodes)}
    created = {n: _bytes(n) for n in nodes if n.op == "call_function" and owners[n] == {n}}
    freed = [0] * (len(nodes) + 1)
    for node, size in created.items():
        freed[last.get(node, position[node]) + 1] += size
    alive = peak = 0
    for i, node in enumerate(nodes):
        alive += created.get(node, 0) - freed[i]
        peak = max(peak, alive)
    return peak, max((_bytes(n) for n in nodes), default=0)


def _bytes(node: fx.Node) -> int:
    """The bytes of a node's result, which is one tensor or several."""
    value = node.meta.get("val")
    tensors = value if isinstance(value, (tuple, list)) else (value,)
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
