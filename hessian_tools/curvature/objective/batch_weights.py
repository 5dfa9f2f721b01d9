"""The weights of several batches with which the weighted sum of their losses is the loss of all data at once.

A criterion that averages divides a sum by a number that belongs to the batch: the number of its examples, of its tokens
or of its labels that are not ignored, or the sum of the class weights of its labels. Batches must be weighted by this
number, their divisor. It is found in two ways:

- The call of torch's own loss, or of ``mean``, that computed the value is observed. Its arguments give the divisor.
- The criterion is called on random outputs of two batches, which gives L1 and L2, and on both batches put together.
  With the divisors d1 and d2 of the two batches,

      L(both) = (d1 L1 + d2 L2) / (d1 + d2),

  from which follows d2 / d1 = (L1 - L(both)) / (L(both) - L2), whatever the criterion is. Different outputs must give
  the same ratio. A criterion that sums has L(both) = L1 + L2, and its batches all have the weight one.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from hessian_tools.batches import cast_like
from hessian_tools.curvature.objective.objective import at_points
from hessian_tools.loss import Batch, Loss, LossFunction
from hessian_tools.outputs import differentiable_part, tensors_of
from hessian_tools.random_states import restored_random_states
from hessian_tools.rng import stream
from hessian_tools.torch_fixes.precision import full_precision

# Two ratios of divisors, from different random outputs in float64, agree to this fraction.
SAME_RATIO = 1e-7
# Observed divisors are used if their ratios agree to this fraction with the computed ones.
SAME_DIVISOR = 1e-5

# Losses of torch that divide with reduction="mean" by the number of all elements, and by the number of examples.
_BY_ELEMENTS = "mse_loss l1_loss smooth_l1_loss huber_loss soft_margin_loss poisson_nll_loss gaussian_nll_loss "
_BY_ELEMENTS += "binary_cross_entropy binary_cross_entropy_with_logits hinge_embedding_loss margin_ranking_loss kl_div"
_BY_EXAMPLES = "multi_margin_loss multilabel_margin_loss multilabel_soft_margin_loss cosine_embedding_loss "
_BY_EXAMPLES += "triplet_margin_loss ctc_loss"
ELEMENTWISE = {getattr(F, name) for name in _BY_ELEMENTS.split()}
BY_EXAMPLE = {getattr(F, name) for name in _BY_EXAMPLES.split()}
MEANS = (torch.mean, Tensor.mean)
SUMS = (torch.sum, Tensor.sum)
ADDITIONS: tuple[Any, ...] = (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.add_, Tensor.__iadd__)
ADDITIONS += (torch.sub, Tensor.sub, Tensor.__sub__, Tensor.__rsub__)
MULTIPLICATIONS = (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)
DIVISIONS = (torch.div, Tensor.div, Tensor.__truediv__)
# Functions that leave the divisor of a value as it is.
UNCHANGED = (Tensor.float, Tensor.double, Tensor.to, Tensor.contiguous, Tensor.squeeze)
# Stands in place of the divisor for a criterion that sums, which has none: all its batches have the weight one.
ADDS = -1.0
# A term of a loss: its divisor, and the number by which it is multiplied.
Term = tuple[float, float]


class Divisors(TorchFunctionMode):
    """A context in which every call of torch's losses and means, and of sums and multiples of these, is observed.

    sums: whether ``sum`` is taken for a sum over examples. observed: for each result, by its id, the tensor itself
    (held so that no other tensor gets its id) and its terms.
    """

    def __init__(self, *, sums: bool) -> None:
        super().__init__()
        self.sums = sums
        self.observed: dict[int, tuple[Tensor, tuple[Term, ...]]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the function, and notes the divisors of its result where they are known."""
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.ndim == 0 and (terms := self._terms(func, args, kwargs or {})):
            self.observed[id(result)] = (result, terms)
        return result

    def of(self, value: Tensor) -> tuple[Term, ...]:
        """The terms of a value; none if they are not known."""
        _, terms = self.observed.get(id(value), (value, ()))
        return terms

    def _terms(self, func: Any, args: Any, kwargs: Any) -> tuple[Term, ...]:
        """The terms of the result of ``func(*args, **kwargs)``; none if they are not known."""
        if func in MEANS:
            return ((float(args[0].numel()), 1.0),)
        if func in SUMS:
            return ((ADDS, 1.0),) if self.sums else ()
        if func in UNCHANGED:
            return self.of(args[0])
        if func in ADDITIONS:  # the sign of a term does not matter, because terms are only compared between batches
            parts = [self.of(part) for part in args if isinstance(part, Tensor)]
            return tuple(term for part in parts for term in part) if all(parts) else ()
        if func in MULTIPLICATIONS or func in DIVISIONS:
            # Known are a tensor times a number and a tensor divided by a number, but not a number divided by a tensor.
            factors = [part for part in args if isinstance(part, int | float)]
            if len(args) != 2 or len(factors) != 1 or (func in DIVISIONS and factors[0] is args[0]):
                return ()
            factor = 1 / factors[0] if func in DIVISIONS else factors[0]
            (tensor,) = (part for part in args if isinstance(part, Tensor))
            return tuple((divisor, scale * factor) for divisor, scale in self.of(tensor))
        if func in (F.cross_entropy, F.nll_loss) or func in ELEMENTWISE or func in BY_EXAMPLE:
            call = signature(func).bind(*args, **kwargs)
            call.apply_defaults()
            divisor = _divisor_of_torch_loss(func, call.arguments)
            return () if divisor is None else ((divisor, 1.0),)
        return ()


