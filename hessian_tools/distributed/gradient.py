"""The gradient of a sharded model with its graph, which is differentiated once for each product with the Hessian.

Each process holds a shard of each parameter, as a ``DTensor``. A *whole* parameter is the ordinary tensor that a
process gathers from the shards of all processes where the model uses the parameter; see ``distributed.sharding``.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.distributed.tensor import DTensor

from hessian_tools.curvature.engines.double_backward import refuse_broken_graph
from hessian_tools.curvature.engines.torch_errors import explained
from hessian_tools.distributed.sharding import CHANGED, Regathering
from hessian_tools.torch_fixes.function_modes import TwiceDifferentiable

# torch's names, without the number at the end, for the nodes of a graph that stand for views, such as the transpose of
# a weight in ``F.linear``.
VIEWS = {f"{view}Backward" for view in ("T", "Transpose", "Permute", "View", "UnsafeView", "ReshapeAlias", "Alias")}

PIECE = 2**20  # how many numbers of a tensor ``_sums_of_bits`` adds at once


class ShardedGradient:
    """The gradient with respect to parameters in shards; its derivative along a vector is a product with the Hessian.

    The forward pass and the backward pass both use each whole parameter. Autograd adds up their two contributions to
    the derivative before the sum goes back into the shards, and would therefore hold a whole contribution for every
    parameter at the same time. Here, hooks divide each contribution into the shards as soon as it is known, so that a
    process holds one of them at a time.

    parameters: DTensors. value: computes the loss of this process.
    """

    def __init__(self, parameters: tuple[Any, ...], value: Callable[[], Tensor]) -> None:
        # TwiceDifferentiable replaces the operations that torch cannot differentiate twice.
        with torch.enable_grad(), TwiceDifferentiable(), Regathering() as regathering:
            loss = value()
            self.gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        self.refusal: RuntimeError | None = None
        try:
            refuse_broken_graph(loss, *(g for g in self.gradients if g is not None))
        except RuntimeError as error:
            self.refusal = error  # raised by the method ``refuse_broken_graph``, so that the processes can share it
        self.rows = _Rows(parameters)
        self.bit_sums = _sums_of_bits(parameters)
        roots = [g.grad_fn for g in self.gradients if g is not None and g.requires_grad]
        self.inputs = _inputs_with_hooks(roots, regathering.nodes, self.rows) if roots else []

    def refuse_broken_graph(self) -> None:
        """Raises NoOtherWay, a RuntimeError, for a loss without a second derivative.

        The processes have to share this error, because an operation may be in the loss of one process only.
        """
        if self.refusal is not None:
            raise explained(self.refusal) from self.refusal

    def refuse_other_parameters(self) -> None:
        """Raises ValueError where the parameters of this process have changed since the gradient was computed.

        A graph gathers parameters again, and would mix old numbers and new ones. torch's count of changes
        (``Tensor._version``) does not show every change: optimisers with ``foreach=True`` and changes of ``.data``
        leave it as it was.
        """
        if _sums_of_bits(self.rows.parameters) != self.bit_sums:
            raise ValueError(CHANGED)

    def product(self, v: Float[Tensor, " shard"]) -> Float[Tensor, " shard"]:
        """This process's entries of the product, from its entries of the vector."""
        out = torch.zeros_like(v)
        self.rows.start(out)
        parts = [_like(piece, p) for piece, p in zip(self.rows.divided(v), self.rows.parameters, strict=True)]
        # A gradient without a graph is constant, so that its derivative is zero.
        chosen = [(g, part) for g, part in zip(self.gradients, parts, strict=True) if g.requires_grad]
        if self.inputs:
            gradients, directions = zip(*chosen, strict=True)
            derivatives = torch.autograd.grad(gradients, self.inputs, directions, retain_graph=True, allow_unused=True)
            for each, derivative in zip(self.inputs, derivatives, strict=True):
                # An input that is an edge of the graph stands for a whole parameter, whose derivative a hook has added.
                if derivative is not None and isinstance(each, DTensor):
                    self.rows.add(each, derivative)
        self.rows.stop()
        return out


@dataclass
class _Rows:
    """This process's entries of a product, to which derivatives are added.

    parameters: the DTensors whose shards this process holds. pieces: for each parameter, a view of the entries that
    belong to its shard; empty while no product is computed.
    """

    parameters: tuple[Any, ...]
    pieces: list[Tensor] = field(default_factory=list)

    def start(self, out: Float[Tensor, " shard"]) -> None:
        """From now on derivatives are added to this vector."""
        self.pieces = self.divided(out)

    def stop(self) -> None:
        """Let go of the vector."""
        self.pieces = []

    def divided(self, v: Float[Tensor, " shard"]) -> list[Tensor]:
        """Views of a vector, each with the shape of the shard of a parameter."""
        shards = [p.to_local() for p in self.parameters]
        return [piece.view(s.shape) for piece, s in zip(v.split([s.numel() for s in shards]), shards, strict=True)]

    def add(self, parameter: Any, derivative: Any) -> None:
        """Add a derivative with respect to a parameter, a DTensor."""
        index = next(i for i, p in enumerate(self.parameters) if p is parameter)
        self.pieces[index] += derivative.redistribute(placements=parameter.placements).to_local()


