"""Operators cut into parts by their points: results are those of the whole, and few parts are held at a time."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from cases import NETWORKS, randn
from contract import close
from eigenvalue_checks import Matrices
from torch import Tensor

from hessian_tools.curvature import (
    Operator,
    adaptation_jacobian,
    gauss_newton,
    hessian,
    moments,
    rademacher,
    spectral_density,
    spectrum,
    top_eigenpairs,
    trace,
)
from hessian_tools.curvature.operators.loss_operator import LossOperator
from hessian_tools.curvature.operators.operator import Parts, part_by_part, row_products

CASE = NETWORKS[0]
OPERATORS = {
    "hessian": lambda H, G: H,
    "block": lambda H, G: H.block("body"),
    "restriction": lambda H, G: H.restrict(torch.linalg.qr(randn(3, H.num_params, 4, stream_name="Q")).Q),
    "scaled": lambda H, G: H.scaled(randn(3, H.num_params, stream_name="scale")),
    "difference": lambda H, G: H - G,
    "gram": lambda H, G: adaptation_jacobian(H, 0.1, steps=1).gram,
}


def whole_and_parts(name: str) -> tuple[Operator, Operator]:
    """The same operator twice: with memory for all points, and with memory for one point at a time."""
    operators = []
    for max_memory in (None, 1):
        H, G = (make(CASE.loss, CASE.thetas, CASE.batch, max_memory=max_memory) for make in (hessian, gauss_newton))
        operators.append(OPERATORS[name](H, G))
    return operators[0], operators[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
def test_every_quantity_is_the_same_part_by_part(name: str) -> None:
    whole, cut = whole_and_parts(name)
    assert [part is whole for part in whole.parts()] == [True]
    assert isinstance(cut.parts(), Parts)
    assert [part.num_points for part in cut.parts()] == [1, 1, 1]
    n = whole.num_params
    probes = rademacher(n, 3 * 5).double().view(n, 3, 5).permute(1, 0, 2)

    def numbers(H: Operator) -> list[Tensor]:
        given, drawn = trace(H, probes=probes), trace(H, num_probes=4, method="probes", rtol=1e-9, max_probes=6)
        spread = moments(H, probes=probes)
        density = spectral_density(H, probes=probes, num_matvecs=3)
        pairs = top_eigenpairs(H, k=1, rtol=1e-6, copies=False, method="lanczos")
        exact = trace(H, method="exact")
        return [
            *(given.value, given.stderr, drawn.samples, exact.value, density.nodes, density.weights, pairs.values),
            *(spread.trace.value, spread.frobenius_squared.stderr, spread.diagonal.value, spread.diagonal.stderr),
        ]

    for one, other in zip(numbers(whole), numbers(cut), strict=True):
        close(other, one)


def test_no_product_has_more_points_than_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def products(self: LossOperator, V: Tensor) -> Tensor:
        seen.append(len(V))
        return plain(self, V)

    plain = LossOperator.products
    monkeypatch.setattr(LossOperator, "at_once", 2)
    monkeypatch.setattr(LossOperator, "products", products)
    H = hessian(CASE.loss, CASE.thetas, CASE.batch)
    for quantity in (trace, moments, partial(spectral_density, num_matvecs=5), partial(trace, method="exact")):
        reports: list[tuple[int, int]] = []
        seen.clear()
        if quantity in (trace, moments):
            quantity(H, num_probes=20, progress=lambda done, total, reports=reports: reports.append((done, total)))
            assert reports == [(16, 40), (20, 40), (36, 40), (40, 40)]
        else:
            quantity(H)
        assert set(seen) == {1, 2}


def test_parts_are_a_sequence() -> None:
    H = hessian(CASE.loss, CASE.thetas, CASE.batch)
    parts = Parts(H, torch.arange(3).split(2))
    assert len(parts) == 2
    close(parts[-1].to_dense(), CASE.dense[2:])
    assert [part.num_points for part in parts[:1]] == [2]
    positions = part_by_part(H, lambda part, rows: (torch.arange(rows.start, rows.stop),))
    assert positions[0].tolist() == [0, 1, 2]


def test_the_number_of_rows_at_once_changes_no_result() -> None:
    H = hessian(CASE.loss, CASE.thetas, CASE.batch)
    rows = randn(3, 5, H.num_params, stream_name="rows")
    for at_once in (1, 7, 100):
        close(row_products(H, rows, at_once=at_once), rows @ CASE.dense)


@dataclass(frozen=True)
class Watched(Matrices):
    """Matrices that are taken one point at a time and watch how long their parts live.

    parts_made: weak references to all parts. alive: for each product, how many parts existed at that time.
    """

    parts_made: list[weakref.ref[Matrices]] = field(default_factory=list)
    alive: list[int] = field(default_factory=list)

    @property
    def at_once(self) -> int:
        return 1

    def products(self, V: Tensor) -> Tensor:
        self.alive.append(sum(part() is not None for part in self.parts_made))
        return super().products(V)

    def select(self, points: Tensor) -> "Watched":
        part = Watched(self.A[points], self.parts_made, self.alive)
        self.parts_made.append(weakref.ref(part))
        return part


@pytest.mark.parametrize(
    "quantity",
    [
        partial(top_eigenpairs, k=2, method="lanczos", copies=True),
        partial(top_eigenpairs, k=2, method="exact"),
        partial(spectrum, method="dense"),
        partial(spectrum, method="range finder", max_rank=32),
        trace,
        moments,
        partial(spectral_density, num_probes=2, num_matvecs=4),
    ],
    ids=["lanczos", "exact", "dense", "range", "trace", "moments", "density"],
)
def test_a_part_is_released_when_the_next_ones_are_used(quantity: Callable[[Operator], object]) -> None:
    """Otherwise the data that the parts keep for their products would add up. A few parts may exist at a time."""
    H = Watched(torch.diag_embed(randn(12, 150, stream_name="watched")))
    quantity(H)
    assert len(H.parts_made) >= 12
    assert max(H.alive) <= 3