@full_precision
def batch_weights(loss: LossFunction, thetas: Tensor, batches: Sequence[Batch], *, shared: bool) -> tuple[float, ...]:
    """The weights with which the weighted sum of the batches' losses is the loss of all their data at once.

    They sum to one for a criterion that averages, and are all one for a criterion that sums. shared: True if the
    batches have no point axis. Raises ValueError where the divisor of the criterion cannot be found and the batches
    differ in shape, or where the weights differ between points.
    """
    if len(batches) == 1:
        return (1.0,)
    found: tuple[float, ...] | None = None
    for point in [0] if shared else range(len(thetas)):  # the divisors of shared batches are the same at every point
        of_point = list(batches) if shared else [at_points(batch, point) for batch in batches]
        weights = _weights_at(loss, thetas[point], of_point)
        if found is not None and not all(
            math.isclose(a, b, rel_tol=1e-12) for a, b in zip(weights, found, strict=True)
        ):
            raise ValueError(
                f"the criterion divides the batches of point {point} in other proportions than those of point 0; "
                "give weights=, or measure each point by itself"
            )
        found = weights
        if point == 0 and not shared and not _depends_on_labels(of_point):
            break  # the divisors depend on the shapes alone, which are the same at all points
    assert found is not None
    return found


@full_precision
def loader_weights(loss: LossFunction, theta: Tensor, batches: Iterable[Batch]) -> tuple[float, ...]:
    """The weights of :func:`batch_weights` for batches too large to hold at once: each is compared with the first."""
    first: Batch | None = None
    ratios: list[float] = []
    same_shapes: dict[tuple[tuple[int, ...], ...], float] = {}
    adds = False
    for batch in batches:
        if first is None:
            first, ratios = batch, [1.0]
            continue
        shapes = tuple(tuple(t.shape) for t in tensors_of(batch))
        if shapes in same_shapes and not _depends_on_labels([batch]):
            ratios.append(same_shapes[shapes])
            continue
        weights = _weights_at(loss, theta, [first, batch])
        # A criterion that sums gives two weights of 1. The weights of one that averages add up to 1.
        adds_here = sum(weights) == 2
        if len(ratios) > 1 and adds != adds_here:
            raise ValueError("the criterion averages over some batches and adds up over others; give weights=")
        adds = adds_here
        same_shapes[shapes] = weights[1] / weights[0]
        ratios.append(same_shapes[shapes])
    return tuple(ratios) if adds else tuple(ratio / sum(ratios) for ratio in ratios)


