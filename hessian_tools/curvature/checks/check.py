"""Is this operator the Hessian it claims to be? Checks a user can run on any network, each answered in a sentence.

Why: through training-mode ``F.batch_norm`` two of the usual orders of differentiation are silently wrong in torch
2.13, ``jvp(jacrev(loss))`` by 2 % and ``grad(jvp(loss))`` by 25 %, and float32 or a network that changes state
spoil products as quietly.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from math import isfinite, nan
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hessian_tools.curvature.checks.differences import difference_quotients, differentiable
from hessian_tools.curvature.objective.objective import Objective
from hessian_tools.curvature.operators.loss_operator import LossOperator
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.curvature.operators.terms import leaves, magnitude, rebuilt, terms
from hessian_tools.loss import HiddenStateError, Loss, cast_like, make_loss, random_states, same_tensors
from hessian_tools.rng import stream
from hessian_tools.torch_fixes.precision import full_precision
from hessian_tools.validation import check_whole

# Differences due to rounding alone stay below this many eps, in units of |Hv|.
ROUNDING = 1e4
# The quotients to both sides must agree to this share of |Hv| to say anything.
SMOOTH = 1e-3
# Differences are wrong by no more than twice the disagreement of both sides, or by this share.
DIFFERENCES = 1e-5
NO_LOSS = "not judged: no loss is known of this operator"


@dataclass(frozen=True)
class Finding:
    """One check: passed, or None where it could not be judged; the worst value, what is allowed, and a sentence."""

    name: str
    passed: bool | None
    value: float
    allowed: float
    sentence: str


@dataclass(frozen=True)
class Check:
    """What :func:`check_operator` found; ``str(check)`` is a sentence each."""

    state: Finding
    symmetry: Finding
    linearity: Finding
    precision: Finding
    differences: Finding
    batching: Finding

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All of them, in order."""
        return tuple(getattr(self, field.name) for field in fields(self))

    @property
    def ok(self) -> bool:
        """No check failed; see each finding's ``passed`` for what could not be judged."""
        return all(finding.passed is not False for finding in self.findings)

    def __str__(self) -> str:
        marks = {True: "ok", False: "WRONG", None: "open"}
        return "\n".join(f"{marks[f.passed]:5} {f.name}: {f.sentence}" for f in self.findings)


@full_precision
def check_operator(H: Operator, *, num_probes: int = 2, max_points: int = 3, seed: int = 0) -> Check:
    """Six checks of H along random directions, at up to max_points points, each with a sentence.

    state: the loss repeats, and the network moves no buffer and draws no number. symmetry: u'Hv = v'Hu. linearity.
    precision: the products agree with those of the same points in float64. differences: in float64 they agree with
    central differences of the gradient, where quotients to both sides agree (elsewhere, at a kink, it is not
    judged): of the gradient for a Hessian; with the network's Jacobian held fixed for Gauss-Newton. batching: vmap,
    loop and one product at a time agree. Sums, blocks and restrictions of such matrices are judged alike, rounding
    in units of the terms of the sum; of other operators only symmetry and linearity. Points at which the loss is
    not finite fail as state and are left out of the rest. Costs some 30 gradients and 10 products a direction and
    term. Nothing is changed; nothing is raised for what is found.

    >>> from hessian_tools.curvature import hessian
    >>> H = hessian(lambda theta, _: (theta**3).sum(), torch.tensor([1.0, 2.0]), None)
    >>> check_operator(H).ok
    True
    """
    check_whole(num_probes=num_probes, max_points=max_points)
    if num_probes < 1 or max_points < 1:
        raise ValueError(f"num_probes={num_probes}, max_points={max_points}: give 1 or more of each")
    H = _some_points(H, max_points)
    state = _state_of(H)
    if state.passed is False:
        return _unjudged(state, "not judged, as the loss is no function of the parameters")
    finite = _finite(H)
    if not finite.all():
        said = f"the loss is not finite at {int((~finite).sum())} of {len(finite)} points, left out of the rest"
        state = Finding("state", False, nan, 0.0, said)
    if not finite.any():
        return _unjudged(state, "not judged, as the loss is not finite")
    H = H if finite.all() else H.select(finite.nonzero()[:, 0])
    U, V = (_directions(H, num_probes, seed, name) for name in ("u", "v"))
    return Check(state, _symmetry(H, U, V), _linearity(H, U, V), *_of_the_loss(H, V))


def _unjudged(state: Finding, because: str) -> Check:
    names = ("symmetry", "linearity", "precision", "differences", "batching")
    return Check(state, *(_open(name, because) for name in names))


