"""Is somebody else's Hessian-vector product right? It is compared with exact products and with difference quotients.

A wrong product looks like a right one: it is symmetric and linear, and its eigenvalues are plausible. The mistake shows
where the product with a random vector is compared with an exact one. In this file, our products are those of this
library.
"""

import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import fields, replace
from importlib.metadata import PackageNotFoundError, version
from math import nan
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hessian_tools.batches import batches_of, cast_like
from hessian_tools.curvature.checks.agreement import EXACT_EPS, ForeignProduct, Limits, Matvec, exact_products
from hessian_tools.curvature.checks.certificate import Audit
from hessian_tools.curvature.checks.findings import (
    Finding,
    check_differences,
    check_linearity,
    check_symmetry,
    directions,
    in_dtype,
    judged,
    not_judged,
)
from hessian_tools.curvature.objective.objective import Weights
from hessian_tools.curvature.operators.gauss_newton import gauss_newton
from hessian_tools.curvature.operators.hessian import hessian
from hessian_tools.curvature.operators.loss_operator import LossOperator
from hessian_tools.failures import first_line
from hessian_tools.layout import ParamLayout, Where, flatten, unwrapped
from hessian_tools.loss import Batch, Criterion, HiddenStateError, Loss, make_loss
from hessian_tools.outputs import map_tensors, tensors_of
from hessian_tools.rng import stream
from hessian_tools.torch_fixes.precision import full_precision

# The parameters are moved by this share of their norm, to see whether the product depends on them.
MOVE = 0.05


def audit(
    matvec: Matvec,
    model: nn.Module,
    criterion: Criterion | None,
    batch: Batch,
    factory: Callable[[nn.Module, Any], Matvec] | None = None,
    *,
    where: Where = None,
    weights: Weights = "size",
    rtol: float | None = None,
    num_probes: int = 3,
    seed: int = 0,
) -> Audit:
    """Whether a product with the Hessian of a model's loss, made by any other tool, is right.

    matvec: the product, as a function of one vector [param] in the dtype and on the device of the model, that returns
        a tensor or NumPy array [param]. The entries are those of the trained parameters, in the order of
        ``model.parameters()``.
    model, criterion, batch: the loss, as for :func:`hessian_of`; the model is in the mode (train, eval) in which the
        product uses it, and has the parameters at which the product is made.
    factory: makes such a product of a model and a batch. With it the product's dependence on the parameters and on the
        data is tested, on a copy of the model; without it both are listed as not tested.
    where: which parameters the vector holds; see :func:`~hessian_tools.layout.flatten`.
    weights: how several batches are weighted; see :func:`hessian`.
    rtol: the relative error that passes; None takes it from the dtype, see ``EXACT_EPS`` in
        :mod:`hessian_tools.curvature.checks.agreement`: 1.2e-4 in float32, 2.2e-13 in float64.
    num_probes: how many random directions are compared. seed: of these directions.

    A product that raises an error or draws random numbers fails, and so does a loss that is not a function of the
    parameters alone; nothing is raised for them. The audit costs some 40 gradients and products of this library in
    float64 and 15 products of the other tool, and holds the parameters, the batch and the vectors in float64. It
    changes nothing.
    Raises ValueError for a model that is neither float32 nor float64, and where :func:`hessian` does.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> batch = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.zeros(2, 1)
    >>> H = 2 * batch[0].T @ batch[0] / 2  # of the mean squared error
    >>> audit(lambda v: H @ v, model, nn.MSELoss(), batch)
    Audit(passed=True, failed=(), not_tested=('weights', 'data'))
    >>> audit(lambda v: 2 * H @ v, model, nn.MSELoss(), batch).hessian.sentence.split("; ")[-1]
    'they are 2 times ours (a sum over 2 examples, in place of the mean?)'
    """
    theta, layout = flatten(model, where)
    if theta.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the model's parameters are {theta.dtype}; audit it as model.float() or model.double()")
    loss = make_loss(model, criterion, layout)
    setting = _setting(matvec, model, theta, layout, batch, num_probes, seed)
    theirs = ForeignProduct(matvec, theta)
    U, V = (directions(theirs, num_probes, seed, name) for name in ("u", "v"))
    state, ours, found = _state(theirs, loss, theta, batch, weights, V)
    if ours is None or found is None:
        # All checks but the first, which is that of the state.
        names = [field.name for field in fields(Audit) if field.type is Finding][1:]
        reason = "not judged, because the check of the state failed"
        return Audit(setting, state, *(not_judged(name, reason) for name in names))
    exact, rounding = exact_products(ours, V)
    limits = Limits(layout, theta.dtype, rtol)
    hessian_finding = limits.compare("hessian", found, exact, rounding)
    if hessian_finding.passed is False:
        hessian_finding = replace(hessian_finding, sentence=hessian_finding.sentence + _hint(ours, V, found, limits))
    relative = limits.relative(exact, rounding)
    # Full precision is for our own gradients. The other tool's products are not computed here, because they have to run
    # as its user runs them.
    differences = full_precision(check_differences)(
        ours, V.double(), found.double()[None], exact.norm(dim=0)[None], allowed=relative
    )
    return Audit(
        setting,
        state,
        check_symmetry(theirs, U, V, allowed=relative),
        check_linearity(theirs, U, V, allowed=relative),
        hessian_finding,
        differences,
        *_dependence(factory, model, loss, theta, batch, weights, V, limits),
    )