def _weights_at(loss: LossFunction, theta: Tensor, batches: list[Batch]) -> tuple[float, ...]:
    """The weights of the batches at one point, from observed divisors and from computed ratios of divisors.

    The computed ratios count, because they come from the criterion itself. The observed divisors are used in their
    place if batches cannot be put together, or if both agree.
    """
    observed, ratios = _observed_divisors(loss, theta, batches), _computed_ratios(loss, theta, batches)
    if observed is not None and 0.0 in observed:
        raise ValueError(f"batch {observed.index(0.0)} has no label that counts, so its loss is 0 / 0; leave it out")
    if ratios is None:
        ratios = observed
    elif observed is not None and ratios and ADDS not in observed:
        pairs = zip(observed, ratios, strict=True)
        if all(abs(divisor / observed[0] - ratio) <= SAME_DIVISOR * ratio for divisor, ratio in pairs):
            ratios = observed  # observed divisors have no rounding error, and computed ratios do
    if not ratios:  # nothing is known of the divisors; they are taken to be equal if the shapes are
        shapes = [[tuple(t.shape) for t in tensors_of(batch)] for batch in batches]
        if any(shape != shapes[0] for shape in shapes) or not shapes[0]:
            raise ValueError(
                "it is not known by what the loss divides a batch, and the batches differ in size; give weights=[...], "
                "one number for each batch: its number of examples, or of labels that count"
            )
        ratios = (1.0,) * len(batches)
    if all(ratio == ADDS for ratio in ratios):
        return (1.0,) * len(batches)
    if not all(math.isfinite(ratio) and ratio > 0 for ratio in ratios):
        raise ValueError(f"the criterion divides the batches in the proportion {list(ratios)}; give weights=")
    return tuple(ratio / sum(ratios) for ratio in ratios)


def _observed_divisors(loss: LossFunction, theta: Tensor, batches: list[Batch]) -> tuple[float, ...] | None:
    """The divisor of each batch, from the operations that computed its loss; None if these do not determine it.

    All are ADDS for a loss that sums. If the loss is a sum of several terms, the first term gives the divisors, and the
    other terms must divide the batches in the same proportions.
    """
    rows: list[tuple[Term, ...]] = []  # for each batch, the terms of its loss
    for batch in batches:
        try:
            sums = isinstance(loss, Loss)  # in a plain function, a sum may also run over the parameters
            with torch.enable_grad(), restored_random_states(), Divisors(sums=sums) as divisors:
                value = loss(theta, batch)
        except RuntimeError:
            return None
        terms = divisors.of(value)
        if not terms or (rows and [scale for _, scale in terms] != [scale for _, scale in rows[0]]):
            return None
        rows.append(terms)
    divisors = [[divisor for divisor, _ in row] for row in rows]
    for of_batch in divisors:
        for divisor, of_first_batch in zip(of_batch, divisors[0], strict=True):
            if not math.isclose(divisor * divisors[0][0], of_batch[0] * of_first_batch, rel_tol=1e-12):
                return None
            if (divisor == ADDS) != (of_batch[0] == ADDS):
                return None
    return tuple(of_batch[0] for of_batch in divisors)


def _divisor_of_torch_loss(func: Any, option: dict[str, Any]) -> float | None:
    """The divisor of a call of one of torch's losses with these arguments; None if it is not known."""
    reduction = option.get("reduction", "mean")
    if option.get("size_average") is not None or option.get("reduce") is not None:
        return None  # options that torch has deprecated
    if reduction == "sum":
        return ADDS
    # The outputs of the network, for which torch's losses have different names.
    x: Tensor = option.get("input", option.get("input1", option.get("log_probs", option.get("anchor"))))  # type: ignore[assignment]
    if reduction == "batchmean":
        return float(x.shape[0])
    if reduction != "mean":
        return None
    if func in (F.cross_entropy, F.nll_loss):
        target, classes = option["target"], x.shape[1 if x.ndim > 1 else 0]
        if target.is_floating_point():  # the probabilities of the classes
            return x.numel() / classes
        counted = target != option["ignore_index"]
        if option["weight"] is None:
            return float(counted.sum())
        return float(option["weight"].double()[target[counted]].sum())
    if func in ELEMENTWISE:
        other: Tensor = option["target"] if "target" in option else option["input2"]
        return float(math.prod(torch.broadcast_shapes(x.shape, other.shape)))
    # The axes of the input of ctc_loss are time, example and class; the other losses have the examples first.
    return float(x.shape[1] if func is F.ctc_loss and x.ndim == 3 else x.shape[0])


# value(draw, chosen): the loss of the chosen batches, given by their positions in the list and put together into one
# batch. It is computed at random outputs or at a random theta; ``draw`` is the number of the random draw.
Values = Callable[[int, tuple[int, ...]], float]


