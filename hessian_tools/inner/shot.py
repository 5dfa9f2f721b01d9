"""SHOT, Suppressing the Hessian along the Optimization Trajectory (Lee, Yoo, Kwak 2023).

This penalty asks that few large inner steps end where many small ones do. Two inner loops start at the same point and
use the same support set. The target takes T steps of size alpha_t, and the reference takes R > T steps of size alpha_r,
with alpha_t T = alpha_r R = tau. To leading order their ends differ by (tau^2 / 2)(1/T - 1/R) H g, where g and H are
the gradient and the Hessian of the support loss. A small distance thus means a small Hessian-gradient product along the
inner loop.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import cos, log, pi, sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.inner.learners import Learner
from hessian_tools.validation import check_choice


def kl(p_logits: Tensor, q_logits: Tensor) -> Float[Tensor, ""]:
    """KL(p || q) of categorical distributions given by logits [example, class]; the mean over examples, in nats.

    >>> float(kl(torch.zeros(1, 2), torch.zeros(1, 2)))
    0.0
    """
    log_p, log_q = torch.log_softmax(p_logits, -1), torch.log_softmax(q_logits, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def jensen_shannon(p_logits: Tensor, q_logits: Tensor) -> Float[Tensor, ""]:
    """The mean of KL(p || m) and KL(q || m) for m = (p + q) / 2, in nats; symmetric and at most log 2 (Lin 1991).

    >>> apart = torch.tensor([[0.0, 200.0]])
    >>> bool(jensen_shannon(apart, -apart).isclose(torch.tensor(2.0).log()))
    True
    """
    log_p, log_q = torch.log_softmax(p_logits, -1), torch.log_softmax(q_logits, -1)
    log_m = torch.logaddexp(log_p, log_q) - log(2)
    terms = log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)
    return terms.sum(-1).mean() / 2


def cross_entropy(p_logits: Tensor, q_logits: Tensor) -> Float[Tensor, ""]:
    """The cross-entropy -sum p log q, which is KL(p || q) plus the entropy of p.

    Where p is detached, its gradient is that of KL(p || q).

    >>> bool(cross_entropy(torch.zeros(1, 2), torch.zeros(1, 2)).isclose(torch.tensor(2.0).log()))
    True
    """
    return -(torch.softmax(p_logits, -1) * torch.log_softmax(q_logits, -1)).sum(-1).mean()


def squared_error(a: Tensor, b: Tensor) -> Float[Tensor, ""]:
    """The mean squared difference of outputs, for regression."""
    return ((a - b) ** 2).mean()


def root_mean_square(a: Float[Tensor, " param"], b: Float[Tensor, " param"], *, moved: int) -> Float[Tensor, ""]:
    """|a - b| divided by the square root of the number of entries that the inner loop moves.

    >>> float(root_mean_square(torch.zeros(4), torch.ones(4), moved=4))
    1.0
    """
    return torch.linalg.vector_norm(a - b) / sqrt(moved)


# Distances between outputs on the query inputs, called as (reference, target). The authors' code uses the first one,
# and their paper states the second.
DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl_reference_target": kl,
    "kl_target_reference": lambda reference, target: kl(target, reference),
    "js": jensen_shannon,
    "cross_entropy": cross_entropy,
    "squared_error": squared_error,
}
L2 = "l2_parameters"  # the distance between the end points themselves, which needs no pass over the query set
# The distances that take outputs as logits, which regression does not have.
PROBABILITY_DISTANCES = ("kl_reference_target", "kl_target_reference", "js", "cross_entropy")
# A map of the reference's outputs, which are compared with the target's after it. Pre-training by SHOT alone has such a
# map, a small network; all other training has none.
Projector = Callable[[Tensor], Tensor]
SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class Shot:
    """The SHOT penalty: weight x D(reference, target), which is added to the query loss.

    weight: the factor of the distance D; a negative weight (anti-SHOT) rewards a large distance.
    target_steps: T, the number of steps of the target; None takes the learner's own K steps.
    reference_steps: R, the number of steps of the reference; None takes the learner's own K steps, which costs nothing
        more, because training takes these steps anyway.
    distance: D compares output distributions ("kl_reference_target", "kl_target_reference", "js", "cross_entropy"),
        outputs ("squared_error"), or parameters ("l2_parameters").
    detach_reference: True sends the gradient through the target alone, as in the authors' code; False through both.
    schedule: how the weight changes over the meta-iterations: it is "constant", or it rises from 0 to ``weight`` within
        ``schedule_steps`` ("linear"), or it falls from ``weight`` to 0 within ``schedule_steps`` ("cosine").
    schedule_steps: the number of meta-iterations within which the weight changes; None for "constant".
    """

    weight: float = 0.1
    target_steps: int | None = 1
    reference_steps: int | None = None
    distance: str = "kl_reference_target"
    detach_reference: bool = True
    schedule: str = "constant"
    schedule_steps: int | None = None

    def __post_init__(self) -> None:
        check_choice("distance", self.distance, (*DISTANCES, L2))
        check_choice("schedule", self.schedule, SCHEDULES)
        if (self.schedule == "constant") != (self.schedule_steps is None):
            raise ValueError(
                f"schedule_steps={self.schedule_steps} with schedule={self.schedule!r}: 'linear' and 'cosine' need"
                " a number of meta-iterations; 'constant' takes None"
            )
        if self.reference_steps is not None and self.reference_steps <= (self.target_steps or 0):
            raise ValueError(
                f"reference_steps={self.reference_steps} must exceed target_steps={self.target_steps}:"
                " the reference takes more, smaller steps"
            )

    def counts(self, learner_steps: int) -> tuple[int, int]:
        """(T, R) for a learner of K steps; raises ValueError where R would not exceed T."""
        target, reference = self.target_steps or learner_steps, self.reference_steps or learner_steps
        if reference <= target:
            raise ValueError(
                f"a learner of {learner_steps} inner steps cannot be the reference of a target of"
                f" {target}; set reference_steps above {target} or lower target_steps"
            )
        return target, reference

    def weight_at(self, meta_step: int) -> float:
        """The weight of the penalty after ``meta_step`` outer steps.

        >>> Shot(0.2, schedule="linear", schedule_steps=10).weight_at(5)
        0.1
        """
        if self.schedule_steps is None:
            return self.weight
        fraction = min(1.0, meta_step / self.schedule_steps)
        return self.weight * (fraction if self.schedule == "linear" else (1 + cos(pi * fraction)) / 2)

    def at(self, meta_step: int) -> "Shot":
        """The penalty as it is after ``meta_step`` outer steps, with a constant weight."""
        return replace(self, weight=self.weight_at(meta_step), schedule="constant", schedule_steps=None)


def identity_projector(outputs: Tensor) -> Tensor:
    """The projector that changes nothing."""
    return outputs


def reference_distance(
    shot: Shot,
    result_after: Callable[[int], Tensor],
    *,
    steps: int,
    moved: int,
    project: Projector = identity_projector,
) -> Float[Tensor, ""]:
    """The distance D(reference, target) for a learner of ``steps`` steps.

    result_after: a function of the number of steps that returns what is compared: the outputs after that many steps or,
        for the distance in parameters, the end point.
    moved: the number of entries that the inner loop moves.
    project: the map of the reference before it is compared, see ``Projector``.
    """
    target_steps, reference_steps = shot.counts(steps)
    if shot.detach_reference:
        # Detaching the result alone would let its inner loop build a graph that is never used. The loop has its own
        # gradients in spite of no_grad, because torch.func computes them.
        with torch.no_grad():
            reference = result_after(reference_steps).detach()
    else:
        reference = result_after(reference_steps)
    reference, target = project(reference), result_after(target_steps)
    if shot.distance == L2:
        return root_mean_square(reference, target, moved=moved)
    return DISTANCES[shot.distance](reference, target)


def longer_reference(
    learner: Learner, weight: float, *, factor: int = 2, distance: str = "kl_reference_target"
) -> Shot:
    """A penalty whose target is the learner's own loop, and whose reference takes ``factor`` times as many steps.

    The authors' code calls this penalty MORE. For learners of one inner step (ANIL, BOIL) it is the SHOT of the paper,
    where its weight is 1e-6. No gradient goes through the reference.
    """
    return Shot(weight, target_steps=None, reference_steps=factor * learner.steps, distance=distance)
