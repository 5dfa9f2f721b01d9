"""Learners as data: what the inner loop does, and how far the outer gradient sees through it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Learner:
    """K gradient steps of one size on the support loss.

    first_order: the outer gradient treats each inner gradient as a constant.
    """

    name: str
    steps: int
    step_size: float
    first_order: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} is no inner loop; use at least 1")
        if not self.step_size > 0:
            raise ValueError(f"step_size={self.step_size} must be positive")

    @property
    def total_time(self) -> float:
        """Step size times number of steps: the time gradient flow would run."""
        return self.steps * self.step_size


def maml(steps: int, step_size: float, *, first_order: bool = False) -> Learner:
    """Model-agnostic meta-learning (Finn, Abbeel, Levine 2017), full or first-order outer gradient."""
    return Learner("fomaml" if first_order else "maml", steps, step_size, first_order)
