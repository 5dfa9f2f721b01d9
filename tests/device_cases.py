"""Every operator and every quantity as functions of where it is computed: the same numbers must come out anywhere."""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from cases import NETWORKS, randn
from torch import Tensor

import hessian_tools as ht
from hessian_tools.curvature import Extremes, Operator, curvature_along, quadrature, rademacher
from hessian_tools.loss import Batch, LossFunction

DEVICE_CASES = NETWORKS


@dataclass(frozen=True)
class Place:
    """A case on a device."""

    loss: LossFunction
    thetas: Tensor
    batch: Batch

    @property
    def H(self) -> Operator:
        return ht.hessian(self.loss, self.thetas, self.batch)

    @property
    def G(self) -> Operator:
        return ht.gauss_newton(self.loss, self.thetas, self.batch)

    def drawn(self, *shape: int) -> Tensor:
        return randn(*shape, path=f"drawn/{shape}").to(self.thetas)


def place(case: Any, device: torch.device | str) -> Place:
    return Place(case.loss, case.thetas.to(device), tuple(leaf.to(device) for leaf in case.batch))


def hessian(**options: Any) -> Callable[[Place], Operator]:
    return lambda here: ht.hessian(here.loss, here.thetas, here.batch, **options)


def subspace(here: Place) -> Tensor:
    return torch.linalg.qr(here.drawn(here.thetas.shape[-1], 4)).Q


OPERATORS: dict[str, Callable[[Place], Operator]] = {
    "direct": hessian(route="direct"),
    "traced": hessian(route="traced"),
    "loop": hessian(batching="loop"),
    "chunk": hessian(chunk=2),
    "shared": lambda here: ht.hessian(here.loss, here.thetas, tuple(b[0] for b in here.batch), shared=True),
    "batches": lambda here: ht.hessian(here.loss, here.thetas, [here.batch, tuple(b[:, :3] for b in here.batch)]),
    "single": lambda here: ht.hessian(here.loss, here.thetas[1], tuple(b[1] for b in here.batch)),
    "selected": lambda here: here.H.select(torch.tensor([2, 0], device="cpu")),
    "gauss-newton": lambda here: here.G,
    "combination": lambda here: here.H - 2 * here.G,
    "block": lambda here: here.H.block("body"),
    "module": lambda here: next(iter(here.H.blocks().values())),
    "restriction": lambda here: here.H.restrict(subspace(here)),
    "restriction-a-point": lambda here: here.H.restrict(subspace(here).expand(3, -1, -1)),
}


def product(make: Callable[[Place], Operator]) -> Callable[[Place], Any]:
    def products(here: Place) -> list[Tensor]:
        H = make(here)
        V = here.drawn(H.num_params, 2)
        return [H @ V, H.mv(V[:, 0])]

    return products


def set_nan(here: Place) -> Operator:
    """Its second point is not finite."""
    factor = torch.tensor([[1.0], [torch.nan], [1.0]], device="cpu").to(here.thetas)
    return ht.hessian(here.loss, here.thetas * factor, here.batch)


def exhausted(here: Place) -> Operator:
    """Of rank two: Lanczos has to begin again at random."""
    spectrum = torch.tensor([3.0, -2.0, *[0.0] * 18], dtype=torch.float64, device="cpu").to(here.thetas.device)
    return ht.hessian(
        lambda theta, a: (a * theta**2).sum() / 2, torch.stack([spectrum, spectrum]), spectrum, shared=True
    )


def on_probes(here: Place) -> Tensor:
    return rademacher(here.thetas.shape[-1], 4).to(here.thetas)


def along_gradient(here: Place) -> Any:
    g = ht.gradient(here.loss, here.thetas, here.batch)
    return [curvature_along(g, here.H.mv(g)), ht.gradient_curvature(here.H, 0.1)]


