"""Operators that are wrong on purpose, by the order of differentiation, a factor or a constant.

The tests of the self-check use them, and some correct ones beside them.
"""

import torch
from cases import NETWORKS, Case, at
from torch import Tensor
from torch.func import grad, jacrev, jvp, vmap

from hessian_tools.curvature import Check, Hessian, Operator, hessian

CONV = next(case for case in NETWORKS if case.name == "conv-batchnorm")


class ByRoute(Hessian):
    """A Hessian whose products come from the method ``route``, which differentiates in another order at each point."""

    def products(self, V: Tensor) -> Tensor:
        batches = self.objective.batches[0]
        rows = []
        for i, theta in enumerate(self.objective.thetas):
            batch = batches if self.objective.shared else at(batches, i)
            rows.append(torch.stack([self.route(theta, batch, v) for v in V[i].T], dim=-1))
        return torch.stack(rows).detach()


class ForwardOverJacrev(ByRoute):
    """Wrong through F.batch_norm by 2 %."""

    def route(self, theta: Tensor, batch: object, v: Tensor) -> Tensor:
        return jvp(jacrev(lambda t: self.objective.loss(t, batch)), (theta,), (v,))[1]


class ReverseOverForward(ByRoute):
    """Wrong through F.batch_norm by 25 %."""

    def route(self, theta: Tensor, batch: object, v: Tensor) -> Tensor:
        return grad(lambda t: jvp(lambda s: self.objective.loss(s, batch), (t,), (v,))[1])(theta)


class ReverseOverReverse(ByRoute):
    """Correct."""

    def route(self, theta: Tensor, batch: object, v: Tensor) -> Tensor:
        return grad(lambda t: grad(lambda s: self.objective.loss(s, batch))(t) @ v)(theta)


class OutsideVmap(Hessian):
    """Forward mode around the batched gradient, where torch differentiates batch normalisation wrongly."""

    def products(self, V: Tensor) -> Tensor:
        def gradients(thetas: Tensor) -> Tensor:
            return vmap(grad(self.objective.loss))(thetas, self.objective.batches[0])

        columns = [jvp(gradients, (self.objective.thetas,), (v,))[1] for v in V.unbind(-1)]
        return torch.stack(columns, dim=-1).detach()


class SlightlyScaled(Hessian):
    """Its products are symmetric and linear, but wrong by a factor."""

    def products(self, V: Tensor) -> Tensor:
        return 1.001 * super().products(V)


class Affine(Hessian):
    """A constant is added to every product, so that they are not linear."""

    def products(self, V: Tensor) -> Tensor:
        return super().products(V) + 1e-3


class WrongInPieces(Hessian):
    """Its products are right for several vectors at once and wrong for one vector."""

    def products(self, V: Tensor) -> Tensor:
        one_at_a_time = self.engine.chunk == 1  # the number of products that the engine runs at once
        return super().products(V) * (1 + 1e-6 * one_at_a_time)


class Dense(Operator):
    """A matrix that is not made from a loss."""

    num_points, dtype, device = None, torch.float64, torch.device("cpu")

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    @property
    def num_params(self) -> int:
        return len(self.matrix)

    def products(self, V: Tensor) -> Tensor:
        return self.matrix @ V

    def select(self, points: Tensor) -> Operator:
        raise NotImplementedError


def wrong_hessian(kind: type[Hessian], case: Case = CONV, dtype: torch.dtype = torch.float64) -> Hessian:
    """The Hessian of a case, with the products of one of the classes above."""
    H = hessian(case.loss, case.thetas.to(dtype), case.batch)
    return kind(H.prepared, H.single)


def failed(check: Check) -> set[str]:
    """The names of the findings that did not pass."""
    return {finding.name for finding in check.findings if finding.passed is False}


def cubic(theta: Tensor, _: object) -> Tensor:
    """A loss whose Hessian is the diagonal matrix with the entries 6 theta."""
    return (theta**3).sum()
