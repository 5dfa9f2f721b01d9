"""What the head of a network is given: the features."""

import torch
from torch import Tensor, nn

from hessian_tools.loss import Loss


def features(loss: Loss, theta: Tensor, x: Tensor) -> Tensor:
    """The input of the head [example, feature] at ``theta``; differentiable.

    The head is the module that ``layout.under("head")`` means. Costs one forward pass; ValueError
    where the head is not called exactly once, with one tensor of one row per example.
    """
    head = head_module(loss)
    seen: list[tuple[Tensor, ...]] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    try:
        loss.outputs(theta, x)
    finally:
        handle.remove()
    if len(seen) != 1 or len(seen[0]) != 1 or not isinstance(seen[0][0], Tensor):
        raise ValueError(
            f"the head ({type(head).__name__}) is called {len(seen)} times; it must be called once, with x"
        )
    return seen[0][0].flatten(1)


def head_module(loss: Loss) -> nn.Module:
    """The head of the network; ValueError where the network is nothing but its head."""
    name = loss.layout.under("head")[0].rpartition(".")[0] if loss.layout.head is None else loss.layout.head
    if not name:
        raise ValueError(f"{type(loss.model).__name__} has no module for a head; name the last layer 'head'")
    return loss.model.get_submodule(name)


def with_linear_head(inputs: Tensor, weights: Tensor) -> Tensor:
    """Outputs [example, class] of a linear head whose matrix [class, feature] and bias [class] are one vector."""
    classes = len(weights) // (inputs.shape[1] + 1)
    matrix, bias = weights.split([classes * inputs.shape[1], classes])
    return torch.addmm(bias, inputs, matrix.view(classes, -1).T)
