"""A look at the loss of a sharded model before its first product: is it a function of the parameters alone?

For the loss of one process, :mod:`hessian_tools.first_look` does the same. A sharded model is differentiated at the
parameters that it holds, so that modules which are run again in a backward pass use the right ones. These faults
remain, and none of them raises an error by itself: a forward pass draws random numbers or changes buffers; the model
uses parameters that it held before it was sharded; a hand-written derivative is wrong; the processes hold different
buffers.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hessian_tools.distributed.gradient import ShardedGradient
from hessian_tools.distributed.products import ShardedProducts, call, criterion_value
from hessian_tools.distributed.sharding import Regathering, was_replaced
from hessian_tools.first_look import agree
from hessian_tools.hand_written import (
    direction_of,
    graph_nodes,
    hand_written,
    which_is_wrong,
    wrong_words,
)
from hessian_tools.hidden_state import SCALED, SPARSE, HiddenStateError
from hessian_tools.loss import Criterion
from hessian_tools.outputs import tensors_of
from hessian_tools.random_states import drawn_between, global_states, restored_random_states
from hessian_tools.rng import stream
from hessian_tools.torch_fixes.function_modes import TwiceDifferentiable
from hessian_tools.torch_fixes.precision import full_precision
from hessian_tools.watches import ForwardWatch


@full_precision  # float32 products are computed in float32 and not in TF32
def look_at_shards(model: nn.Module, criterion: Criterion, x: Any, y: Any, device: torch.device) -> tuple[Any, str]:
    """The outputs on the data of this process, and the name of a hand-written derivative ("" if there is none).

    Raises HiddenStateError for a loss that is no function of the parameters alone, and ValueError for an embedding
    whose gradients are sparse or scaled by frequency. These errors are raised only after both passes, because all
    processes have to take part in the gathering of parameters.
    """
    buffers = [b.detach().clone() for b in model.buffers()]
    with restored_random_states(device):
        before = global_states(device)
        # Both passes record a graph, because a pass without one may take other operations, as attention does.
        with torch.enable_grad(), TwiceDifferentiable(), Regathering():
            # The argument of the watch says which parameters must not be used: none here, because a sharded model is
            # rightly differentiated at the parameters that it holds.
            with ForwardWatch(lambda _: False) as watch:
                outputs = call(model, x)
                drew_in_model = drawn_between(before, global_states(device))
                value = criterion_value(criterion, outputs, y)
            drew = drawn_between(before, global_states(device))
            again = call(model, x)
            value_again = criterion_value(criterion, again, y)
    if drew_in_model == "surely":
        raise HiddenStateError("the model draws random numbers in its forward pass; call model.eval()")
    if drew == "surely":
        raise HiddenStateError(
            "the criterion draws random numbers, so the loss is no function of the parameters; draw them once, and put "
            "them into the batch"
        )
    if any(not torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True)):
        raise HiddenStateError("the model changes its buffers in its forward pass; call model.eval()")
    pairs = [*zip(tensors_of(outputs), tensors_of(again), strict=True), (value, value_again)]
    # ``agree`` means equal to the bit on a CPU, and up to rounding on a GPU. Results that are not finite are not
    # compared, because NaN does not equal itself.
    if any(bool(a.isfinite().all()) and not agree(a.detach(), b.detach()) for a, b in pairs):
        raise HiddenStateError(
            "the model or the criterion gives another result the second time, so the loss is no function of the "
            "parameters; call model.eval(), or make both functions of their inputs alone"
        )
    if watch.sparse or watch.scaled:
        raise ValueError(SPARSE if watch.sparse else SCALED)
    leaves = [node.variable for node in graph_nodes(value) if hasattr(node, "variable")]
    if stale := [leaf for leaf in leaves if was_replaced(leaf)]:
        raise HiddenStateError(
            f"the loss uses a parameter of shape {list(stale[0].shape)} that the model held before shard(model), so a "
            "part of its derivative would be missing; let the forward pass read self's parameters when it is called"
        )
    return outputs, hand_written(value)


@full_precision
def refuse_wrong_derivative(H: ShardedProducts, name: str) -> None:
    """Raises HiddenStateError if the hand-written derivatives differ from finite differences of the loss.

    H: makes the products. name: the name of the Function with the hand-written derivatives, for the message. The
    parameters are moved to measure differences of values and of gradients, and are then restored to the bit.
    """
    parts = [p.to_local().detach() for p in H.parameters]  # these tensors share the memory of the parameters
    theta = torch.cat([part.flatten() for part in parts])

    def put(at: Tensor) -> None:  # sets the parameters to the values in ``at``
        with torch.no_grad():
            for part, piece in zip(parts, at.split([part.numel() for part in parts]), strict=True):
                part.copy_(piece.view(part.shape))

    def inner(a: Tensor, b: Tensor) -> Tensor:  # the inner product of two whole vectors, from their parts
        return H.shards.inner(torch.dot(a, b))

    def flat(gradient: ShardedGradient) -> Tensor:
        """This process's part of the gradient, without its graph."""
        pieces: list[Any] = list(gradient.gradients)
        return torch.cat([g.detach().to_local().flatten() for g in pieces])

    def whole_value() -> Tensor:
        """The loss of the data of all processes."""
        with torch.no_grad():
            return H.ranks.sum(H.value().clone())

    def value_and_slope(at: Tensor) -> tuple[Tensor, Tensor]:
        put(at)
        return whole_value(), flat(H.gradient())

    value, gradient = whole_value(), H.gradient()
    slope = flat(gradient)
    draw = partial(torch.rand, generator=stream(0, "hand written"), dtype=torch.float64, device="cpu")
    random = H.shards.own_numbers(draw, torch.float64).to(slope)
    direction = direction_of(slope, random, inner)
    try:
        wrong = which_is_wrong(
            value_and_slope,
            theta,
            direction,
            value,
            slope,
            gradient.product(direction),
            inner=inner,
            num_params=H.shards.total,
        )
    finally:
        put(theta)
    if wrong:
        raise HiddenStateError(wrong_words(name, wrong))
