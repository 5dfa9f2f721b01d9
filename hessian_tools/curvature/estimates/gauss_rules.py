"""Gauss rules of the spectrum as random probes see it, at every point: the nodes and weights of a density.

The measure of a probe z is sum_i (u_i'z)^2 / z'z delta(lambda - lambda_i). All runs of Lanczos, one for each probe
and point, go on together, as many as their vectors fit in memory. (Golub, Meurant 1994; Ubaru, Chen, Saad 2017.)
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hessian_tools.curvature.eigen.lanczos import gauss_quadrature
from hessian_tools.curvature.engines.memory import memory_budget
from hessian_tools.curvature.operators.operator import Operator
from hessian_tools.curvature.operators.parts import part_by_part
from hessian_tools.curvature.progress import Count, Progress
from hessian_tools.torch_fixes.precision import full_precision


@dataclass(frozen=True)
class GaussRule:
    """Nodes, rising, their weights, and how far off an eigenvalue may be from a node: some eigenvalue is that near."""

    nodes: Float[Tensor, "*point node"]
    weights: Float[Tensor, "*point node"]
    residuals: Float[Tensor, "*point node"]


@full_precision
def quadrature(
    H: Operator, probes: Tensor, *, num_matvecs: int, seed: int = 0
) -> tuple[Float[Tensor, "*point probe node"], Float[Tensor, "*point probe node"]]:
    """Nodes, rising, and weights of each probe's Gauss rule: sum_i weights[i] nodes[i]^j = z'H^j z / z'z, j < 2 nodes.

    probes: [param, probe] for all points or [point, param, probe], of any length. There are
    min(num_matvecs, num_params) nodes. As many runs at a time as their Lanczos vectors fit in memory.

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
    """The same with residuals, [*point, probe, node] each."""
    num_points = H.num_points or 1
    if probes.ndim not in (2, 3) or probes.shape[-2] != H.num_params or probes.shape[:-2] not in ((), (num_points,)):
        raise ValueError(
            f"probes have shape {list(probes.shape)}; give [{H.num_params}, probe] or "
            f"[{num_points}, {H.num_params}, probe]"
        )
    steps = min(num_matvecs, H.num_params)
    count = Count(num_points * probes.shape[-1] * steps, progress)

    def of_part(part: Operator, rows: slice) -> tuple[Tensor, ...]:
        return _of_part(part, probes if probes.ndim == 2 else probes[rows], steps, seed, count)

    whole = part_by_part(H, of_part)
    return GaussRule(*(part[0] for part in whole)) if H.num_points is None else GaussRule(*whole)


def _of_part(H: Operator, probes: Tensor, steps: int, seed: int, count: Count) -> tuple[Tensor, ...]:
    """As many runs at a time as fit."""
    run_bytes = steps * H.num_params * torch.empty(0, dtype=H.dtype, device="cpu").element_size()
    runs = max(1, memory_budget(H.device) // run_bytes)
    num_points, pieces = H.num_points or 1, []
    for points in torch.arange(num_points, device="cpu").split(runs):
        here = H if len(points) == num_points else H.select(points)
        mine = probes if probes.ndim == 2 else probes[points.to(probes.device)]
        columns = mine.split(max(1, runs // len(points)), dim=-1)
        rules = [_piece(here, block.to(H.device, H.dtype), steps, seed, count) for block in columns]
        pieces.append([torch.cat(parts, dim=-2) for parts in zip(*rules, strict=True)])
    return tuple(torch.cat(parts).to(H.device, H.dtype) for parts in zip(*pieces, strict=True))


def _piece(H: Operator, probes: Tensor, steps: int, seed: int, count: Count) -> list[Tensor]:
    """Nodes, weights and residuals [point, probe, node] of a block of probes, all in one Lanczos run."""
    num_points, num_probes = H.num_points or 1, probes.shape[-1]
    starts = probes.mT.expand(num_points, num_probes, -1).flatten(0, 1)
    parts = gauss_quadrature(_ProbesAsPoints(H, num_probes, count), starts, num_steps=steps, seed=seed)
    shape = (num_points, num_probes)
    return [part.unflatten(0, shape) for part in parts]


@dataclass(frozen=True)
class _ProbesAsPoints(Operator):
    """H with every (point, probe) as a point of its own; a product is still one block product of H."""

    H: Operator
    num_probes: int
    count: Count

    @property
    def num_params(self) -> int:
        return self.H.num_params

    @property
    def num_points(self) -> int:
        return (self.H.num_points or 1) * self.num_probes

    @property
    def dtype(self) -> torch.dtype:
        return self.H.dtype

    @property
    def device(self) -> torch.device:
        return self.H.device

    def products(self, V: Float[Tensor, "run param column"]) -> Float[Tensor, "run param column"]:
        columns = V[..., 0].unflatten(0, (-1, self.num_probes)).mT
        products = self.H.products(columns).mT.flatten(0, 1)[..., None]
        self.count.add(self.num_points)
        return products

    def select(self, points: Int[Tensor, " chosen"]) -> Operator:
        raise NotImplementedError("runs of one point stay together; select points of H itself")
