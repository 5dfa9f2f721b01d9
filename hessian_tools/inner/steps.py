"""Step rules: the direction of an inner step, from the gradients so far.

A rule is a small frozen object: ``direction(gradient, state) -> (direction, state)`` with ``None`` for
the state before the first step, and ``time(steps)``: by how many plain steps that many of its steps
move along a gradient that does not change. SHOT compares loops of equal time by it.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class StepRule(Protocol):
    """What an inner loop asks of a step rule; differentiable in the gradients."""

    def direction(self, gradient: Float[Tensor, " moved"], state: Any) -> tuple[Float[Tensor, " moved"], Any]:
        """What the step size multiplies, and the state for the next step."""
        ...

    def time(self, steps: int) -> float:
        """Length of ``steps`` steps along a constant gradient, in plain steps."""
        ...


@dataclass(frozen=True)
class Plain:
    """Gradient descent: the gradient itself."""

    def direction(self, gradient: Float[Tensor, " moved"], state: Any) -> tuple[Float[Tensor, " moved"], Any]:
        """The gradient."""
        return gradient, state

    def time(self, steps: int) -> float:
        """The number of steps."""
        return float(steps)


@dataclass(frozen=True)
class Momentum:
    """Heavy ball (Polyak 1964): v <- decay v + g, step along v, from rest."""

    decay: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay={self.decay} of momentum must be at least 0 and below 1")

    def direction(self, gradient: Float[Tensor, " moved"], state: Any) -> tuple[Float[Tensor, " moved"], Any]:
        """The velocity."""
        velocity = gradient if state is None else self.decay * state + gradient
        return velocity, velocity

    def time(self, steps: int) -> float:
        """Sum of the velocities that a unit gradient builds up.

        >>> Momentum(0.5).time(2)  # 1, then 1.5
        2.5
        """
        return sum((1 - self.decay**k) / (1 - self.decay) for k in range(1, steps + 1))


@dataclass(frozen=True)
class Preconditioned:
    """Each entry over the root of its mean square so far (RMSProp, Hinton 2012; bias corrected as in Kingma, Ba 2015).

    epsilon is added to the mean square, under the root: a root has no derivative at 0, where the
    gradients of dead units are.
    """

    decay: float = 0.99
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay={self.decay} of a preconditioner must be at least 0 and below 1")
        if not self.epsilon > 0:
            raise ValueError(f"epsilon={self.epsilon} must be positive: the mean square may be 0")

    def direction(self, gradient: Float[Tensor, " moved"], state: Any) -> tuple[Float[Tensor, " moved"], Any]:
        """The gradient in units of its root mean square, entry by entry."""
        before, count = (0.0, 0) if state is None else state
        square = self.decay * before + (1 - self.decay) * gradient**2
        corrected = square / (1 - self.decay ** (count + 1))
        return gradient / (corrected + self.epsilon).sqrt(), (square, count + 1)

    def time(self, steps: int) -> float:
        """The number of steps: along a constant gradient every step is the same."""
        return float(steps)


PLAIN = Plain()
