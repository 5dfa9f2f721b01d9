"""Lanczos at many points in lockstep: when points finish, what their results are, and how many products they cost."""

import numpy as np
import torch
from cases import randn, symmetric
from eigenvalue_checks import Matrices
from torch import Tensor

from hessian_tools.curvature.eigen.batched_lanczos import BatchedLanczos, Limits, RitzState, StoppingRule
from hessian_tools.curvature.eigen.deflation import with_missed_copies
from hessian_tools.curvature.eigen.krylov import KrylovBasis
from hessian_tools.curvature.eigen.lanczos import gauss_quadrature, lanczos
from hessian_tools.curvature.eigen.selection import RitzPairs, Selection, in_order

TOP = (Selection("LA", k=2, rtol=1e-8),)
LIMITS = Limits(seed=0, max_steps=60, max_basis=60)


def decaying(n: int = 60) -> Tensor:
    """The eigenvalues 1, 1/2, 1/4, ..."""
    return 2.0 ** -torch.arange(n, dtype=torch.float64)


class AfterSteps(StoppingRule):
    """A rule by which each point finishes after its own number of steps, with its largest Ritz value."""

    def __init__(self, steps: list[int]) -> None:
        self.steps = torch.tensor(steps)

    def excess(self, state: RitzState) -> Tensor:
        return torch.where(self.steps[state.points] <= state.values.shape[1], 0.5, 2.0).double()

    def results(self, state: RitzState) -> Tensor:
        return torch.arange(state.values.shape[1]) == torch.full((len(state.points), 1), state.values.shape[1] - 1)

    def complete(self, state: RitzState) -> Tensor:
        return state.points % 2 == 0


def run_lanczos(H: Matrices, rule: StoppingRule, max_steps: int = 40) -> tuple[RitzPairs, list[int]]:
    """The result of a run, and the numbers of points that were reported as finished."""
    reports: list[int] = []
    first = randn(1, H.num_params, stream_name="start")
    locked = first.new_empty(len(H.A), 0, H.num_params)
    basis = KrylovBasis(first / first.norm(), locked, max_size=50, fresh=lambda step: first[0])
    selections = (Selection("LA", k=1, rtol=0.0),)
    limits = np.full(len(H.A), max_steps)
    return BatchedLanczos(H, basis, rule, selections, limits, reports.append).run(), reports


def test_every_point_finishes_by_the_rule_and_results_are_in_order() -> None:
    A = symmetric(decaying(), points=4)
    pairs, reports = run_lanczos(Matrices(A), AfterSteps([30, 4, 12, 4]))
    assert sum(reports) == 4 and reports[0] == 2
    assert pairs.num_matvecs[1] == pairs.num_matvecs[3] == 4
    assert (pairs.num_matvecs >= torch.tensor([30, 4, 12, 4])).all()
    assert pairs.converged.all()
    assert pairs.complete.tolist() == [True, False, True, False]
    residual = (A @ pairs.vectors[:, 0, :, None])[..., 0] - pairs.values * pairs.vectors[:, 0]
    assert (residual.norm(dim=-1) < torch.tensor([1e-9, 0.5, 1e-6, 0.5])).all()


def test_a_point_whose_products_run_out_has_not_converged() -> None:
    pairs, _ = run_lanczos(Matrices(symmetric(decaying(), points=2)), AfterSteps([4, 999]), max_steps=10)
    assert pairs.num_matvecs.tolist() == [4, 10]
    assert pairs.converged.tolist() == [True, False]
    assert not pairs.complete[1]


def test_no_product_is_taken_at_a_point_that_has_finished() -> None:
    products_at = []  # for each call, the number of points

    class Counting(Matrices):
        def products(self, V: Tensor) -> Tensor:
            products_at.append(len(V))
            return super().products(V)

        def select(self, points: Tensor) -> "Counting":
            return Counting(self.A[points])

    pairs, _ = run_lanczos(Counting(symmetric(decaying(), points=4)), AfterSteps([30, 4, 12, 4]))
    assert sum(products_at) == int(pairs.num_matvecs.sum())


