"""Checks once what a caller hands to an operator (loss, points, batches, weights), and makes an objective of it."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from hessian_tools.batches import batches_of, cast_like, refuse_unusable
from hessian_tools.curvature.objective.batch_weights import batch_weights, loader_weights
from hessian_tools.curvature.objective.loader_batches import LoaderBatches, loader_batches
from hessian_tools.curvature.objective.objective import Group, Objective, Weights, at_points
from hessian_tools.curvature.objective.shares import objective_of_share
from hessian_tools.first_look import look_at_function
from hessian_tools.loss import Batch, Loss, LossFunction
from hessian_tools.processes import Share
from hessian_tools.progress import Progress
from hessian_tools.torch_fixes.function_modes import TwiceDifferentiable

LABELS = (torch.int64, torch.int32)  # the dtypes of labels


@dataclass(frozen=True, repr=False)
class Ragged:
    """One batch for each point, where the batches may differ in size; made by :func:`ragged`."""

    batches: tuple[Batch, ...]

    def __repr__(self) -> str:
        return f"Ragged({len(self.batches)} batches)"


def ragged(batches: Sequence[Batch]) -> Ragged:
    """Batches of different sizes, one for each point: ``hessian(loss, thetas, ragged([(x0, y0), (x1, y1), ...]))``.

    Points whose batches have the same shapes are evaluated together. No batch is padded, so the result is right for
    every network, also with batch statistics. (The alternative is to pad the batches and to put a mask into y that the
    criterion reads. Then all batches have one shape, but the result is right only where the network treats each example
    by itself, which batch normalisation does not.)

    >>> from hessian_tools.curvature import hessian
    >>> thetas = torch.zeros(2, 1)
    >>> H = hessian(lambda theta, x: ((x * theta) ** 2).mean(), thetas, ragged([torch.ones(3), 2 * torch.ones(5)]))
    >>> H.to_dense().flatten()  # 2 mean(x^2)
    tensor([2., 8.])
    """
    if isinstance(batches, Tensor) or not isinstance(batches, Sequence) or not batches:
        raise ValueError("ragged needs a list of batches, one for each point, such as ragged([(x0, y0), (x1, y1)])")
    return Ragged(tuple(batches))


def objective_at(
    loss: LossFunction,
    thetas: Float[Tensor, "*point param"],
    batch: Batch | list[Batch],
    *,
    shared: bool,
    weights: Weights,
    keep: Callable[[torch.device], int] | None = None,
    progress: Progress | None = None,
) -> Objective:
    """The objective made of the arguments of :func:`~hessian_tools.curvature.hessian`, which are checked.

    A single point gets a point axis of length one. keep: a function of the device that gives how many bytes the batches
    of a ``DataLoader`` may take; a loader with more is read again at every pass. None keeps them always.
    Raises ValueError where the arguments do not fit together.
    """
    _check_thetas(loss, thetas)
    if isinstance(batch, Share):

        def objective_of(own: Batch | list[Batch]) -> Objective:
            return objective_at(loss, thetas, own, shared=shared, weights="size", keep=keep, progress=progress)

        return objective_of_share(loss, thetas, batch, weights, objective_of)
    single, of_network = thetas.ndim == 1, isinstance(loss, Loss)
    if single and shared:
        raise ValueError("shared=True says that many points share a batch, but thetas is one point; leave shared out")
    thetas = thetas.detach()
    rows = thetas[None] if single else thetas
    shared = shared or single
    if isinstance(batch, DataLoader):
        # Batches with a point axis are always kept, because the batch of one point is taken out by indexing.
        kept_bytes = keep(thetas.device) if keep is not None and shared else None
        batch = loader_batches(batch, of_network=of_network, like=thetas, keep=kept_bytes, progress=progress)
    if isinstance(batch, LoaderBatches):
        function = _checked_loss(loss, rows[0], batch[0])
        all_points = torch.arange(len(rows), device="cpu")
        group = Group(all_points, batch, _weights(loss, rows, batch, weights, shared=True))
        return _with_recorded_buffers(Objective(function, rows, (group,), shared))
    batches = batches_of(batch, of_network=of_network)
    for b in batches:
        refuse_unusable(b.batches if isinstance(b, Ragged) else b, thetas)
    groups: tuple[Group, ...]
    if any(isinstance(b, Ragged) for b in batches):
        _check_ragged(batches, thetas, shared)
        function = _checked_loss(loss, rows[0], cast_like(batches[0].batches[0], thetas))
        groups = _ragged_groups(loss, batches, rows, weights)
    else:
        batches = [cast_like(b, thetas) for b in batches]
        if not shared:
            _check_leading_axes(batches, len(rows))
        function = _checked_loss(loss, rows[0], batches[0] if shared else at_points(batches[0], 0))
        all_points = torch.arange(len(rows), device="cpu")
        groups = (Group(all_points, tuple(batches), _weights(loss, rows, batches, weights, shared=shared)),)
    objective = Objective(function, rows, groups, shared)
    _refuse_uncounted_labels(objective)
    return _with_recorded_buffers(objective)


def _with_recorded_buffers(objective: Objective) -> Objective:
    """The objective, with the buffers that the network had at each point if the loss comes from a recorder."""
    loss = objective.loss
    if not isinstance(loss, Loss):
        return objective
    shared, groups = objective.shared, []
    for group in objective.groups:
        batches, shared = loss.in_states(objective.thetas[group.positions], group.batches, shared=objective.shared)
        groups.append(replace(group, batches=batches))
    return replace(objective, groups=tuple(groups), shared=shared)


def _refuse_uncounted_labels(objective: Objective) -> None:
    """Raise ValueError if an only batch has no label that counts (all are ``ignore_index``), so that its loss is 0 / 0.

    The derivatives of such a loss are 0, as if the loss were flat. Only batches whose labels are all equal are
    evaluated, because only in them can every label be one that does not count. (If there are several batches, they are
    checked where their weights are found.)
    """
    for group in objective.groups:
        if len(group.batches) > 1 or isinstance(group.batches, LoaderBatches):
            continue
        (batch,), rows = group.batches, objective.thetas[group.positions]
        labels = [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dtype in LABELS]
        labels = [each.reshape(1 if objective.shared else len(rows), -1) for each in labels]
        points_with_equal_labels = set()
        for each in labels:
            points_with_equal_labels.update((each == each[:, :1]).all(1).nonzero()[:, 0].cpu().tolist())
        for point in sorted(points_with_equal_labels):
            if _is_nan_and_flat(objective.loss, rows[point], batch if objective.shared else at_points(batch, point)):
                raise ValueError("the batch has no label that counts, so its loss is 0 / 0; give one that counts")


def _is_nan_and_flat(loss: LossFunction, theta: Tensor, batch: Batch) -> bool:
    """Whether a loss is NaN although its gradient is finite."""
    leaf = theta.detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            value = loss(leaf, batch)
            return bool(value.isnan()) and bool(torch.autograd.grad(value, leaf)[0].isfinite().all())
    except Exception:  # a loss that fails is reported later, by the engines
        return False


def _checked_loss(loss: LossFunction, theta: Tensor, batch: Batch) -> LossFunction:
    """The loss, made safe to differentiate twice, after :mod:`hessian_tools.first_look` has checked it.

    The check comes before any other pass, because that pass could change the state of a model for good. A ``Loss``
    makes its network safe itself. Through weight normalisation, for example, torch's own Hessian is 45 % off.
    """
    if isinstance(loss, Loss):
        loss.refuse_hidden_state(theta, batch)
        return loss

    def safe(theta: Tensor, batch: Batch) -> Tensor:
        with TwiceDifferentiable():
            return loss(theta, batch)

    look_at_function(safe, theta, batch)
    return safe


def _ragged_groups(loss: LossFunction, batches: list[Ragged], thetas: Tensor, weights: Weights) -> tuple[Group, ...]:
    """The groups of points whose batches have the same shapes.

    Where each point has several batches, two points are in one group only if all their batches agree in shape.
    """
    batches_of_points = list(zip(*(ragged.batches for ragged in batches), strict=True))
    members_of: dict[Hashable, list[int]] = {}  # for each combination of shapes, the points whose batches have these
    for point, of_point in enumerate(batches_of_points):
        members_of.setdefault(_shapes(of_point), []).append(point)
    groups = []
    for members in members_of.values():
        stacked = [_stacked([cast_like(batches_of_points[i][b], thetas) for i in members]) for b in range(len(batches))]
        fractions = _weights(loss, thetas[members], stacked, weights, shared=False)
        groups.append(Group(torch.tensor(members, device="cpu"), tuple(stacked), fractions))
    return tuple(groups)


def _stacked(batches: Sequence[Batch]) -> Batch:
    """Batches of the same shapes stacked into one, with a leading point axis.

    A leaf that is not a tensor is equal in all batches and is taken from the first one.
    """
    return pytree.tree_map(
        lambda leaf, *others: torch.stack([leaf, *others]) if isinstance(leaf, Tensor) else leaf, *batches
    )


def _shapes(batches: Sequence[Batch]) -> Hashable:
    """A key that is equal for batches that can be stacked."""
    leaves, spec = pytree.tree_flatten(list(batches))
    # The dtype of integers and booleans is part of the key, because a boolean mask stacked with integers would become a
    # list of indices. The dtype of floating-point tensors is not, because they are all cast to the dtype of theta.
    forms = [
        (tuple(x.shape), None if x.is_floating_point() else x.dtype) if isinstance(x, Tensor) else repr(x)
        for x in leaves
    ]
    return str(spec), tuple(forms)


def _check_ragged(batches: list[Any], thetas: Tensor, shared: bool) -> None:
    """Raise ValueError unless all batches are ragged and each holds one batch for every point."""
    if not all(isinstance(b, Ragged) for b in batches):
        raise ValueError("some batches of the list are ragged and others are not; make all of them with ragged([...])")
    lengths = {len(b.batches) for b in batches}
    if shared or lengths != {len(thetas)}:
        raise ValueError(
            f"give one batch for each point in ragged([...]): there are {min(lengths)} for thetas {tuple(thetas.shape)}"
            + (" and shared=True" if shared and thetas.ndim == 2 else "")
        )


def _check_thetas(loss: LossFunction, thetas: Tensor) -> None:
    """Raise ValueError for points whose dtype or shape is of no use."""
    if thetas.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"thetas has dtype {thetas.dtype}, in which second derivatives mean little; give float32 or float64"
        )
    if thetas.ndim > 2:
        raise ValueError(f"thetas has shape {tuple(thetas.shape)}; give [param] or [point, param]")
    if isinstance(loss, Loss) and thetas.shape[-1] != loss.layout.numel:
        raise ValueError(
            f"thetas has shape {tuple(thetas.shape)}, but the network has {loss.layout.numel} parameters in its "
            "layout; give all of them, in the layout's order"
        )


def _check_leading_axes(batches: list[Batch], num_points: int) -> None:
    """Raise ValueError for a tensor of a batch whose first axis is not that of the points."""
    for leaf in (leaf for b in batches for leaf in pytree.tree_leaves(b) if isinstance(leaf, Tensor)):
        if leaf.ndim == 0 or leaf.shape[0] != num_points:
            raise ValueError(
                f"thetas holds {num_points} points but a tensor of the batch has shape {tuple(leaf.shape)}; give every "
                "tensor a leading point axis, or shared=True for one batch at all points"
            )


def _weights(
    loss: LossFunction, thetas: Tensor, batches: Sequence[Batch], weights: Weights, *, shared: bool
) -> tuple[float, ...]:
    """The weight of each batch: for "size", found from the criterion; otherwise as given, scaled to a sum of one."""
    if isinstance(weights, str) and isinstance(batches, LoaderBatches):
        return loader_weights(loss, thetas[0], batches)
    if isinstance(weights, str):
        return batch_weights(loss, thetas, batches, shared=shared)
    given = [float(w) for w in weights]
    if len(given) != len(batches) or not sum(given) > 0:
        raise ValueError(
            f"weights={weights!r} for {len(batches)} batches; give one number for each batch, with a sum above 0"
        )
    return tuple(weight / sum(given) for weight in given)