def _computed_ratios(loss: LossFunction, theta: Tensor, batches: list[Batch]) -> tuple[float, ...] | None:
    """The divisor of each batch divided by that of the first batch, from losses of batches put together.

    All are ADDS for a loss that sums. The result is empty if the losses are not those of a criterion that divides or
    sums, and None if batches cannot be put together.
    """
    try:
        with torch.enable_grad(), restored_random_states():
            values = _criterion_values if isinstance(loss, Loss) else _function_values
            return _ratios(values(loss, theta, batches), len(batches))
    except Exception:  # whatever a loss may raise that cannot be called on such outputs, or on batches put together
        return None


def _function_values(function: LossFunction, theta: Tensor, batches: list[Batch]) -> Values:
    """The values of a plain function at random points near theta."""
    theta = theta.double()
    doubled = [cast_like(batch, theta) for batch in batches]

    def value(draw: int, chosen: tuple[int, ...]) -> float:
        noise = torch.randn(theta.shape, generator=stream(draw, "theta"), dtype=torch.float64, device="cpu").to(theta)
        moved = theta + 0.1 * (1 + theta.abs().mean()) * noise
        return float(function(moved, pytree.tree_map(_joined, *[doubled[b] for b in chosen])).detach())

    return value


def _criterion_values(loss: Any, theta: Tensor, batches: list[Batch]) -> Values:
    """The values of the criterion on random outputs. The network is called once for each batch, to learn the shapes."""
    if not loss.has_criterion:
        raise ValueError("the network computes its loss itself, so outputs cannot be put together")
    shapes, targets, put_back = [], [], None
    for batch in batches:
        x, y = loss.split(batch)
        floating, others, put_back = differentiable_part(loss.outputs(theta, x))
        if others or not floating or any(t.ndim == 0 for t in floating):
            raise ValueError("the outputs hold tensors that cannot be put together")
        shapes.append([t.shape for t in floating])
        targets.append(cast_like(y, theta.double()))
    theta = theta.double()

    def random_output(draw: int, b: int, i: int, shape: torch.Size) -> Tensor:
        """The random tensor in place of output i of batch b."""
        return torch.rand(shape, generator=stream(draw, "outputs", b, i), dtype=torch.float64, device="cpu").to(theta)

    def value(draw: int, chosen: tuple[int, ...]) -> float:
        assert put_back is not None
        parts = [[random_output(draw, b, i, shape) for i, shape in enumerate(shapes[b])] for b in chosen]
        outputs = put_back([torch.cat(leaves) for leaves in zip(*parts, strict=True)], [])
        y = pytree.tree_map(_joined, *[targets[b] for b in chosen])
        return float(loss.criterion(outputs, y).detach())

    return value


def _joined(*leaves: Any) -> Any:
    """Tensors of several batches put together along their first axis; of leaves that are no such tensors, the first."""
    return torch.cat(leaves) if isinstance(leaves[0], Tensor) and leaves[0].ndim > 0 else leaves[0]


def _ratios(value: Values, count: int) -> tuple[float, ...]:
    """The ratios of divisors, by the formula of this module's docstring; empty if they differ between random draws."""
    value, ratios = cache(value), [1.0]
    for other in range(1, count):
        found = []
        for draw in (0, 1):
            first, second, both = (value(draw, chosen) for chosen in ((0,), (other,), (0, other)))
            if abs(first + second - both) <= SAME_RATIO * max(abs(first), abs(second)):
                found.append(ADDS)
            elif abs(both - second) <= SAME_RATIO * abs(first - second):
                found.append(math.inf)  # the loss of both batches does not depend on the first
            else:
                ratio = (first - both) / (both - second)
                # Equal batches have equal values, and rounding then gives -1, which is no ratio of divisors.
                found.append(ratio if ratio > 0 else math.nan)
        if not all(math.isfinite(ratio) for ratio in found) or abs(found[0] - found[1]) > SAME_RATIO * abs(found[0]):
            return ()
        ratios.append(found[0])
    if any(ratio == ADDS for ratio in ratios[1:]):
        return (ADDS,) * count if all(ratio == ADDS for ratio in ratios[1:]) else ()
    return tuple(ratios)


def _depends_on_labels(batches: list[Batch]) -> bool:
    """Whether the divisor may depend on more than shapes: integer labels may be ignored or have class weights."""
    return any(not t.is_floating_point() for batch in batches for t in tensors_of(batch))