def recorded(here: Place) -> Any:
    batch = tuple(b[0] for b in here.batch)
    save = ht.SaveAt(thetas=True, gradients=True)
    return ht.record(ht.learners.maml(2, 0.05), here.loss, here.thetas[0], batch, batch, save=save)


def checked(operator: Operator) -> list[Any]:
    check = ht.check_operator(operator, num_probes=1, max_points=1)
    assert all(finding.passed for finding in check.findings), str(check)
    return []


QUANTITIES: dict[str, Callable[[Place], Any]] = {
    "top_eigenpairs": lambda here: ht.top_eigenpairs(here.H, k=3, rtol=1e-5),
    "top_eigenpairs-single": lambda here: ht.top_eigenpairs(OPERATORS["single"](here), k=3, which="BE", rtol=1e-5),
    "extremal_eigenpairs": lambda here: ht.extremal_eigenpairs(here.H, magnitude=2, rtol=1e-5),
    "eigenpairs-of-a-block": lambda here: ht.top_eigenpairs(OPERATORS["block"](here), k=2, rtol=1e-5),
    "eigenpairs-not-finite": lambda here: ht.top_eigenpairs(set_nan(here), k=2, rtol=1e-5),
    "eigenpairs-exhausted": lambda here: ht.top_eigenpairs(exhausted(here), k=3),
    "trace": lambda here: ht.trace(here.H, num_probes=5),
    "trace-to-a-tolerance": lambda here: ht.trace(OPERATORS["combination"](here), num_probes=4, rtol=1.0),
    "trace-own-probes": lambda here: ht.trace(here.H, probes=on_probes(here)),
    "moments": lambda here: ht.moments(here.H, num_probes=20),
    "moments-exact": lambda here: ht.moments(OPERATORS["restriction"](here)),
    "density": lambda here: ht.spectral_density(here.H, num_probes=3, num_matvecs=6),
    "density-exact": lambda here: ht.spectral_density(OPERATORS["restriction"](here)),
    "density-not-finite": lambda here: ht.spectral_density(set_nan(here), num_probes=3, num_matvecs=6),
    "density-own-probes-and-grid": lambda here: ht.spectral_density(
        here.H, probes=on_probes(here), num_matvecs=6, grid=here.drawn(9), width=0.1
    ),
    "quadrature": lambda here: list(quadrature(here.H, on_probes(here), num_matvecs=5)),
    "gauss_newton_spectrum": lambda here: ht.gauss_newton_spectrum(here.loss, here.thetas, here.batch),
    "gradient": lambda here: ht.gradient(here.loss, here.thetas, here.batch),
    "along": along_gradient,
    "record": recorded,
    "check_operator": lambda here: checked(here.H),
    "check_operator-composed": lambda here: checked(OPERATORS["combination"](here).block("head")),
}

COMPUTED = {f"product-{name}": product(make) for name, make in OPERATORS.items()} | QUANTITIES


def tensors(result: Any) -> list[Tensor]:
    """Every tensor of a result, also of what it derives; in order."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, list | tuple):
        return [tensor for part in result for tensor in tensors(part)]
    derived = [result.isolated, result.cumulative] if isinstance(result, ht.Density) else []
    if not is_dataclass(result):
        return []
    return [tensor for f in fields(result) for tensor in tensors(getattr(result, f.name))] + derived


def compared(result: Any) -> list[Tensor]:
    """Those that rounding does not decide: residuals, and how many products they took, may differ."""
    if isinstance(result, ht.EigenPairs):
        return [result.values, result.converged]
    if isinstance(result, Extremes):
        return [tensor for f in fields(result) for tensor in compared(getattr(result, f.name))]
    return tensors(result)


def same(found: list[Tensor], expected: list[Tensor]) -> None:
    """To rounding, in units of the largest number of each tensor."""
    for mine, other in zip(found, expected, strict=True):
        scale = float(other.nan_to_num().abs().max()) if other.is_floating_point() and other.numel() else 0.0
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7 * scale, equal_nan=True)
