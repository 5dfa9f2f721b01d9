"""A loss at one or many parameter vectors, each with its batch: checked once, evaluated in bounded pieces.

The two derivatives everything here is made of, the gradient and the Hessian-vector product, are
taken inside ``vmap``, point by point. The other order, ``jvp(vmap(grad(loss)))``, is silently wrong
by 1.4 % through training-mode ``F.batch_norm`` (torch 2.13), as is ``grad(vmap(loss))``.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.utils import _pytree as pytree

from hessian_tools.curvature.memory import FORWARDS_PER_PRODUCT, KEPT_FORWARDS, products_at_once
from hessian_tools.curvature.traced import Kept, traced_product, worth_tracing
from hessian_tools.loss import Batch, Loss, LossFunction, cast_like

Batching = Literal["vmap", "loop"]
Route = Literal["auto", "direct", "traced"]
Weights = Literal["size"] | Sequence[float | int]

# A curvature matrix at one point: what it does to a vector, v -> Av, with all that does not depend on v done before.
LinearMap = Callable[[Any, Tensor, Batch], Callable[[Tensor], Tensor]]


def hessian_at(loss: LossFunction, theta: Float[Tensor, " param"], batch: Batch) -> Callable[[Tensor], Tensor]:
    """v -> Hv at one point, forward over reverse."""
    return lambda v: jvp(lambda t: grad(loss)(t, batch), (theta,), (v,))[1]


@dataclass(frozen=True)
class Points:
    """The objective ``sum_i weights[i] * loss(theta, batches[i])`` at every row of ``thetas``."""

    loss: LossFunction
    thetas: Float[Tensor, "point param"]
    batches: tuple[Batch, ...]
    weights: tuple[float, ...]
    shared: bool
    batching: Batching
    most: int | None
    route: Route = "direct"

    def select(self, points: Int[Tensor, " chosen"]) -> "Points":
        """The same objective at some of the points, in the order given."""
        chosen = points.to(self.thetas.device)
        batches = self.batches if self.shared else tuple(_map_tensors(lambda t: t[chosen], b) for b in self.batches)
        fewer = replace(self, thetas=self.thetas[chosen], batches=batches, most=self.chunk)
        for name, halves in self._halves.items():
            fewer._halves[name] = halves and tuple(kept.select(chosen) for kept in halves)
        return fewer

    @cached_property
    def _halves(self) -> "dict[str, tuple[Kept, ...] | None]":
        """By matrix: what its products at these points share, for each batch; None where it could not be traced."""
        return {}

    @property
    def traced(self) -> bool:
        """Whether products are done by a trace."""
        return any(self._halves.values())

    @property
    def at_once(self) -> int:
        """How many points products should be asked for together: as many as their shared part fits in memory."""
        if self.route == "direct":
            return len(self.thetas)
        return max(1, self.chunk * FORWARDS_PER_PRODUCT // (KEPT_FORWARDS * len(self.batches)))

    def gradients(self) -> Float[Tensor, "point param"]:
        """The gradient at every point."""

        def piece(rows: slice) -> Tensor:
            return self._weighted(rows, lambda theta, batch: grad(self.loss)(theta, batch))

        return torch.cat([piece(rows) for rows in slices(len(self.thetas), self.chunk)])

    def products(
        self, V: Float[Tensor, "point param probe"], matrix_at: LinearMap = hessian_at
    ) -> Float[Tensor, "point param probe"]:
        """The matrix (the Hessian) at every point times that point's columns; ``chunk`` products at a time."""
        if V.numel() == 0:
            return torch.zeros_like(V)
        halves = self._shared(V, matrix_at)
        if halves:
            terms = [w * kept.products(V) for w, kept in zip(self.weights, halves, strict=True)]
            return torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]
        num_probes = V.shape[-1]
        return torch.cat(
            [
                torch.cat([self._products(r, V[r, :, c], matrix_at) for c in slices(num_probes, self.chunk)], dim=-1)
                for r in slices(len(V), max(1, self.chunk // num_probes))
            ]
        )

    def _shared(self, V: Tensor, matrix_at: LinearMap) -> "tuple[Kept, ...] | None":
        """What a trace has to offer for these products; None for the direct way."""
        name = matrix_at.__name__
        if name not in self._halves:
            if self.route == "direct" or self.batching != "vmap" or len(self.thetas) > self.at_once:
                return None
            if self.route == "auto" and not worth_tracing(self.loss, len(V) * V.shape[-1]):
                return None
            self._halves[name] = self._traced(matrix_at)
        return self._halves[name]

    def _traced(self, matrix_at: LinearMap) -> "tuple[Kept, ...] | None":
        def product(theta: Tensor, batch: Batch, v: Tensor) -> Tensor:
            return matrix_at(self.loss, theta, batch)(v)

        halves = []
        for batch in self.batches:
            example = batch if self.shared else _at(batch, 0)
            trace = traced_product(product, matrix_at.__name__, self.loss, self.thetas[0], example)
            if trace is None:
                return None
            halves.append(trace.at(self.thetas.contiguous(), batch, shared=self.shared))
        return tuple(halves)

    @cached_property
    def chunk(self) -> int:
        """How many products run at once: what was asked, else what fits in memory."""
        if self.most is not None:
            return self.most
        batches = [b if self.shared else _at(b, 0) for b in self.batches]
        return products_at_once(self.loss, self.thetas[0], batches)

    def each(self, rows: slice, function: Callable[..., Any], *rest: Tensor) -> list[Any]:
        """``function(theta, batch, *rest)`` at some points, stacked: one result for each of the batches."""
        thetas = self.thetas[rows].contiguous()  # one theta expanded over points has no forward derivative in torch
        pieces = [b if self.shared else _map_tensors(lambda t: t[rows], b) for b in self.batches]
        with _advice():
            return [self._each(function, thetas, b, *rest) for b in pieces]

    def over_columns(self, function: Callable[[Tensor], Tensor], columns: Float[Tensor, "_ column"]) -> Tensor:
        """The function of each column, as columns: at once or one by one, as the points are taken."""
        if self.batching == "loop":
            return torch.stack([function(v) for v in columns.mT], dim=-1)
        if columns.shape[-1] == 1:
            return function(columns[:, 0])[:, None]
        return vmap(function, in_dims=1)(columns).mT  # not out_dims=1: vmap fails there on a constant product

    def _products(self, rows: slice, V: Tensor, matrix_at: LinearMap) -> Tensor:
        def block(theta: Tensor, batch: Batch, columns: Tensor) -> Tensor:
            return self.over_columns(matrix_at(self.loss, theta, batch), columns)

        return self._weighted(rows, block, V)

    def _weighted(self, rows: slice, function: Callable[..., Tensor], *rest: Tensor) -> Tensor:
        terms = [w * term for w, term in zip(self.weights, self.each(rows, function, *rest), strict=True)]
        return torch.stack(terms).sum(0).detach() if len(terms) > 1 else terms[0].detach()

    def _each(self, function: Callable[..., Any], thetas: Tensor, batch: Batch, *rest: Tensor) -> Any:
        if self.batching == "vmap":
            dims = None if self.shared else _map_tensors(lambda _: 0, batch, otherwise=None)
            return vmap(function, in_dims=(0, dims, *(0 for _ in rest)))(thetas, batch, *rest)
        batches = [batch if self.shared else _at(batch, i) for i in range(len(thetas))]
        results = [function(t, b, *r) for t, b, *r in zip(thetas, batches, *rest, strict=True)]
        return pytree.tree_map(lambda *leaves: torch.stack(leaves), *results)


def points_of(
    loss: LossFunction,
    thetas: Float[Tensor, "*point param"],
    batch: Batch | list[Batch],
    *,
    shared: bool,
    weights: Weights,
    chunk: int | None,
    batching: Batching,
    route: Route = "direct",
) -> Points:
    """The checked objective; a single point gets a point axis of length one. Raises ValueError in plain words."""
    _check_thetas(thetas)
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk={chunk}: give the number of products to run at once, 1 or more, or None to measure")
    if batching not in ("vmap", "loop"):
        raise ValueError(f"batching={batching!r} is not known; give 'vmap' or 'loop'")
    if route not in ("auto", "direct", "traced"):
        raise ValueError(f"route={route!r} is not known; give 'auto', 'direct' or 'traced'")
    single = thetas.ndim == 1
    batches = batch if isinstance(batch, list) else [batch]
    if not batches or (isinstance(loss, Loss) and isinstance(batches[0], Tensor)):
        raise ValueError("a list means several batches of one objective and needs at least one; a batch is (x, y)")
    if single and shared:
        raise ValueError("shared=True says that many points share a batch; thetas is one point, leave it out")
    thetas = thetas.detach()
    batches = [cast_like(b, thetas) for b in batches]
    if not (single or shared):
        _check_leading_axes(batches, len(thetas))
    fractions = _fractions(batches, weights, axis=0 if single or shared else 1)
    if isinstance(loss, Loss):
        first = (thetas, batches[0]) if single else (thetas[0], batches[0] if shared else _at(batches[0], 0))
        loss.refuse_hidden_state(*first)
    rows = thetas[None] if single else thetas
    return Points(loss, rows, tuple(batches), fractions, shared or single, batching, chunk, route)


def _check_thetas(thetas: Tensor) -> None:
    if not thetas.is_floating_point():
        raise ValueError(f"thetas has dtype {thetas.dtype}, which has no derivative; give float32 or float64")
    if thetas.ndim not in (1, 2) or thetas.numel() == 0:
        raise ValueError(f"thetas has shape {tuple(thetas.shape)}; give [param] or [point, param], neither empty")


def _check_leading_axes(batches: list[Batch], num_points: int) -> None:
    for leaf in (leaf for b in batches for leaf in pytree.tree_leaves(b) if isinstance(leaf, Tensor)):
        if leaf.ndim == 0 or leaf.shape[0] != num_points:
            raise ValueError(
                f"thetas holds {num_points} points but a batch leaf has shape {tuple(leaf.shape)}; give every leaf "
                "a leading point axis, or shared=True for one batch at all points"
            )


def _fractions(batches: list[Batch], weights: Weights, *, axis: int) -> tuple[float, ...]:
    """Weights that sum to one. Averages over batches weigh each by its size: unweighted, 8 and 2 are 71 % off."""
    if len(batches) == 1:
        return (1.0,)
    sizes = [_size(b, axis) for b in batches] if weights == "size" else [float(w) for w in weights]
    if len(sizes) != len(batches) or not sum(sizes) > 0:
        raise ValueError(f"weights={weights!r} for {len(batches)} batches; give one number a batch, of positive sum")
    return tuple(size / sum(sizes) for size in sizes)


def _size(batch: Batch, axis: int) -> float:
    leaf = next((leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)), None)
    if leaf is None or leaf.ndim <= axis:
        raise ValueError("a batch has no example axis to take its size from; give weights=[...], one number a batch")
    return float(leaf.shape[axis])


def _map_tensors(function: Callable[[Tensor], Any], batch: Batch, **otherwise: Any) -> Batch:
    def apply(leaf: Any) -> Any:
        return function(leaf) if isinstance(leaf, Tensor) else otherwise.get("otherwise", leaf)

    return pytree.tree_map(apply, batch)


def _at(batch: Batch, point: int) -> Batch:
    return _map_tensors(lambda leaf: leaf[point], batch)


def slices(total: int, most: int) -> list[slice]:
    """Pieces of nearly equal length, none longer than ``most``: a short last piece would cost nearly a whole one."""
    size = ceil(total / ceil(total / most))
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


@contextmanager
def _advice() -> Iterator[None]:
    """torch's errors from inside a derivative, with what to do about them."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "ZeroTensor" in text:
            advice = "the loss has no forward-over-reverse derivative: write nn.MSELoss as ((a - b) ** 2).mean()"
        elif "random" in text and "vmap" in text:
            advice = "the loss draws random numbers, so it is no function of theta: call model.eval() or fix them"
        elif "vmap" in text or "data-dependent" in text:
            advice = "the loss cannot be batched over points: pass batching='loop'"
        else:
            raise
        raise RuntimeError(f"{advice} (torch said: {text.splitlines()[0][:200]})") from error