def _some_points(H: Operator, most: int) -> Operator:
    """Some points, whose batches have the sizes of the first point's."""
    if H.num_points is None:
        return H
    alike = set(range(H.num_points))
    for leaf in leaves(H):
        if isinstance(leaf, LossOperator):
            groups = [set(group.positions.tolist()) for group in leaf.objective.groups]
            alike &= next(positions for positions in groups if 0 in positions)
    if len(alike) == H.num_points <= most:
        return H
    some = torch.linspace(0, len(alike) - 1, min(most, len(alike)), device="cpu").round().long()
    return H.select(torch.tensor(sorted(alike), device="cpu")[some])


def _finite(H: Operator) -> Bool[Tensor, " point"]:
    """At which points every loss that H is made of is a number."""
    finite = torch.ones(H.num_points or 1, dtype=torch.bool, device="cpu")
    for objective in (leaf.objective for leaf in leaves(H) if isinstance(leaf, LossOperator)):
        for point, theta in enumerate(objective.thetas):
            with torch.no_grad():
                values = [float(objective.loss(theta, batch)) for batch in objective.batches_at(point)]
            finite[point] &= all(isfinite(value) for value in values)
    return finite


def _directions(H: Operator, count: int, seed: int, name: str) -> Float[Tensor, "param probe"]:
    """Random unit columns."""
    drawn = torch.randn(H.num_params, count, generator=stream(seed, "check", name), dtype=torch.float64, device="cpu")
    return (drawn / drawn.norm(dim=0)).to(H.device, H.dtype)


def _state_of(H: Operator) -> Finding:
    """Of each loss that H is made of, the first that fails."""
    objectives = [leaf.objective for leaf in leaves(H) if isinstance(leaf, LossOperator)]
    found = [_state(objective) for objective in {id(o.loss): o for o in objectives}.values()]
    if not all(isinstance(leaf, LossOperator) for leaf in leaves(H)):
        found.append(_open("state", NO_LOSS))
    return min(found, key=lambda finding: {False: 0, None: 1, True: 2}[finding.passed])


def _state(objective: Objective) -> Finding:
    loss, theta, batch = objective.loss, objective.thetas[0], objective.batches_at(0)[0]
    if isinstance(loss, Loss):
        try:  # with a fresh Loss, for the network may have changed since this one was checked
            make_loss(loss.model, loss.criterion, loss.layout).refuse_hidden_state(theta, batch)
        except HiddenStateError as error:
            return Finding("state", False, nan, 0.0, str(error))
    with torch.no_grad(), torch.random.fork_rng(devices=[theta.device] if theta.is_cuda else []):
        before = random_states(theta.device)
        first, second = (float(loss(theta, batch)) for _ in range(2))
        drew = not same_tensors(before, random_states(theta.device))
    allowed = 64 * torch.finfo(theta.dtype).eps * abs(first)
    change = abs(second - first)
    if drew:
        return Finding("state", False, change, allowed, "the loss draws random numbers; fix them, or call model.eval()")
    if isfinite(first) and not change <= allowed:
        return Finding("state", False, change, allowed, f"the loss moved by {change:.1e} when evaluated again")
    return Finding("state", True, change, allowed, "the loss repeats, and the network changes nothing in passing")


def _symmetry(H: Operator, U: Tensor, V: Tensor) -> Finding:
    scale = (magnitude(H, U) + magnitude(H, V)) / 2
    value = _worst((U * (H @ V)).sum(-2) - (V * (H @ U)).sum(-2), scale)
    return _judged("symmetry", value, _rounding(H), f"u'Hv and v'Hu differ by {{}} of {_size(H)}", "this is no Hessian")


def _linearity(H: Operator, U: Tensor, V: Tensor) -> Finding:
    difference = (H @ (2 * U - 3 * V) - (2 * (H @ U) - 3 * (H @ V))).double().norm(dim=-2)
    value = _worst(difference, 2 * magnitude(H, U) + 3 * magnitude(H, V))
    return _judged(
        "linearity", value, _rounding(H), "H(2u - 3v) and 2Hu - 3Hv differ by {} of them", "this is no matrix"
    )


