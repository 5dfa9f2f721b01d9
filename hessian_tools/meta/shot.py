"""SHOT: few large inner steps should end where many small ones do (Lee, Yoo, Kwak 2023).

Target and reference start at the same point, use the same support set and run for the same time,
alpha_t T = alpha_r R. To leading order they differ by (tau^2 / 2)(1/T - 1/R) H g, so a small
distance means a small Hessian-gradient product along the inner loop.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def kl(p_logits: Tensor, q_logits: Tensor) -> Float[Tensor, ""]:
    """KL(p || q) between categorical distributions given by logits [example, class], mean over examples, in nats.

    >>> float(kl(torch.zeros(1, 2), torch.zeros(1, 2)))
    0.0
    """
    log_p, log_q = torch.log_softmax(p_logits, -1), torch.log_softmax(q_logits, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def squared_error(a: Tensor, b: Tensor) -> Float[Tensor, ""]:
    """Mean squared difference of outputs, for regression."""
    return ((a - b) ** 2).mean()


# Each takes (reference outputs, target outputs). The authors' code uses the first; their text has the second.
DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl_reference_target": kl,
    "kl_target_reference": lambda reference, target: kl(target, reference),
    "squared_error": squared_error,
}


@dataclass(frozen=True)
class Shot:
    """The SHOT penalty added to the query loss.

    target_steps: T. reference_steps: R; None takes the learner's own K steps, which cost nothing more.
    detach_reference: gradient through the target alone, as in the authors' code.
    """

    weight: float = 0.1
    target_steps: int = 1
    reference_steps: int | None = None
    distance: str = "kl_reference_target"
    detach_reference: bool = True

    def __post_init__(self) -> None:
        if self.distance not in DISTANCES:
            raise ValueError(f"distance={self.distance!r} is not one of {', '.join(DISTANCES)}")
        if self.target_steps < 1:
            raise ValueError(f"target_steps={self.target_steps} must be at least 1")
        if self.reference_steps is not None and self.reference_steps <= self.target_steps:
            raise ValueError(
                f"reference_steps={self.reference_steps} must exceed target_steps={self.target_steps}:"
                " the reference takes more, smaller steps"
            )

    def reference_count(self, learner_steps: int) -> int:
        """R for a learner of K steps; refuses one whose own loop is no longer than the target."""
        count = self.reference_steps or learner_steps
        if count <= self.target_steps:
            raise ValueError(
                f"a learner of {learner_steps} inner steps cannot be the reference of a target of"
                f" {self.target_steps}; set reference_steps above {self.target_steps} or lower target_steps"
            )
        return count
