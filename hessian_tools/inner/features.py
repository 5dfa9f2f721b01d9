"""The features of a network, which are the inputs of its head."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hessian_tools.loss import Loss


def features(loss: Loss, theta: Tensor, x: Tensor) -> Tensor:
    """The inputs of the head [example, feature] for inputs ``x`` of the network at ``theta``; differentiable.

    The head is the module that ``layout.under("head")`` stands for. The cost is one forward pass. Raises ValueError
    unless this pass calls the head exactly once, with one tensor that has a row for each example.
    """
    head = head_module(loss)
    calls: list[tuple[Tensor, ...]] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: calls.append(inputs))
    try:
        loss.outputs(theta, x)
    finally:
        handle.remove()
    if len(calls) != 1 or len(calls[0]) != 1 or not isinstance(calls[0][0], Tensor):
        raise ValueError(
            f"the head ({type(head).__name__}) is called {len(calls)} times in a forward pass; it must be called once,"
            " with one tensor"
        )
    return calls[0][0].flatten(1)


def head_module(loss: Loss) -> nn.Module:
    """The module that is the head of the network; raises ValueError where the network is nothing but its head."""
    # Without a given name, the head is the module of the first parameter under "head", such as that of "head.weight".
    name = loss.layout.under("head")[0].rpartition(".")[0] if loss.layout.head is None else loss.layout.head
    if not name:
        raise ValueError(f"{type(loss.model).__name__} has no module for a head; name the last layer 'head'")
    return loss.model.get_submodule(name)


def nearest_class_mean(
    inputs: Float[Tensor, "support feature"], labels: Int[Tensor, " support"], queries: Float[Tensor, "query feature"]
) -> Int[Tensor, " query"]:
    """The label of the class whose mean of ``inputs`` is nearest to each query: a prototype classifier (Snell 2017).

    >>> inputs, labels = torch.tensor([[0.0], [2.0], [9.0]]), torch.tensor([0, 0, 1])  # the means are 1 and 9
    >>> nearest_class_mean(inputs, labels, torch.tensor([[4.0], [6.0]]))
    tensor([0, 1])
    """
    classes, members = labels.unique(return_inverse=True)
    one_hot = torch.nn.functional.one_hot(members, len(classes)).to(inputs.dtype)
    means = (one_hot.T @ inputs) / one_hot.sum(0)[:, None]
    return classes[torch.cdist(queries, means).argmin(-1)]


def with_linear_head(inputs: Tensor, weights: Tensor) -> Tensor:
    """The outputs [example, class] of a linear head.

    weights: its matrix [class, feature], then its bias [class], as one vector.
    """
    classes = len(weights) // (inputs.shape[1] + 1)
    matrix, bias = weights.split([classes * inputs.shape[1], classes])
    return torch.addmm(bias, inputs, matrix.view(classes, -1).T)
