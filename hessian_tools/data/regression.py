"""Regression tasks on sines and lines, which are generated instead of read from files.

The recipe is that of Lee, Yoo and Kwak (2023). A task is one curve, a sine A sin(x + phi) or a line a x + b with equal
probability. Its values are known, with noise, at 50 fixed values of x. A few of these points form the support set.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, SupportsIndex

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hessian_tools.data.episodes import SPLITS, Episode, check_count, episode_stream, text_digest
from hessian_tools.validation import check_choice

# The intervals from which A, phi, and a and b are drawn, and the interval of x.
AMPLITUDE = (0.1, 5.0)
PHASE = (0.0, math.pi)
COEFFICIENT = (-3.0, 3.0)
INTERVAL = (-5.0, 5.0)

# This is part of the digest. Raise its number whenever the same (seed, split, index) would give another episode.
CURVE_RECIPE = "sine-line-1"


@dataclass(frozen=True)
class Sine:
    """The curve x -> amplitude * sin(x + phase).

    >>> Sine(2.0, 0.0)(np.array([0.0]))
    array([0.])
    """

    amplitude: float
    phase: float

    def __call__(self, x: Float[np.ndarray, " point"]) -> Float[np.ndarray, " point"]:
        """The values of the curve, without noise."""
        return self.amplitude * np.sin(x + self.phase)


@dataclass(frozen=True)
class Line:
    """The curve x -> slope * x + intercept.

    >>> Line(2.0, 1.0)(np.array([3.0]))
    array([7.])
    """

    slope: float
    intercept: float

    def __call__(self, x: Float[np.ndarray, " point"]) -> Float[np.ndarray, " point"]:
        """The values of the curve, without noise."""
        return self.slope * x + self.intercept


@dataclass(frozen=True, kw_only=True)
class SineLineTasks:
    """Regression tasks: a few noisy points of a curve form the support set, and all its other points the query set.

    support: the number of support points. points: the number of values of x, which are spaced evenly over [-5, 5], ends
    included, and are the same in every task; the query set has ``points - support`` of them.
    noise: the standard deviation of the Gaussian noise on every y of both sets, so that the mean squared error of a
    perfect fit is noise ** 2 and not 0.

    The splits differ only in their random stream: every task is new, and no kind of curve is reserved for test.
    Episodes are equal on two machines if the functions sin, log and sqrt give equal numbers there: the sine curves use
    sin, and NumPy draws Gaussian noise by log and sqrt. Their results may differ in the last bit of a float64, which
    the rounding to float32 hides except about once in 10^8 numbers.
    """

    support: int = 5
    points: int = 50
    noise: float = 0.3
    kind: ClassVar[str] = "regression"

    def __post_init__(self) -> None:
        check_count("support", self.support)
        if self.support >= self.points:
            raise ValueError(
                f"support={self.support} of points={self.points} leaves no point for the query set; "
                f"use at most {self.points - 1}"
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """An input is one number."""
        return (1,)

    @property
    def outputs(self) -> int:
        """An output is one number."""
        return 1

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the recipe, the intervals, and the fields of this object."""
        ranges = (AMPLITUDE, PHASE, COEFFICIENT, INTERVAL)
        return text_digest(CURVE_RECIPE, ranges, int(self.support), int(self.points), float(self.noise))

    def episode(self, *, seed: SupportsIndex, split: str, index: SupportsIndex) -> Episode:
        """Task number ``index`` (0, 1, ...) of a split: x [example, 1], y [example, 1], float32.

        The curve, the noise at each x and the order in which points are taken for the support set do not depend on
        ``support``. Raises ValueError for an unknown split or a negative index.
        """
        curve, rng = _draw_curve(seed, split, index)
        order = rng.permutation(self.points)
        x = np.linspace(*INTERVAL, self.points)
        y = curve(x) + self.noise * rng.standard_normal(self.points)
        support, query = order[: self.support], order[self.support :]
        return Episode((_column(x[support]), _column(y[support])), (_column(x[query]), _column(y[query])))

    def curve(self, *, seed: SupportsIndex, split: str, index: SupportsIndex) -> Sine | Line:
        """The curve of the task that ``episode`` returns, for plots and for the error without noise."""
        return _draw_curve(seed, split, index)[0]


def _draw_curve(seed: SupportsIndex, split: str, index: SupportsIndex) -> tuple[Sine | Line, np.random.RandomState]:
    """The curve of a task, and the random generator from which the rest of the task is drawn."""
    rng = episode_stream(seed, check_choice("split", split, SPLITS), index)
    if rng.random_sample() < 0.5:
        return Sine(rng.uniform(*AMPLITUDE), rng.uniform(*PHASE)), rng
    return Line(rng.uniform(*COEFFICIENT), rng.uniform(*COEFFICIENT)), rng


def _column(values: Float[np.ndarray, " example"]) -> Float[Tensor, "example 1"]:
    return torch.from_numpy(values.astype(np.float32)).unsqueeze(1)
