"""A curvature matrix in the metric of an adaptive optimiser: P^-1/2 H P^-1/2 with the optimiser's diagonal P.

An optimiser that steps by P^-1 times the gradient is gradient descent in the coordinates P^1/2 theta, in which the
Hessian is this matrix. Its largest eigenvalue is the sharpness by which the edge of stability of adaptive methods is
read (Cohen et al. 2022).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

from hessian_tools.curvature.operators.composite import Scaled
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.layout import unwrapped


def preconditioned(
    H: Operator, preconditioner: Optimizer | Float[Tensor, " param"], model: torch.nn.Module | None = None
) -> Scaled:
    """The operator P^-1/2 H P^-1/2, where P is the diagonal by which an optimiser divides its steps.

    preconditioner: an optimiser that has taken a step, or the diagonal of P itself, [param], all above 0. P is
        sqrt(v / (1 - beta2^t)) + eps for Adam, AdamW and NAdam (with the largest v for amsgrad), sqrt(v) + eps for
        RMSprop and Adagrad, and 1 for SGD. v is the optimiser's average of squared gradients, for Adagrad their sum.
    model: the module whose parameters the optimiser holds; None takes that of the loss of H.

    Adam with learning rate eta and beta1 is stable on a quadratic while the largest eigenvalue of this operator is
    below (2 + 2 beta1) / ((1 - beta1) eta), which is 38 / eta for beta1 = 0.9 (Cohen et al. 2022). RMSprop and Adagrad
    without momentum are stable while it is below 2 / eta. The factor 1 - beta1^t of Adam's first steps is no part of P.
    Raises ValueError for another optimiser, one without a state, and a diagonal that does not fit.

    >>> from hessian_tools.curvature import hessian
    >>> H = hessian(lambda theta, a: (a * theta**2).sum() / 2, torch.ones(2), torch.tensor([8.0, 3.0]))
    >>> preconditioned(H, torch.tensor([4.0, 1.0])).to_dense()
    tensor([[2., 0.],
            [0., 3.]])
    """
    given = preconditioner
    diagonal = _diagonal(H, given, model) if isinstance(given, Optimizer) else given
    if diagonal.shape != (H.num_params,) or not bool((diagonal > 0).all()):
        raise ValueError(
            f"the preconditioner has shape {tuple(diagonal.shape)} and its least entry is {float(diagonal.min()):.3g}; "
            f"give {H.num_params} numbers above 0"
        )
    return H.scaled(diagonal.to(H.device, torch.float64).rsqrt().to(H.dtype))


def _diagonal(H: Operator, optimiser: Optimizer, model: torch.nn.Module | None) -> Tensor:
    """The diagonal of P for the rows of H, from the state of the optimiser."""
    if H.layout is None:
        raise ValueError("the rows of this operator have no names; give the diagonal of P as a vector")
    if model is None:  # the model of the loss of H, if H is the matrix of a loss and the loss that of a network
        model = getattr(getattr(getattr(H, "objective", None), "loss", None), "model", None)
    if model is None:
        raise ValueError("this operator has no model; give model=, whose parameters the optimiser holds")
    named = dict(unwrapped(model).named_parameters())
    groups = {id(p): group for group in optimiser.param_groups for p in group["params"]}
    pieces = []
    for name in H.layout.names:
        parameter = named.get(name)
        if parameter is None or id(parameter) not in groups:
            raise ValueError(
                f"the optimiser does not hold the parameter {name!r} of the model; give the model it trains"
            )
        state = optimiser.state.get(parameter, {})
        if not state and not isinstance(optimiser, SGD):
            raise ValueError(f"the optimiser has no state for {name!r}; take a step first")
        pieces.append(_denominator(optimiser, groups[id(parameter)], state, parameter).flatten())
    return torch.cat(pieces)


def _denominator(optimiser: Optimizer, group: dict[str, Any], state: dict[str, Any], parameter: Tensor) -> Tensor:
    """The diagonal of P for one parameter, in the parameter's shape and in float64."""
    if isinstance(optimiser, SGD):
        return torch.ones_like(parameter, dtype=torch.float64)
    if isinstance(optimiser, Adam | AdamW | NAdam):
        v = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
        return (v.double() / (1 - group["betas"][1] ** float(state["step"]))).sqrt() + group["eps"]
    if isinstance(optimiser, RMSprop):
        v = state["square_avg"].double()
        v = v - state["grad_avg"].double() ** 2 if group["centered"] else v
        return v.sqrt() + group["eps"]
    if isinstance(optimiser, Adagrad):
        return state["sum"].double().sqrt() + group["eps"]
    raise ValueError(
        f"the preconditioner of {type(optimiser).__name__} is not known; give its diagonal P as a vector [param]"
    )
