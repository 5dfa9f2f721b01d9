"""Step rules: the direction of an inner step, as a function of the gradients so far.

A rule is a small frozen object with two methods. ``direction(gradient, state) -> (direction, state)`` is called once a
step, with ``None`` as the state before the first step. ``time(steps)`` is the distance that so many steps cover along a
constant gradient, in units of a plain gradient step. The SHOT penalty uses it to compare loops of equal total time.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class StepRule(Protocol):
    """The interface that an inner loop needs of a step rule; the direction is differentiable in the gradients."""

    def direction(self, gradient: Float[Tensor, " moved"], state: Any) -> tuple[Float[Tensor, " moved"], Any]:
        """The vector that the step size multiplies, and the state for the next step."""

    def time(self, steps: int) -> float:
        """The distance that ``steps`` steps cover along a constant gradient, measured in plain steps."""


@dataclass(frozen=True)
class Plain:
    """Gradient descent: the direction is the gradient itself."""

    def direction(self, gradient: Float[Tensor, " moved"], state: Any) -> tuple[Float[Tensor, " moved"], Any]:
        """The gradient, and the state unchanged."""
        return gradient, state

    def time(self, steps: int) -> float:
        """The number of steps."""
        return float(steps)


@dataclass(frozen=True)
class Momentum:
    """Heavy ball (Polyak 1964): v <- decay v + g, starting from v = 0; the step is along v."""

    decay: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay={self.decay} of momentum must be at least 0 and below 1")

    def direction(self, gradient: Float[Tensor, " moved"], state: Any) -> tuple[Float[Tensor, " moved"], Any]:
        """The velocity, which is the state as well."""
        velocity = gradient if state is None else self.decay * state + gradient
        return velocity, velocity

    def time(self, steps: int) -> float:
        """The sum of the velocities that a constant gradient of 1 builds up.

        >>> Momentum(0.5).time(2)  # 1, then 1.5
        2.5
        """
        return sum((1 - self.decay**k) / (1 - self.decay) for k in range(1, steps + 1))


@dataclass(frozen=True)
class Preconditioned:
    """Each entry of the gradient, divided by the root of the mean of its squares so far.

    This is RMSProp (Hinton 2012) with the bias correction of Kingma and Ba (2015).
    decay: weight of the past in the running mean of squares.
    epsilon: a positive number added to the mean square, under the root.
    """

    decay: float = 0.99
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay={self.decay} of a preconditioner must be at least 0 and below 1")

    def direction(self, gradient: Float[Tensor, " moved"], state: Any) -> tuple[Float[Tensor, " moved"], Any]:
        """The gradient in units of its root mean square, entry by entry."""
        mean_square, count = (0.0, 0) if state is None else state
        mean_square = self.decay * mean_square + (1 - self.decay) * gradient**2
        corrected = mean_square / (1 - self.decay ** (count + 1))
        # The gradient of a dead unit is 0, where a root has no derivative, so epsilon is added under the root.
        return gradient / (corrected + self.epsilon).sqrt(), (mean_square, count + 1)

    def time(self, steps: int) -> float:
        """The number of steps, because all steps along a constant gradient are equal."""
        return float(steps)


PLAIN = Plain()
RULES = {"plain": Plain, "momentum": Momentum, "preconditioned": Preconditioned}


def rule_name(rule: StepRule) -> str:
    """The name of the rule in a configuration; for a rule that the user wrote, the name of its class."""
    return next((name for name, kind in RULES.items() if type(rule) is kind), type(rule).__name__)