def _state(
    theirs: ForeignProduct, loss: Loss, theta: Tensor, batch: Batch, weights: Weights, V: Tensor
) -> tuple[Finding, LossOperator | None, Tensor | None]:
    """Whether the loss and the product are functions of the parameters alone.

    Returns the finding, our Hessian in float64, and the other tool's products with V. Where the check fails, the
    products are None, and the Hessian may be None as well.
    """
    wrong = Finding("state", False, nan, nan, "")
    try:
        ours = _in_float64(loss, theta, batch, weights)
    except HiddenStateError as error:
        return replace(wrong, sentence=str(error)), None, None
    before = _model_state(loss.model)
    try:
        found, again = theirs @ V, theirs @ V[:, :1]
    except Exception as error:  # whatever somebody else's code may raise
        return replace(wrong, sentence=f"the product fails: {type(error).__name__}: {first_line(error)}"), None, None
    changed = _changed(before, loss.model)
    if changed:
        return replace(wrong, sentence=f"the product changes the model: {changed}"), None, None
    norm = float(again.double().norm()) or 1.0
    change, allowed = float((found[:, :1] - again).double().norm()) / norm, EXACT_EPS * torch.finfo(theta.dtype).eps
    text = "two products with one vector differ by {} of |Hv|, and the model stays as it was"
    finding = judged("state", change, allowed, text, "so the product draws random numbers or keeps a state")
    return finding, ours, found if finding.passed else None


def _in_float64(loss: Loss, theta: Tensor, batch: Batch, weights: Weights) -> LossOperator:
    """Our Hessian in float64, of inputs that were first rounded to the model's dtype."""
    return in_dtype(hessian(loss, theta, batch, weights=weights), torch.float64)


def _model_state(model: nn.Module) -> dict[str, Any]:
    """Copies of the parameters and buffers by name, and the mode (train, eval) of each module."""
    tensors = {name: t.detach().clone() for name, t in [*model.named_parameters(), *model.named_buffers()]}
    return tensors | {f"mode of {name or 'the model'}": m.training for name, m in model.named_modules()}


def _changed(before: dict[str, Any], model: nn.Module) -> str:
    """The name of what differs from an earlier state of the model; "" if nothing does."""
    for name, now in _model_state(model).items():
        then = before.get(name)
        same = torch.equal(now, then) if isinstance(now, Tensor) and isinstance(then, Tensor) else now == then
        # A tensor with NaN is not equal to itself, which is no change.
        if not same and not (isinstance(now, Tensor) and bool(now.isnan().any())):
            return name
    return ""


def _hint(ours: LossOperator, V: Tensor, found: Tensor, limits: Limits) -> str:
    """What a wrong product resembles, for the end of its sentence."""
    exact, rounding = exact_products(ours, V)
    found = found.double()
    if not found.any():
        return "; they are zero"
    factor = float((found * exact).sum() / (exact * exact).sum().clamp(min=torch.finfo(torch.float64).tiny))
    if factor and limits.compare("", found / factor, exact, rounding).passed:
        # A factor within 1 % of the length of a first axis is taken for the number of examples.
        lengths = {leaf.shape[0] for batch in ours.objective.batches for leaf in tensors_of(batch) if leaf.ndim}
        examples = next((n for n in lengths if abs(factor / n - 1) < 1e-2 and n > 1), None)
        return f"; they are {factor:.6g} times ours" + (
            f" (a sum over {examples} examples, in place of the mean?)" if examples else ""
        )
    objective = ours.objective
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the warning that the criterion is linear
            G = gauss_newton(objective.network, objective.thetas[0], list(objective.batches), weights=objective.weights)
        if limits.compare("", found, G @ V.double(), rounding).passed:
            return "; they are those of the Gauss-Newton matrix"
    except (ValueError, RuntimeError, NotImplementedError):  # this loss has no Gauss-Newton matrix
        pass
    return "; were they made at these parameters, on this batch, and in this mode (train, eval)?"


