"""Six checks of whether an operator is the Hessian that it claims to be, on any network, each answered in a sentence.

The checks are needed because wrong products look like right ones. Through training-mode ``F.batch_norm`` two of the
usual orders of differentiation are silently wrong in torch 2.13, ``jvp(jacrev(loss))`` by 2 % and ``grad(jvp(loss))``
by 25 %. Both float32 and a network that changes state spoil products just as silently.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from html import escape
from math import inf, isfinite, nan
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from hessian_tools.curvature.checks.differences import differentiable
from hessian_tools.curvature.checks.findings import (
    Finding,
    check_differences,
    check_linearity,
    check_symmetry,
    directions,
    in_dtype,
    judged,
    not_judged,
    rounding_of,
    unit_of,
    worst,
)
from hessian_tools.curvature.engines.torch_errors import NoForwardDerivative
from hessian_tools.curvature.objective.objective import Objective
from hessian_tools.curvature.operators.loss_operator import LossOperator
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.curvature.operators.terms import leaves, magnitude, rebuilt
from hessian_tools.failures import first_line
from hessian_tools.first_look import value_of
from hessian_tools.loss import HiddenStateError, Loss
from hessian_tools.progress import Progress, ProgressCounter
from hessian_tools.random_states import drawn_between, global_states, restored_random_states
from hessian_tools.result import Result

# Two evaluations of one loss may differ by REPEATED_LOSS * eps, in units of the loss.
REPEATED_LOSS = 64
NO_LOSS = "not judged, because this operator is not made from a loss"


@dataclass(frozen=True, repr=False)
class Check(Result):
    """The findings of :func:`check_operator`; ``str(check)`` gives one sentence for each check."""

    state: Finding
    symmetry: Finding
    linearity: Finding
    precision: Finding
    differences: Finding
    batching: Finding

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings, in order."""
        return tuple(getattr(self, field.name) for field in fields(self))

    @property
    def ok(self) -> bool:
        """True if no check failed. A check that could not be made (``passed`` is None) does not count as failed."""
        return all(finding.passed is not False for finding in self.findings)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"

    def __str__(self) -> str:
        marks = {True: "ok", False: "WRONG", None: "open"}  # open: the check could not be made
        return "\n".join(f"{marks[f.passed]:5} {f.name}: {f.sentence}" for f in self.findings)


def check_operator(
    H: Operator, *, num_probes: int = 2, max_points: int = 3, seed: int = 0, progress: Progress | None = None
) -> Check:
    """Checks an operator in six ways along random directions, at up to max_points of its points (parameter vectors).

    - state: two evaluations of the loss agree, and the network neither changes a buffer nor draws a random number.
    - symmetry: u'Hv = v'Hu.
    - linearity: H(2u - 3v) = 2Hu - 3Hv.
    - precision: the products agree with those at the same points in float64.
    - differences: in float64 the products agree with central differences of the gradient. For a Gauss-Newton matrix,
      the network's Jacobian in that gradient is held fixed. The check is not judged at a kink, where the forward and
      the backward difference quotient disagree.
    - batching: all products at once, one product at a time, and a loop over points agree.

    Sums, blocks and restrictions of Hessians and Gauss-Newton matrices are judged in the same way. The errors of a sum
    are in units of the size of its terms, which may nearly cancel. For other operators only symmetry and linearity are
    judged. Points at which the loss is not finite fail the check of state and are left out of the others. The checks
    cost some 30 gradients and 10 products for each direction and term. They change nothing, and a failed check
    raises no error.

    num_probes: the number of random directions. progress: called with (done, total) checks.
    Raises ValueError for num_probes or max_points below 1.

    >>> from hessian_tools.curvature import hessian
    >>> H = hessian(lambda theta, _: (theta**3).sum(), torch.tensor([1.0, 2.0]), None)
    >>> check_operator(H).ok
    True
    """
    names = [field.name for field in fields(Check)]
    counter = ProgressCounter(len(names), progress)

    def stop_after_state(state: Finding, reason: str) -> Check:
        counter.add(len(names))
        return Check(state, *(not_judged(name, f"not judged, because {reason}") for name in names[1:]))

    H = _some_points(H, max_points)
    state = _check_state(H)
    if state.passed is False:
        return stop_after_state(state, "the loss is not a function of the parameters alone")
    finite = _finite(H)
    if not finite.all():
        count = f"{int((~finite).sum())} of {len(finite)} points"
        text = f"the loss is not finite at {count}, which are left out of the other checks"
        state = Finding("state", False, nan, 0.0, text)
    if not finite.any():
        return stop_after_state(state, "the loss is not finite")
    counter.add(1)
    H = H if finite.all() else H.select(finite.nonzero()[:, 0])
    U, V = (directions(H, num_probes, seed, name) for name in ("u", "v"))
    findings = [state]
    for finding in (check_symmetry(H, U, V), check_linearity(H, U, V), *_checks_of_the_loss(H, V)):
        findings.append(finding)
        counter.add(1)
    return Check(*findings)


def _some_points(H: Operator, max_points: int) -> Operator:
    """H at no more than max_points of its points, whose batches have the same sizes as those of the first point."""
    if H.num_points is None:
        return H
    same_sizes = set(range(H.num_points))
    for leaf in leaves(H):
        if isinstance(leaf, LossOperator):
            groups = [set(group.positions.tolist()) for group in leaf.objective.groups]
            same_sizes &= next(positions for positions in groups if 0 in positions)
    if len(same_sizes) == H.num_points <= max_points:
        return H
    # The points are evenly spread, because neighbouring points of an inner loop are much alike.
    spread = torch.linspace(0, len(same_sizes) - 1, min(max_points, len(same_sizes)), device="cpu").round().long()
    return H.select(torch.tensor(sorted(same_sizes), device="cpu")[spread])


