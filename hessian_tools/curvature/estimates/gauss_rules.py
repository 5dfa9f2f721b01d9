"""Gauss rules for the spectral measures of random probes, at every point.

The spectral measure of a probe z is sum_i (u_i'z)^2 / z'z delta(lambda - lambda_i), where u_i are the eigenvectors. Its
Gauss rule has nodes and weights, of which a spectral density is made. There is one Lanczos run for each probe and
point. As many runs are computed at once as fit in memory with their basis vectors.
(Golub, Meurant 1994; Ubaru, Chen, Saad 2017.)
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from hessian_tools.curvature.eigen.lanczos import gauss_quadrature
from hessian_tools.curvature.engines.memory import memory_budget
from hessian_tools.curvature.operators.composite import Derived
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.curvature.operators.parts import part_by_part
from hessian_tools.progress import Progress, ProgressCounter
from hessian_tools.torch_fixes.precision import full_precision


@dataclass(frozen=True)
class GaussRule:
    """Ascending nodes, their weights and residuals. An exact eigenvalue lies within the residual of each node."""

    nodes: Float[Tensor, "*point node"]
    weights: Float[Tensor, "*point node"]
    residuals: Float[Tensor, "*point node"]


@full_precision
def quadrature(
    H: Operator, probes: Num[Tensor, "*#point param probe"], *, num_matvecs: int, seed: int = 0
) -> tuple[Float[Tensor, "*point probe node"], Float[Tensor, "*point probe node"]]:
    """The ascending nodes and the weights of each probe's Gauss rule.

    The rule integrates powers of the eigenvalues exactly: sum_i weights[i] nodes[i]^j = z'H^j z / z'z for all j < 2 m,
    where m = min(num_matvecs, num_params) is the number of nodes.
    probes: [param, probe] for all points or [point, param, probe]; their lengths |z| do not matter. seed: of the random
    vectors that continue a run whose Krylov space is exhausted.
    Raises ValueError for probes of another shape.

    >>> from hessian_tools.curvature import hessian
    >>> H = hessian(lambda theta, a: (a * theta**2).sum() / 2, torch.zeros(2), torch.tensor([1.0, 3.0]))
    >>> nodes, weights = quadrature(H, torch.ones(2, 1), num_matvecs=1)  # z'Hz / z'z
    >>> round(float(nodes), 6), round(float(weights), 6)
    (2.0, 1.0)
    """
    rule = gauss_rules(H, probes, num_matvecs=num_matvecs, seed=seed)
    return rule.nodes, rule.weights


def gauss_rules(
    H: Operator, probes: Tensor, *, num_matvecs: int, seed: int = 0, progress: Progress | None = None
) -> GaussRule:
    """The rules of :func:`quadrature` with their residuals, as tensors [*point, probe, node]."""
    num_points = H.num_points or 1
    if probes.ndim not in (2, 3) or probes.shape[-2] != H.num_params or probes.shape[:-2] not in ((), (num_points,)):
        raise ValueError(
            f"probes have shape {list(probes.shape)}; give [{H.num_params}, probe] or "
            f"[{num_points}, {H.num_params}, probe]"
        )
    steps = min(int(num_matvecs), H.num_params)
    counter = ProgressCounter(num_points * probes.shape[-1] * steps, progress)

    def part_rules(part: Operator, rows: slice) -> tuple[Tensor, ...]:
        """The rules at some of the points of H. rows: the positions of these points."""
        return _rules_in_blocks(part, probes if probes.ndim == 2 else probes[rows], steps, seed, counter)

    rules = part_by_part(H, part_rules)
    return GaussRule(*(tensor[0] for tensor in rules)) if H.num_points is None else GaussRule(*rules)


def _rules_in_blocks(
    H: Operator, probes: Tensor, steps: int, seed: int, counter: ProgressCounter
) -> tuple[Tensor, ...]:
    """Nodes, weights and residuals, from as many Lanczos runs at a time as fit in memory with their basis vectors."""
    run_bytes = steps * H.num_params * H.dtype.itemsize
    max_runs = max(1, memory_budget(H.device) // run_bytes)
    num_points, pieces = H.num_points or 1, []
    for points in torch.arange(num_points, device="cpu").split(max_runs):
        selected = H if len(points) == num_points else H.select(points)
        columns = probes if probes.ndim == 2 else probes[points.to(probes.device)]
        blocks = columns.split(max(1, max_runs // len(points)), dim=-1)
        rules = [_rules_of_one_run(selected, block.to(H.device, H.dtype), steps, seed, counter) for block in blocks]
        # The nodes, weights and residuals of all probes at these points.
        pieces.append([torch.cat(tensors, dim=-2) for tensors in zip(*rules, strict=True)])
    return tuple(torch.cat(tensors).to(H.device, H.dtype) for tensors in zip(*pieces, strict=True))


def _rules_of_one_run(H: Operator, probes: Tensor, steps: int, seed: int, counter: ProgressCounter) -> list[Tensor]:
    """Nodes, weights and residuals [point, probe, node] of all points and probes, from one batched Lanczos run."""
    num_points, num_probes = H.num_points or 1, probes.shape[-1]
    starts = probes.mT.expand(num_points, num_probes, -1).flatten(0, 1)
    tensors = gauss_quadrature(_ProbesAsPoints(H, num_probes, counter), starts, num_steps=steps, seed=seed)
    return [tensor.unflatten(0, (num_points, num_probes)) for tensor in tensors]


@dataclass(frozen=True)
class _ProbesAsPoints(Derived):
    """H with every pair (point, probe) as a separate point. Its products are block products of H."""

    H: Operator
    num_probes: int
    counter: ProgressCounter

    @property
    def source(self) -> Operator:
        """The operator from which ``Derived`` takes the size, the dtype and the device."""
        return self.H

    @property
    def num_points(self) -> int:
        return (self.H.num_points or 1) * self.num_probes

    def products(self, V: Float[Tensor, "run param column"]) -> Float[Tensor, "run param column"]:
        # Lanczos multiplies one column for each run, so the last axis has length one.
        columns = V[..., 0].unflatten(0, (-1, self.num_probes)).mT
        products = self.H.products(columns).mT.flatten(0, 1)[..., None]
        self.counter.add(self.num_points)
        return products

    def select(self, points: Int[Tensor, " chosen"]) -> Operator:
        raise NotImplementedError("the runs of one point stay together; select points of H instead")