def _dependence(
    factory: Callable[[nn.Module, Any], Matvec] | None,
    model: nn.Module,
    loss: Loss,
    theta: Tensor,
    batch: Batch,
    weights: Weights,
    V: Tensor,
    limits: Limits,
) -> Iterator[Finding]:
    """The findings "weights" and "data", from products of the factory for a copy of the model at moved parameters.

    The finding "weights" is about the parameters of the model; the argument ``weights`` holds those of the batches.
    """
    if factory is None:
        yield from (not_judged(name, "give factory(model, batch) -> matvec to test it") for name in ("weights", "data"))
        return
    try:
        copied = deepcopy(model)
    except Exception as error:  # whatever a module may hold
        reason = f"the model cannot be copied: {first_line(error)}"
        yield from (not_judged(name, reason) for name in ("weights", "data"))
        return
    move = torch.randn(len(theta), generator=stream(0, "check", "move"), dtype=torch.float64, device="cpu").to(theta)
    moved = theta + MOVE * (float(theta.norm()) or 1.0) * move / move.norm()
    try:
        # A product at the present parameters is made first, so that a tool that caches results for a model is caught
        # when it uses them at the moved parameters.
        made_before = ForeignProduct(factory(copied, batch), theta)
        before = made_before @ V
        _put(copied, loss.layout, moved)
        found = ForeignProduct(factory(copied, batch), theta) @ V
    except Exception as error:  # whatever somebody else's code may raise
        yield Finding("weights", False, nan, nan, f"a product of the factory fails: {first_line(error)}")
        yield not_judged("data", "not judged, because a product of the factory fails")
        return
    exact, rounding = exact_products(_in_float64(loss, moved, batch, weights), V)
    finding = limits.compare("weights", found, exact, rounding)
    note = _what_an_earlier_product_does(made_before, V, before, exact, rounding, limits) if finding.passed else ""
    yield replace(finding, sentence=f"at other parameters, {finding.sentence}{note}")

    part = _part_of(batch, theta)
    if part is None:
        yield not_judged("data", "the batch has no examples that can be left out")
        return
    if not isinstance(weights, str):  # one number for each of the batches in the part; half a batch needs none
        weights = list(weights)[: len(part)] if isinstance(part, list) else "size"
    try:
        exact, rounding = exact_products(_in_float64(loss, moved, part, weights), V)
    except (ValueError, RuntimeError) as error:
        yield not_judged("data", f"the loss fails on a part of the batch: {first_line(error)}")
        return
    try:
        finding = limits.compare("data", ForeignProduct(factory(copied, part), theta) @ V, exact, rounding)
    except Exception as error:  # whatever somebody else's code may raise
        finding = Finding("data", False, nan, nan, f"the factory's product fails: {first_line(error)}")
    yield replace(finding, sentence=f"on a part of the data, {finding.sentence}")


def _what_an_earlier_product_does(
    made_before: ForeignProduct, V: Tensor, before: Tensor, exact: Tensor, rounding: Tensor, limits: Limits
) -> str:
    """What a product that was made before the parameters moved does after the move, for the end of a sentence.

    before: its products with V before the move. exact, rounding: those of :func:`exact_products` after the move.
    """
    try:
        now = made_before @ V
    except Exception:  # whatever somebody else's code may raise
        return "; a product made before the move raises an error after it"
    if limits.compare("", now, exact, rounding).passed:
        return "; a product made before the move follows the parameters"
    if limits.compare("", now, before.double(), rounding).passed:
        return "; a product made before the move keeps the old parameters"
    return "; a product made before the move is wrong after it: make it anew"


def _put(model: nn.Module, layout: ParamLayout, theta: Tensor) -> None:
    """Puts the parameters of the vector into the model."""
    named = dict(unwrapped(model).named_parameters())
    with torch.no_grad():
        for name, value in layout.unflatten(theta).items():
            named[name].copy_(value)


def _part_of(batch: Any, theta: Tensor) -> Any | None:
    """The first half of a batch's examples, rounded up, or all batches but the last; None for one example or none."""
    batches = list(batch) if isinstance(batch, DataLoader) else batches_of(batch, of_network=True)
    if len(batches) > 1:
        return batches[:-1]
    whole = cast_like(batches[0], theta)  # NumPy arrays become tensors
    rows = next((leaf.shape[0] for leaf in tensors_of(whole) if leaf.ndim), 0)
    if rows < 2:
        return None
    half = -(-rows // 2)  # rounded up
    return map_tensors(lambda leaf: leaf[:half] if leaf.ndim and leaf.shape[0] == rows else leaf, whole)


def _setting(
    matvec: Matvec, model: nn.Module, theta: Tensor, layout: ParamLayout, batch: Any, num_probes: int, seed: int
) -> dict[str, str]:
    """What is audited, in words, for the certificate."""
    mode = "train" if model.training else "eval"
    dtype = str(theta.dtype).removeprefix("torch.")
    data = f"a {type(batch).__name__}" if isinstance(batch, DataLoader) else _shapes(batch)
    try:
        own = version("hessian-tools")
    except PackageNotFoundError:  # the source tree is on the path, but was never installed
        own = "of a source tree"
    return {
        "product": getattr(matvec, "__qualname__", type(matvec).__name__),
        "model": f"{type(unwrapped(model)).__name__} in {mode} mode",
        "parameters": f"{len(theta)} in {len(layout.names)} tensors",
        "numbers": f"{dtype} on {theta.device}",
        "batch": data,
        "compared with": "exact products in float64 at the model's present parameters, and differences of gradients",
        "directions": f"{num_probes}, seed {seed}",
        "versions": f"hessian-tools {own}, torch {torch.__version__}",
    }


def _shapes(batch: Any) -> str:
    """The shapes of the first six tensors of a batch, and the number of the others, in words."""
    tensors = tensors_of(batch)
    shown = ", ".join("x".join(map(str, t.shape)) or "one number" for t in tensors[:6])
    return shown + (f" and {len(tensors) - 6} more" if len(tensors) > 6 else "")