def _sums_of_bits(parameters: tuple[Any, ...]) -> list[int]:
    """For each parameter the sum of its shard's numbers, read as integers; a change of any one bit changes the sum."""
    integers = {4: torch.int32, 8: torch.int64}  # by the bytes of a number
    shards = [p.detach().to_local() for p in parameters]
    bits = [s.contiguous().view(integers[s.element_size()]).flatten() for s in shards]
    # The sum is taken in pieces, because torch first copies 32-bit integers into 64 bits, which takes memory.
    sums = [torch.stack([piece.sum() for piece in b.split(PIECE)]).sum() for b in bits]
    return torch.stack(sums).tolist()


def _like(piece: Tensor, parameter: Any) -> DTensor:
    """The DTensor that is shaped and divided like a parameter, with ``piece`` as this process's shard."""
    return DTensor.from_local(
        piece,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _inputs_with_hooks(roots: Sequence[Any], gathered: dict[Any, Any], rows: _Rows) -> list[Any]:
    """The inputs for ``torch.autograd.grad``; sets a hook at every operation that uses a whole parameter.

    roots: the nodes of the gradient in the graph. gathered: for each node that gathers a parameter, the parameter.
    """
    edges = list(_edges(roots))
    # For each node that returns a whole parameter or a view of one, the parameter. Each pass of the loop finds views of
    # what was found before, until a pass finds nothing new.
    parameter_of = dict(gathered)
    for _ in edges:
        views = {
            node: parameter_of[source]
            for node, _, (source, _) in edges
            if source in parameter_of and node.name().rstrip("0123456789") in VIEWS
        }
        if views.keys() <= parameter_of.keys():
            break
        parameter_of |= views
    uses: dict[Any, GradientEdge] = {}
    for node, position, (source, output) in edges:
        if source in parameter_of and node not in parameter_of:
            edge = uses.setdefault(source, GradientEdge(source, output))
            # The hook must not hold the gradient, because the graph, which holds the hook, would then hold itself.
            node.register_hook(_dividing_hook(position, edge, parameter_of[source], rows))
    # A model may also use a DTensor in its own way, without the gathering of ``sharding``. Autograd then differentiates
    # with respect to the DTensor itself. The path from a gathering node back to its parameter is not such a use.
    inside = {node for start in gathered for node in _chain(start)}
    direct = [source.variable for node, _, (source, _) in edges if hasattr(source, "variable") and node not in inside]
    return [*uses.values(), *(p for p in rows.parameters if any(p is each for each in direct))]


def _dividing_hook(position: int, edge: GradientEdge, parameter: Any, rows: _Rows) -> Callable[..., Any]:
    """A hook on a node, which adds one of the node's derivatives to the rows of a parameter and passes on the others.

    position: the position of this derivative among the derivatives of the node. edge: the edge of the graph along which
    autograd would have passed the derivative on to the parameter.
    """

    def hook(derivatives: tuple[Any, ...], _: Any) -> tuple[Any, ...] | None:
        derivative = derivatives[position]
        if derivative is None or not rows.pieces:  # no derivative, or no product is being computed
            return None
        # This runs the backward pass of the gathering, which divides the derivative into the shards.
        (in_shards,) = torch.autograd.grad([edge], [parameter], [derivative], retain_graph=True)
        rows.add(parameter, in_shards)
        return (*derivatives[:position], None, *derivatives[position + 1 :])

    return hook


def _edges(roots: Iterable[Any]) -> Iterable[tuple[Any, int, tuple[Any, int]]]:
    """The edges of a graph, each from a node to one of its inputs.

    An edge is (node, position of the input, (source, output)), where the input is that output of the node ``source``.
    """
    todo = list(dict.fromkeys(roots))
    seen = set(todo)
    while todo:
        node = todo.pop()
        for position, (source, output) in enumerate(node.next_functions):
            if source is None:  # an input that needs no gradient
                continue
            yield node, position, (source, output)
            if source not in seen:
                seen.add(source)
                todo.append(source)


def _chain(node: Any) -> Iterable[Any]:
    """A node, the node of its first input, the node of the first input of that node, and so on."""
    while node is not None:
        yield node
        node = next((source for source, _ in node.next_functions if source is not None), None)
