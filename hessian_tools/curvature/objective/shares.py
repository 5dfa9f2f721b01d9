"""The objective of a process that holds a share of the data, with weights relative to the batches of all processes."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.batches import cast_like
from hessian_tools.curvature.objective.batch_weights import batch_weights
from hessian_tools.curvature.objective.loader_batches import checksum
from hessian_tools.curvature.objective.objective import Objective, Weights
from hessian_tools.failures import why_loss_fails
from hessian_tools.loss import Loss, LossFunction
from hessian_tools.processes import Ranks, Share


def objective_of_share(
    loss: LossFunction,
    thetas: Float[Tensor, "*point param"],
    share: Share,
    weights: Weights,
    objective_of: Callable[[Any], Objective],
) -> Objective:
    """The objective of this process, with weights that sum to one over all processes.

    For a criterion that sums over examples, every weight is one instead. objective_of: makes the objective of the
    batches of one process, weighted by size among themselves. All processes receive the first batch of the first
    process that has one. Each process compares its own first batch with this common batch, which gives the weights of
    all batches in the same unit. A process without batches takes the common batch with weight 0.

    Raises ValueError, on every process, where processes differ in theta, parameters or buffers, where no process has a
    batch, for ragged batches, and where :func:`objective_at` raises on any process.
    """
    ranks = Ranks(share.group, thetas.device)
    own, by_size = share.batch, isinstance(weights, str)
    is_empty = isinstance(own, list) and not own
    holders = _holders(ranks, loss, thetas, is_empty=is_empty, by_size=by_size)
    objective = ranks.with_shared_errors(lambda: None if is_empty else _one_group(objective_of(own)))
    first = None
    if ranks.rank == holders[0]:
        assert objective is not None
        first = cast_like(objective.batches[0], torch.empty(0, dtype=thetas.dtype, device="cpu"))
    first = ranks.from_process(holders[0], first)

    def weighted() -> tuple[Objective, list[float], bool]:
        """The objective, its weights in units that all processes share, and whether the criterion sums."""
        if objective is None:
            return _one_group(objective_of(first)), [0.0], False
        if by_size:
            return objective, *_weights_relative_to(objective, cast_like(first, thetas))
        if len(weights) != (count := len(objective.batches)):
            raise ValueError(f"weights={weights!r} for {count} batches; give one number for each batch of this process")
        return objective, [float(weight) for weight in weights], False

    objective, scaled, sums = ranks.with_shared_errors(weighted)
    rows = ranks.numbers([sum(scaled), float(sums)])
    total = sum(weight for weight, _ in rows)
    sums_on_holders = {bool(rows[rank][1]) for rank in holders}
    if len(sums_on_holders) > 1:
        raise ValueError(
            "the criterion averages over the batches of some processes and adds up over others; give weights="
        )
    if not total > 0:
        raise ValueError(f"weights={weights!r}: the sum over all processes is {total}; give weights with a sum above 0")
    (group,) = objective.groups
    fractions = tuple(scaled) if sums_on_holders == {True} else tuple(weight / total for weight in scaled)
    return replace(objective, groups=(replace(group, weights=fractions),), ranks=ranks)


def _holders(ranks: Ranks, loss: LossFunction, thetas: Tensor, *, is_empty: bool, by_size: bool) -> list[int]:
    """The processes that have batches. Raises ValueError where no process has any, or where they differ in theta."""
    names = loss.layout.names if isinstance(loss, Loss) else None
    # What must be the same on all processes, in a form that is quick to send and to compare.
    common = tuple(thetas.shape), str(thetas.dtype), checksum(thetas), names, by_size
    gathered = ranks.gather((common, is_empty))
    for rank, (of_rank, _) in enumerate(gathered):
        if of_rank != gathered[0][0]:
            raise ValueError(
                f"process {rank} has another theta, other parameters or another kind of weights than process 0; give "
                "the same to all, such as a model that each makes after torch.manual_seed(0)"
            )
    if isinstance(loss, Loss):
        named = [*loss.model.named_buffers(), *loss.model.named_parameters()]
        refuse_different_constants({name: t for name, t in named if name not in loss.layout.names}, ranks)
    holders = [rank for rank, (_, has_none) in enumerate(gathered) if not has_none]
    if not holders:
        raise ValueError("no process has a batch; give data to one of them at least")
    return holders


def refuse_different_constants(named: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Raises ValueError where processes hold different buffers or frozen parameters, and so different models."""
    rows = ranks.gather({name: checksum(tensor) for name, tensor in named.items()})
    for rank, row in enumerate(rows):
        if row != rows[0]:
            name = next(name for name in {**rows[0], **row} if row.get(name) != rows[0].get(name))
            raise ValueError(
                f"process {rank} holds other buffers or frozen parameters than process 0 ({name!r}), and so another "
                "model; load one checkpoint on each, or send them from process 0 by torch.distributed.broadcast"
            )


def _weights_relative_to(objective: Objective, first: Any) -> tuple[list[float], bool]:
    """The weights of this process's batches in units of the weight of ``first``, and whether the criterion sums.

    first: the batch with which all processes compare their own.
    """
    loss, own = objective.loss, objective.batches[0]
    try:
        of_first, of_own = batch_weights(loss, objective.thetas, [first, own], shared=objective.shared)
    except ValueError:
        why = why_loss_fails(loss, objective.thetas, own, name="batch", own_batch=not objective.shared)
        if why is None:
            raise
        raise ValueError(why) from None
    if of_first + of_own == 2:  # a criterion that sums gives both batches the weight 1
        return [1.0] * len(objective.batches), True
    # In units of ``first``, the weight of the first batch of this process is of_own / of_first.
    factor = of_own / of_first / objective.weights[0]
    return [factor * weight for weight in objective.weights], False


def _one_group(objective: Objective) -> Objective:
    """The objective. Raises ValueError if its points have batches of different sizes and so several groups."""
    if len(objective.groups) > 1:
        raise ValueError("points with batches of different sizes are not shared over processes; measure them in one")
    return objective