def _finite(H: Operator) -> Bool[Tensor, " point"]:
    """The points at which every loss that H is made of is finite; the batches of all points must have one shape."""
    finite = torch.ones(H.num_points or 1, dtype=torch.bool, device="cpu")
    for objective in (leaf.objective for leaf in leaves(H) if isinstance(leaf, LossOperator)):
        for point, theta in enumerate(objective.thetas):
            values = [float(value_of(objective.loss, theta, batch)) for batch in objective.batches_at(point)]
            finite[point] &= all(isfinite(value) for value in values)
        if objective.ranks is not None:
            finite = torch.tensor(objective.ranks.gather(finite.tolist()), device="cpu").all(0)
    return finite


def _check_state(H: Operator) -> Finding:
    """The worst finding over the losses that H is made of; failed is worse than not judged."""
    objectives = [leaf.objective for leaf in leaves(H) if isinstance(leaf, LossOperator)]
    objective_of_loss = {id(objective.loss): objective for objective in objectives}  # each loss is checked once
    findings = [_state_of_loss(objective) for objective in objective_of_loss.values()]
    if not all(isinstance(leaf, LossOperator) for leaf in leaves(H)):
        findings.append(not_judged("state", NO_LOSS))
    ranks = next((objective.ranks for objective in objectives if objective.ranks is not None), None)
    if ranks is not None:  # a check that ends early on one process must end on all of them
        findings = [finding for of_process in ranks.gather(findings) for finding in of_process]
    return min(findings, key=lambda finding: {False: 0, None: 1, True: 2}[finding.passed])


def _state_of_loss(objective: Objective) -> Finding:
    """The check of the state for one loss, at its first point and on its first batch there."""
    loss, theta, batch = objective.loss, objective.thetas[0], objective.batches_at(0)[0]
    if isinstance(loss, Loss):
        try:  # on a new Loss, because the network may have changed since the old one was checked
            loss.fresh().refuse_hidden_state(theta, batch)
        except HiddenStateError as error:
            return Finding("state", False, nan, 0.0, str(error))
    with restored_random_states(theta.device):
        before = global_states(theta.device)
        first, second = (float(value_of(loss, theta, batch)) for _ in range(2))
        drew = drawn_between(before, global_states(theta.device)) == "surely"
    allowed = REPEATED_LOSS * torch.finfo(theta.dtype).eps * abs(first)
    change = abs(second - first)
    passed, text = True, "two evaluations of the loss agree, and a forward pass changes nothing in the network"
    if drew:
        passed, text = False, "the loss draws random numbers; fix them, or call model.eval()"
    elif isfinite(first) and not change <= allowed:
        passed, text = False, f"the loss changed by {change:.1e} when it was evaluated again"
    return Finding("state", passed, change, allowed, text)


def _checks_of_the_loss(H: Operator, V: Tensor) -> Iterator[Finding]:
    """The three checks that evaluate the loss anew: precision, differences and batching."""
    reason = NO_LOSS
    if differentiable(H):
        # The same sum, block or restriction, with each of its Hessians and Gauss-Newton matrices in float64.
        double, V_double = rebuilt(H, partial(in_dtype, dtype=torch.float64)), V.double()
        try:
            products = double @ V_double
        except RuntimeError as error:
            reason = f"not judged, because the loss raises an error in float64: {first_line(error)}"
        else:
            scale = magnitude(double, V_double)  # |Hv|, or for a sum the sum of the norms of its terms
            yield _check_precision(H, V, products, scale)
            yield check_differences(double, V_double, products, scale)
            yield _check_batching(double, V_double, products, scale)
            return
    yield from (not_judged(name, reason) for name in ("precision", "differences", "batching"))


def _check_precision(H: Operator, V: Tensor, products: Tensor, scale: Tensor) -> Finding:
    """Compares the products in the dtype of H with ``products``, which are those in float64."""
    if H.dtype == torch.float64:
        return Finding("precision", True, 0.0, 0.0, "the operator is in float64 already")
    value = worst(((H @ V).double() - products).norm(dim=-2), scale)
    text = f"products in {str(H.dtype).removeprefix('torch.')} differ from float64 by {{}} of {unit_of(H)}"
    return judged("precision", value, rounding_of(H), text, "so measure in float64")


def _check_batching(H: Operator, V: Tensor, products: Tensor, scale: Tensor) -> Finding:
    """Compares the products with those computed one at a time, by a loop over points, and by vmap, all in float64."""

    def with_options(matrix: LossOperator, **options: Any) -> LossOperator:
        """The same matrix with products that are computed directly, without a graph that serves several products."""
        engine = replace(matrix.engine, route="direct", compile=False, **options)
        return replace(matrix, prepared=engine.prepare(matrix.objective, matrix.prepared.matrix))

    values = []
    options: dict[str, Any]
    for options in ({"chunk": 1}, {"batching": "loop"}, {"batching": "vmap"}):
        try:
            other = rebuilt(H, partial(with_options, **options)) @ V
        except NoForwardDerivative:
            text = "the loss has no forward derivative, so its products are computed one at a time"
            return Finding("batching", True, 0.0, 0.0, text)
        except RuntimeError as error:
            return not_judged("batching", f"not judged, because a product raises an error: {first_line(error)}")
        values.append(worst((other - products).norm(dim=-2), scale))
    value = max(values, key=lambda v: v if isfinite(v) else inf)  # NaN counts as the largest error
    text = f"products by vmap, by a loop and one at a time differ by {{}} of {unit_of(H)}"
    return judged("batching", value, rounding_of(H), text, "so one of the three is wrong; compare with batching='loop'")
