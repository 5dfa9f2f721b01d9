"""What callers hand to an operator, checked once, in plain words; and averages over batches by their sizes."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from hessian_tools.curvature.engines.choice import Route
from hessian_tools.curvature.engines.memory import room_of
from hessian_tools.curvature.objective.groups import Ragged, RaggedObjective, grouped
from hessian_tools.curvature.objective.indexing import at_point
from hessian_tools.curvature.objective.objective import Batching, Objective, Weights
from hessian_tools.loss import Batch, Loss, LossFunction, cast_like
from hessian_tools.torch_fixes.function_modes import TwiceDifferentiable
from hessian_tools.validation import check_whole


def objective_at(
    loss: LossFunction,
    thetas: Float[Tensor, "*point param"],
    batch: Batch | list[Batch],
    *,
    shared: bool,
    weights: Weights,
    chunk: int | None,
    batching: Batching,
    route: Route = "direct",
    max_memory: float | int | None = None,
) -> Objective | RaggedObjective:
    """The checked objective; a single point gets a point axis of length one. Raises ValueError in plain words."""
    _check_thetas(loss, thetas)
    _check_options(chunk, batching, route)
    loss = loss if isinstance(loss, Loss) else _helped(loss)
    single = thetas.ndim == 1
    batches = batch if isinstance(batch, list) else [batch]
    if not batches or (isinstance(loss, Loss) and isinstance(batches[0], Tensor)):
        raise ValueError("a list means several batches of one objective and needs at least one; a batch is (x, y)")
    if single and shared:
        raise ValueError("shared=True says that many points share a batch; thetas is one point, leave it out")
    thetas = thetas.detach()
    room = room_of(max_memory)
    if any(isinstance(b, Ragged) for b in batches):
        _check_ragged(batches, thetas, shared)

        def of_group(rows: Tensor, group: list[Batch]) -> Objective:
            fractions = _fractions(group, weights, axis=1)
            return Objective(loss, rows, tuple(group), fractions, False, batching, chunk, route, room)

        _refuse_hidden_state(loss, thetas[0], cast_like(batches[0].batches[0], thetas))
        return grouped(loss, thetas, batches, of_group)
    batches = [cast_like(b, thetas) for b in batches]
    if not (single or shared):
        _check_leading_axes(batches, len(thetas))
    fractions = _fractions(batches, weights, axis=0 if single or shared else 1)
    rows = thetas[None] if single else thetas
    _refuse_hidden_state(loss, rows[0], batches[0] if single or shared else at_point(batches[0], 0))
    return Objective(loss, rows, tuple(batches), fractions, shared or single, batching, chunk, route, room)


def _helped(loss: LossFunction) -> LossFunction:
    """A plain function with what ``Loss`` sees to itself: torch's Hessian through weight normalisation is 45 % off."""

    def helped(theta: Tensor, batch: Batch) -> Tensor:
        with TwiceDifferentiable():
            return loss(theta, batch)

    return helped


def _refuse_hidden_state(loss: LossFunction, theta: Tensor, batch: Batch) -> None:
    if isinstance(loss, Loss):
        loss.refuse_hidden_state(theta, batch)


def _check_options(chunk: int | None, batching: str, route: str) -> None:
    check_whole(chunk=chunk)
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk={chunk}: give the number of products to run at once, 1 or more, or None to measure")
    if batching not in ("vmap", "loop"):
        raise ValueError(f"batching={batching!r} is not known; give 'vmap' or 'loop'")
    if route not in ("auto", "direct", "kept", "traced"):
        raise ValueError(f"route={route!r} is not known; give 'auto', 'direct', 'kept' or 'traced'")


def _check_ragged(batches: list[Any], thetas: Tensor, shared: bool) -> None:
    if not all(isinstance(b, Ragged) for b in batches):
        raise ValueError("a list holds ragged batches and others; make all of them with ragged([...])")
    lengths = {len(b.batches) for b in batches}
    if shared or thetas.ndim == 1 or lengths != {len(thetas)}:
        raise ValueError(
            f"ragged batches are one batch a point: {min(lengths)} batches for thetas {tuple(thetas.shape)}"
            + (" and shared=True" if shared else "")
        )


def _check_thetas(loss: LossFunction, thetas: Tensor) -> None:
    if not isinstance(thetas, Tensor):
        raise ValueError(f"thetas is a {type(thetas).__name__}; give a tensor [param] or [point, param]")
    if thetas.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"thetas has dtype {thetas.dtype}, in which second derivatives mean little; give float32 or float64"
        )
    if thetas.ndim not in (1, 2) or thetas.numel() == 0:
        raise ValueError(f"thetas has shape {tuple(thetas.shape)}; give [param] or [point, param], neither empty")
    if isinstance(loss, Loss) and thetas.shape[-1] != loss.layout.numel:
        raise ValueError(
            f"thetas has shape {tuple(thetas.shape)}, the network {loss.layout.numel} parameters in its layout; "
            "give them all, in the layout's order"
        )


def _check_leading_axes(batches: list[Batch], num_points: int) -> None:
    for leaf in (leaf for b in batches for leaf in pytree.tree_leaves(b) if isinstance(leaf, Tensor)):
        if leaf.ndim == 0 or leaf.shape[0] != num_points:
            raise ValueError(
                f"thetas holds {num_points} points but a batch leaf has shape {tuple(leaf.shape)}; give every leaf "
                "a leading point axis, or shared=True for one batch at all points"
            )


def _fractions(batches: list[Batch], weights: Weights, *, axis: int) -> tuple[float, ...]:
    """Weights that sum to one. Averages over batches weigh each by its size: unweighted, 8 and 2 are 71 % off."""
    if len(batches) == 1 and weights == "size":
        return (1.0,)
    if isinstance(weights, str) and weights != "size":
        raise ValueError(f"weights={weights!r} is not known; give 'size', or one number a batch")
    sizes = [_size(b, axis) for b in batches] if weights == "size" else [float(w) for w in weights]
    if len(sizes) != len(batches) or not sum(sizes) > 0:
        raise ValueError(f"weights={weights!r} for {len(batches)} batches; give one number a batch, of positive sum")
    return tuple(size / sum(sizes) for size in sizes)


def _size(batch: Batch, axis: int) -> float:
    leaf = next((leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)), None)
    if leaf is None or leaf.ndim <= axis:
        raise ValueError("a batch has no example axis to take its size from; give weights=[...], one number a batch")
    return float(leaf.shape[axis])