def test_lanczos_finds_the_wanted_pairs_and_nan_stays_at_its_point() -> None:
    A = symmetric(decaying(), points=3)
    A[1, 0, 0] = torch.inf
    pairs = lanczos(Matrices(A), TOP, LIMITS)
    assert pairs.finite.tolist() == pairs.converged.tolist() == [True, False, True]
    assert pairs.values[1, 0].isnan() and pairs.vectors[1, 0].isnan().all()
    torch.testing.assert_close(pairs.values[[0, 2]], torch.tensor([[0.5, 1.0]] * 2).double())
    assert pairs.count.tolist() == [2, 1, 2]
    torch.testing.assert_close(pairs.norm[0], torch.tensor(1.0).double())


def test_the_search_adds_copies_that_one_run_cannot_find() -> None:
    """At the first point 3 is a triple eigenvalue, of which one run finds one copy and two are wanted.

    At the second point all eigenvalues are simple.
    """
    n, bulk = 80, torch.linspace(-1.0, 1.0, 80, dtype=torch.float64)
    copies, simple = bulk.clone(), bulk.clone()
    copies[:4] = torch.tensor([3.0, 3.0, 3.0, 2.0])
    simple[:4] = torch.tensor([5.0, 4.0, 3.0, 2.0])
    H = Matrices(torch.stack([symmetric(values, points=1)[0] for values in (copies, simple)]))
    limits = Limits(seed=0, max_steps=400, max_basis=n)
    first = lanczos(H, TOP, limits)
    torch.testing.assert_close(first.values[0], torch.tensor([2.0, 3.0]).double())
    assert not first.complete.any()
    both = with_missed_copies(H, TOP, first, limits)
    assert both.complete.all()
    assert both.count.tolist() == [3, 2]
    torch.testing.assert_close(both.values[0], torch.tensor([2.0, 3.0, 3.0]).double())
    assert both.values[1, 2] == 0 and (both.vectors[1, 2] == 0).all()  # padding
    overlaps = both.vectors[0] @ both.vectors[0].T
    torch.testing.assert_close(overlaps, torch.eye(3, dtype=torch.float64), atol=1e-6, rtol=0)
    assert both.wanted(TOP).count.tolist() == [2, 2]


def test_batches_of_points_come_back_in_order_and_padded() -> None:
    def pairs(values: list[list[float]], number: int) -> RitzPairs:
        rows = torch.tensor(values, dtype=torch.float64)
        count = torch.full((len(rows),), rows.shape[1])
        yes = torch.ones(len(rows), dtype=torch.bool)
        return RitzPairs(rows, rows[..., None].expand(-1, -1, 3), count, rows[:, 0], number * count, yes, yes, yes)

    joined = in_order([(torch.tensor([1]), pairs([[4.0, 5.0]], 1)), (torch.tensor([0, 2]), pairs([[1.0], [2.0]], 7))])
    assert joined.values.tolist() == [[1.0, 0.0], [4.0, 5.0], [2.0, 0.0]]
    assert joined.vectors[:, :, 2].tolist() == joined.values.tolist()
    assert joined.num_matvecs.tolist() == [7, 2, 7]
    assert joined.real.tolist() == [[True, False], [True, True], [True, False]]


def test_a_gauss_rule_has_the_moments_of_its_start() -> None:
    """sum_i w_i x_i^j = z'A^j z / z'z up to the degree 2 m - 1, at every point."""
    A, z = symmetric(torch.linspace(-1.0, 2.0, 20, dtype=torch.float64), points=2), randn(2, 20, stream_name="z")
    nodes, weights, _ = gauss_quadrature(Matrices(A), z, num_steps=4, seed=0)
    for degree in range(8):
        moment = torch.einsum("pi,pij,pj->p", z, torch.linalg.matrix_power(A, degree), z) / (z**2).sum(-1)
        torch.testing.assert_close((weights * nodes**degree).sum(-1), moment)
