"""Every operator and every quantity as a function of a case whose tensors lie on some device.

All devices must give the same numbers.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from cases import NETWORKS, randn
from torch import Tensor

import hessian_tools as ht
from hessian_tools.curvature import Extremes, Operator, Spectrum, curvature_along, quadrature, rademacher
from hessian_tools.loss import Batch, LossFunction

DEVICE_CASES = NETWORKS


@dataclass(frozen=True)
class PlacedCase:
    """A case whose tensors lie on some device."""

    loss: LossFunction
    thetas: Tensor
    batch: Batch

    @property
    def H(self) -> Operator:
        return ht.hessian(self.loss, self.thetas, self.batch)

    @property
    def G(self) -> Operator:
        return ht.gauss_newton(self.loss, self.thetas, self.batch)

    def random(self, *shape: int) -> Tensor:
        """Random numbers that are the same on every device."""
        return randn(*shape, stream_name=f"drawn/{shape}").to(self.thetas)


def place(case: Any, device: torch.device | str) -> PlacedCase:
    """Move the tensors of a case to a device."""
    return PlacedCase(case.loss, case.thetas.to(device), tuple(leaf.to(device) for leaf in case.batch))


def hessian(**options: Any) -> Callable[[PlacedCase], Operator]:
    """A function that makes the Hessian of a placed case with these options."""
    return lambda placed: ht.hessian(placed.loss, placed.thetas, placed.batch, **options)


def several_batches(placed: PlacedCase) -> Operator:
    """The Hessian over two batches at each point; the second has the first three examples of the first."""
    return ht.hessian(placed.loss, placed.thetas, [placed.batch, tuple(b[:, :3] for b in placed.batch)])


def subspace(placed: PlacedCase) -> Tensor:
    """Four random orthonormal directions [param, 4]."""
    return torch.linalg.qr(placed.random(placed.thetas.shape[-1], 4)).Q


OPERATORS: dict[str, Callable[[PlacedCase], Operator]] = {
    "direct": hessian(route="direct"),
    "traced": hessian(route="traced"),
    "loop": hessian(batching="loop"),
    "chunk": hessian(chunk=2),
    "shared": lambda placed: ht.hessian(placed.loss, placed.thetas, tuple(b[0] for b in placed.batch), shared=True),
    "batches": several_batches,
    "single": lambda placed: ht.hessian(placed.loss, placed.thetas[1], tuple(b[1] for b in placed.batch)),
    "selected": lambda placed: placed.H.select(torch.tensor([2, 0], device="cpu")),
    "gauss-newton": lambda placed: placed.G,
    "combination": lambda placed: placed.H - 2 * placed.G,
    "block": lambda placed: placed.H.block("body"),
    "module": lambda placed: next(iter(placed.H.blocks().values())),
    "restriction": lambda placed: placed.H.restrict(subspace(placed)),
    "restriction-at-each-point": lambda placed: placed.H.restrict(subspace(placed).expand(3, -1, -1)),
    "scaled": lambda placed: placed.H.scaled(placed.random(placed.thetas.shape[-1])),
}


def product(make: Callable[[PlacedCase], Operator]) -> Callable[[PlacedCase], Any]:
    """A function that makes an operator and multiplies it by a matrix [param, 2] and by a vector [param]."""

    def products(placed: PlacedCase) -> list[Tensor]:
        H = make(placed)
        V = placed.random(H.num_params, 2)
        return [H @ V, H.mv(V[:, 0])]

    return products


def set_nan(placed: PlacedCase) -> Operator:
    """A Hessian whose second point is not finite."""
    factor = torch.tensor([[1.0], [torch.nan], [1.0]], device="cpu").to(placed.thetas)
    return ht.hessian(placed.loss, placed.thetas * factor, placed.batch)


def exhausted(placed: PlacedCase) -> Operator:
    """A Hessian of rank two, whose Krylov space is exhausted early, so that Lanczos restarts at random."""
    spectrum = torch.tensor([3.0, -2.0, *[0.0] * 18], dtype=torch.float64, device="cpu").to(placed.thetas.device)
    return ht.hessian(
        lambda theta, a: (a * theta**2).sum() / 2, torch.stack([spectrum, spectrum]), spectrum, shared=True
    )


def given_probes(placed: PlacedCase) -> Tensor:
    """Four Rademacher probes, for functions that accept probes of the caller."""
    return rademacher(placed.thetas.shape[-1], 4).to(placed.thetas)


def along_gradient(placed: PlacedCase) -> Any:
    """The curvature along the gradient, once from a product and once from the operator."""
    g = ht.gradient(placed.loss, placed.thetas, placed.batch)
    return [curvature_along(g, placed.H.mv(g)), ht.gradient_curvature(placed.H, 0.1)]


def recorded(placed: PlacedCase) -> Any:
    """The trajectory of two steps of gradient descent from the first point."""
    batch = tuple(b[0] for b in placed.batch)
    save = ht.SaveAt(thetas=True, gradients=True)
    return ht.record(ht.learners.maml(2, 0.05), placed.loss, placed.thetas[0], batch, batch, save=save)


def checked(operator: Operator) -> list[Any]:
    """Assert that the operator passes its own checks. There is no result to compare between devices."""
    check = ht.check_operator(operator, num_probes=1, max_points=1)
    assert all(finding.passed for finding in check.findings), str(check)
    return []


def audited(placed: PlacedCase) -> list[Any]:
    """Assert that a product of ours passes the audit where the batch lies."""
    batch = tuple(leaf[0] for leaf in placed.batch)
    model = deepcopy(placed.loss.model).to(placed.thetas.device, placed.thetas.dtype)
    H = ht.hessian_of(model, placed.loss.criterion, batch)
    found = ht.audit(H.mv, model, placed.loss.criterion, batch, num_probes=1)
    assert found.passed, str(found)
    return []


QUANTITIES: dict[str, Callable[[PlacedCase], Any]] = {
    "top_eigenpairs": lambda placed: ht.top_eigenpairs(placed.H, k=3, rtol=1e-5),
    "top_eigenpairs-single": lambda placed: ht.top_eigenpairs(OPERATORS["single"](placed), k=3, which="BE", rtol=1e-5),
    "extremal_eigenpairs": lambda placed: ht.extremal_eigenpairs(placed.H, magnitude=2, rtol=1e-5),
    "eigenpairs-of-a-block": lambda placed: ht.top_eigenpairs(OPERATORS["block"](placed), k=2, rtol=1e-5),
    "eigenpairs-not-finite": lambda placed: ht.top_eigenpairs(set_nan(placed), k=2, rtol=1e-5),
    "eigenpairs-exhausted": lambda placed: ht.top_eigenpairs(exhausted(placed), k=3),
    "trace": lambda placed: ht.trace(placed.H, num_probes=5),
    "trace-to-a-tolerance": lambda placed: ht.trace(OPERATORS["combination"](placed), num_probes=4, rtol=1.0),
    "trace-own-probes": lambda placed: ht.trace(placed.H, probes=given_probes(placed)),
    "moments": lambda placed: ht.moments(placed.H, num_probes=20),
    "moments-exact": lambda placed: ht.moments(OPERATORS["restriction"](placed)),
    "density": lambda placed: ht.spectral_density(placed.H, num_probes=3, num_matvecs=6),
    "density-exact": lambda placed: ht.spectral_density(OPERATORS["restriction"](placed)),
    "density-not-finite": lambda placed: ht.spectral_density(set_nan(placed), num_probes=3, num_matvecs=6),
    "density-own-probes-and-grid": lambda placed: ht.spectral_density(
        placed.H, probes=given_probes(placed), num_matvecs=6, grid=placed.random(9), width=0.1
    ),
    "quadrature": lambda placed: list(quadrature(placed.H, given_probes(placed), num_matvecs=5)),
    "gauss_newton_spectrum": lambda placed: ht.gauss_newton_spectrum(placed.loss, placed.thetas, placed.batch),
    "gradient": lambda placed: ht.gradient(placed.loss, placed.thetas, placed.batch),
    "along": along_gradient,
    "record": recorded,
    "audit": audited,
    "check_operator": lambda placed: checked(placed.H),
    "check_operator-composed": lambda placed: checked(OPERATORS["combination"](placed).block("head")),
}

COMPUTED = {f"product-{name}": product(make) for name, make in OPERATORS.items()} | QUANTITIES


def tensors(result: Any) -> list[Tensor]:
    """All tensors of a result in order, including those of its properties."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, list | tuple):
        return [tensor for part in result for tensor in tensors(part)]
    derived = [result.isolated, result.cumulative] if isinstance(result, ht.Density) else []
    if not is_dataclass(result):
        return []
    return [tensor for f in fields(result) for tensor in tensors(getattr(result, f.name))] + derived


def compared(result: Any) -> list[Tensor]:
    """The tensors of a result that must agree between devices up to rounding errors.

    Residuals and numbers of products need not: a rounding error can change them completely.
    """
    if isinstance(result, ht.EigenPairs):
        return [result.values, result.converged]
    if isinstance(result, Spectrum):
        # The stated error is a multiple of rounding, so it agrees in the unit of the largest eigenvalue and no closer.
        return [result.values, result.error + result.values.abs().amax(-1)]
    if isinstance(result, Extremes):
        return [tensor for f in fields(result) for tensor in compared(getattr(result, f.name))]
    return tensors(result)


def same(result: list[Tensor], expected: list[Tensor]) -> None:
    """Assert that both lists agree up to rounding errors, relative to the largest number of each tensor."""
    for actual, other in zip(result, expected, strict=True):
        scale = float(other.nan_to_num().abs().max()) if other.is_floating_point() and other.numel() else 0.0
        torch.testing.assert_close(actual, other, rtol=1e-6, atol=1e-7 * scale, equal_nan=True)