def _of_the_loss(H: Operator, V: Tensor) -> tuple[Finding, ...]:
    """The checks that evaluate the loss anew: precision, differences, batching."""
    names = ("precision", "differences", "batching")
    if not differentiable(H):
        return tuple(_open(name, NO_LOSS) for name in names)
    double = rebuilt(H, _in_float64)
    try:
        products = double @ V.double()
    except RuntimeError as error:
        because = f"not judged, as the loss fails in float64: {str(error).splitlines()[0][:120]}"
        return tuple(_open(name, because) for name in names)
    V_double = V.double()
    scale = magnitude(double, V_double)
    return (
        _precision(H, V, products, scale),
        _differences(double, V_double, products, scale),
        _batching(double, V_double, products, scale),
    )


def _in_float64(matrix: LossOperator) -> LossOperator:
    objective, prepared = matrix.objective, matrix.prepared
    thetas = objective.thetas.double()
    groups = tuple(replace(group, batches=cast_like(group.batches, thetas)) for group in objective.groups)
    objective = replace(objective, thetas=thetas, groups=groups)
    return replace(matrix, prepared=matrix.engine.prepare(objective, prepared.matrix))


def _precision(H: Operator, V: Tensor, products: Tensor, scale: Tensor) -> Finding:
    if H.dtype == torch.float64:
        return Finding("precision", True, 0.0, 0.0, "the operator is in float64 already")
    value = _worst(((H @ V).double() - products).norm(dim=-2), scale)
    text = f"products in {str(H.dtype).removeprefix('torch.')} differ from float64 by {{}} of {_size(H)}"
    return _judged("precision", value, _rounding(H), text, "measure in float64")


def _differences(H: Operator, V: Tensor, products: Tensor, size: Tensor) -> Finding:
    quotients = difference_quotients(H, V)
    scale = torch.maximum(size, quotients.central.norm(dim=1)).maximum(quotients.smallest_visible)
    scale = torch.where(scale == 0, 1.0, scale)
    error, doubt = (products - quotients.central).norm(dim=1) / scale, quotients.disagreement / scale
    allowed = (2 * doubt).clamp(min=DIFFERENCES)
    judged = (doubt <= SMOOTH) | ~torch.isfinite(error + doubt)
    if not judged.any():
        share = f"quotients of its gradient to both sides differ by {float(doubt.min()):.1e} of {_size(H)}"
        return _open("differences", f"not judged, as the loss is not smooth here: {share}")
    worst = torch.where(judged, (error / allowed).nan_to_num(nan=torch.inf), -1.0).argmax()
    text = f"products differ from central differences of the gradient by {{}} of {_size(H)}"
    blame = "these are not derivatives of this loss's gradient"
    return _judged("differences", float(error.flatten()[worst]), float(allowed.flatten()[worst]), text, blame)


def _batching(H: Operator, V: Tensor, products: Tensor, scale: Tensor) -> Finding:
    """In float64: all at once, one product at a time, by vmap and by a loop."""
    values = []
    changes: tuple[dict[str, Any], ...] = ({"chunk": 1}, {"batching": "loop"}, {"batching": "vmap"})
    for change in changes:
        try:
            other = rebuilt(H, partial(_with_options, change)) @ V
        except RuntimeError as error:
            return _open("batching", f"not judged: {str(error).splitlines()[0][:120]}")
        values.append(_worst((other - products).norm(dim=-2), scale))
    value = max(values, key=lambda v: v if isfinite(v) else float("inf"))
    text = f"vmap, loop and single products differ by {{}} of {_size(H)}"
    return _judged("batching", value, _rounding(H), text, "one of them is wrong; compare with batching='loop'")


def _with_options(change: Mapping[str, Any], matrix: LossOperator) -> LossOperator:
    engine = replace(matrix.engine, route="direct", **change)
    return replace(matrix, prepared=engine.prepare(matrix.objective, matrix.prepared.matrix))


def _size(H: Operator) -> str:
    """In what errors are measured: the terms of a difference may be far larger than it."""
    return "|Hv|" if len(terms(H)) == 1 else "the terms of Hv"


def _rounding(H: Operator) -> float:
    return ROUNDING * torch.finfo(H.dtype).eps


def _worst(difference: Tensor, scale: Tensor) -> float:
    """The largest |difference| in units of scale; 0 of 0 is 0; NaN if any is."""
    share = difference.abs() / torch.where(difference == 0, 1.0, scale)
    return float(share.max())


def _judged(name: str, value: float, allowed: float, text: str, blame: str) -> Finding:
    passed = value <= allowed
    if value != value:
        return Finding(name, False, value, allowed, "products are not finite")
    said = f"{text.format(f'{value:.1e}')} (allowed {allowed:.1e})"
    return Finding(name, passed, value, allowed, said if passed else f"{said}; {blame}")


def _open(name: str, because: str) -> Finding:
    return Finding(name, None, nan, nan, because)
