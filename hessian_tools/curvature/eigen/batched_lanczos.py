"""Lanczos runs at many points in step: what is common to a first run and to a search for missed copies."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hessian_tools.curvature.eigen.krylov import KrylovBasis
from hessian_tools.curvature.eigen.selection import Selection
from hessian_tools.curvature.operators.operator import Operator

# Of the Ritz pairs beyond the wanted this share survives a restart.
SURVIVORS = 0.4
# After this share of the steps that the fall of the residuals predicts, they are looked at again.
CAUTION = 0.7
# Up to so many parameters a look costs as much as several products: then all points are looked at together,
# every so many steps.
SMALL, STRIDE = 2**13, 4


@dataclass(frozen=True)
class Ritz:
    """What is known of one point: pairs, vectors as rows; |H|; the products used.

    met: whether it left as done. complete: whether nothing that is wanted can be missing.
    """

    values: Float[Tensor, " pair"]
    vectors: Float[Tensor, "pair param"]
    norm: float
    num_matvecs: int
    met: bool
    complete: bool

    @property
    def broken(self) -> bool:
        """Whether a number was not finite there."""
        return bool(self.values.isnan().any())


@dataclass(frozen=True)
class RitzState:
    """The Ritz pairs of some points after some steps, values rising; float64 on the CPU.

    points: which, of all in the run. norm: |H|. s: the pairs' vectors seen from the basis. spent: where the last
    step left the space, has_been: where any did, whole: where there is no more space. degree: products
    done, at most up to the first restart.
    """

    points: Int[np.ndarray, " chosen"]
    values: Float[Tensor, "chosen value"]
    residuals: Float[Tensor, "chosen value"]
    norm: Float[Tensor, " chosen"]
    s: Float[Tensor, "chosen row value"]
    spent: Bool[Tensor, " chosen"]
    has_been: Bool[Tensor, " chosen"]
    whole: Bool[Tensor, " chosen"]
    degree: int


class StoppingRule(ABC):
    """An interface: when a point is done, and what it takes away."""

    @abstractmethod
    def missed(self, look: RitzState) -> Float[Tensor, " chosen"]:
        """By what factor each point misses its aim: done at 1 or less; expected to fall by a rate."""

    @abstractmethod
    def taken(self, look: RitzState, row: int) -> Int[Tensor, " pair"]:
        """The pairs that a leaving point takes along."""

    @abstractmethod
    def complete(self, look: RitzState, row: int) -> bool:
        """Whether nothing can be missing where a point left as done."""


class BatchedLanczos:
    """The points still running, some of which have left but keep their place until half have.

    most: products allowed each point. least: Ritz pairs needed before there is anything to look at.
    """

    def __init__(
        self,
        H: Operator,
        basis: KrylovBasis,
        aim: StoppingRule,
        wishes: tuple[Selection, ...],
        most: Int[np.ndarray, " point"],
    ) -> None:
        self.H, self.basis, self.aim, self.wishes, self.most = H, basis, aim, wishes, most
        num_points = len(most)
        self.points = np.arange(num_points)
        self.running = np.ones(num_points, dtype=bool)
        self.stride = STRIDE if H.num_params <= SMALL else 1
        self.next_look = self._in_stride(np.full(num_points, 2 * max(wish.k for wish in wishes)))
        self.last_look, self.last_missed = np.zeros(num_points, dtype=int), np.full(num_points, np.inf)
        self.has_been = np.zeros(num_points, dtype=bool)
        self.steps = 0
        self.left: dict[int, Ritz] = {}

    def to_the_end(self, done: Callable[[int], None]) -> list[Ritz]:
        """What each point took along; done: told how many have left, each time some do."""
        while self.running.any():
            before = len(self.left)
            self._step()
            if len(self.left) > before:
                done(len(self.left) - before)
        return [self.left[point] for point in sorted(self.left)]

    def _step(self) -> None:
        finite = self.basis.advance(self._products(), self.steps)
        self.steps += 1
        self._leave_broken(np.flatnonzero(self.running & ~finite))
        spent = self.basis.spent
        self.has_been |= spent
        due = spent | (self.next_look <= self.steps) | (self.steps == self.most)
        if (self.running & due).any():
            self._look(np.flatnonzero(self.running & due))
        if not self.running.any():
            return
        if 2 * self.running.sum() <= len(self.running):
            self._close_ranks()
        if self.basis.crowded:
            self._restart()

    def _products(self) -> Float[Tensor, "point param"]:
        """Zero at the points that have left."""
        vectors = self.basis.next
        if self.running.all():
            return self.H.products(vectors[..., None])[..., 0]
        where = torch.from_numpy(np.flatnonzero(self.running)).to(vectors.device)
        return torch.zeros_like(vectors).index_copy_(0, where, self.H.products(vectors[where, :, None])[..., 0])

    def _look(self, who: Int[np.ndarray, " chosen"]) -> None:
        if self.basis.size < max(wish.k for wish in self.wishes) and (self.steps < self.most[who]).all():
            return
        values, residuals, s = self.basis.pairs(who)
        spent, has_been, whole = (torch.from_numpy(f[who]) for f in (self.basis.spent, self.has_been, self.basis.whole))
        norm, degree = values.abs().amax(-1), min(self.steps, self.basis.room - 1)
        look = RitzState(self.points[who], values, residuals, norm, s, spent, has_been, whole, degree)
        missed = self.aim.missed(look).nan_to_num(nan=np.inf).numpy()
        self._schedule(who, missed)
        for row in np.flatnonzero((missed <= 1) | (self.steps >= self.most[who])):
            columns = self.aim.taken(look, int(row))
            vectors = self.basis.vectors(int(who[row]), s[row][:, columns])
            met = bool(missed[row] <= 1)
            complete = met and self.aim.complete(look, int(row))
            ritz = Ritz(values[row, columns], vectors, float(norm[row]), self.steps, met, complete)
            self._leave(who[[row]], [ritz])

    def _schedule(self, who: Int[np.ndarray, " chosen"], missed: Float[np.ndarray, " chosen"]) -> None:
        """Look again shortly before the residuals are predicted to have fallen; soon, if they did not fall."""
        with np.errstate(all="ignore"):
            rate = np.log(self.last_missed[who] / missed) / (self.steps - self.last_look[who])
            wait = np.where((rate > 0) & np.isfinite(rate), CAUTION * np.log(missed) / rate, self.steps / 8)
        self.next_look[who] = self._in_stride(self.steps + np.clip(wait, 1, 1 + self.steps // 4).astype(int))
        self.last_look[who], self.last_missed[who] = self.steps, missed

    def _in_stride(self, steps: Int[np.ndarray, " chosen"]) -> Int[np.ndarray, " chosen"]:
        """The next multiple of the stride."""
        return -(-steps // self.stride) * self.stride

    def _leave_broken(self, who: Int[np.ndarray, " chosen"]) -> None:
        nan = torch.full((1,), torch.nan, dtype=torch.float64, device="cpu")
        vectors = self.basis.basis.new_full((1, self.H.num_params), torch.nan)
        self._leave(who, [Ritz(nan, vectors, torch.nan, self.steps, False, False)] * len(who))

    def _leave(self, who: Int[np.ndarray, " chosen"], taken: list[Ritz]) -> None:
        if len(who) == 0:
            return
        self.left |= {int(self.points[i]): ritz for i, ritz in zip(who, taken, strict=True)}
        before = np.flatnonzero(self.running)
        self.running[who] = False
        self.basis.leave(who)
        stay = torch.from_numpy(np.flatnonzero(self.running[before]))
        if 0 < len(stay) < len(before):
            self.H = self.H.select(stay)

    def _close_ranks(self) -> None:
        who = np.flatnonzero(self.running)
        self.basis.keep(who)
        for name in ("points", "running", "next_look", "last_look", "last_missed", "has_been", "most"):
            setattr(self, name, getattr(self, name)[who])

    def _restart(self) -> None:
        """From the wanted pairs and some of the next ones; those lost come back with the steps that follow."""
        values, _, s = self.basis.pairs(np.arange(len(self.points)))
        preference = torch.stack([wish.preference(values) for wish in self.wishes if wish.k]).amin(0)
        wanted = sum(wish.k for wish in self.wishes)
        kept = wanted + int(SURVIVORS * (self.basis.size - wanted))
        columns = preference.sort(dim=-1, stable=True).indices[:, :kept]
        self.basis.restart(values.gather(-1, columns), s.gather(-1, columns[:, None].expand(-1, s.shape[1], -1)))
