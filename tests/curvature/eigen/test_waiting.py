"""The schedule of a GPU, on which the host waits for the device once in four steps, tried on the CPU.

The results must be those of the CPU's schedule within their residuals, and the waits are counted.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from cases import randn, symmetric
from eigenvalue_checks import Matrices, operator
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hessian_tools.curvature import top_eigenpairs
from hessian_tools.curvature.eigen import krylov
from hessian_tools.curvature.eigen.batched_lanczos import BatchedLanczos, Limits, RitzState
from hessian_tools.curvature.eigen.deflation import with_missed_copies
from hessian_tools.curvature.eigen.krylov import KrylovBasis
from hessian_tools.curvature.eigen.lanczos import gauss_quadrature, lanczos, lanczos_run, random_vector
from hessian_tools.curvature.eigen.selection import Selection
from hessian_tools.curvature.engines.compiled.compiled_products import Stacked, Traced

TOP = (Selection("LM", k=3, rtol=1e-6),)
N = 90


@pytest.fixture
def schedule_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the CPU be treated as a GPU is."""
    assert krylov.STEPS_PER_WAIT["cuda"] == 4
    monkeypatch.setitem(krylov.STEPS_PER_WAIT, "cpu", 4)


def decaying(points: int, n: int = N) -> Tensor:
    """Matrices with eigenvalues of both signs, whose magnitudes fall faster at the first points than at the last."""
    ratios = torch.linspace(0.6, 0.93, points, dtype=torch.float64)[:, None]
    signs = (-1.0) ** torch.arange(n, dtype=torch.float64)
    spectra = 8.0 * signs * ratios ** torch.arange(n, dtype=torch.float64)
    return torch.cat([symmetric(values, points=1) for values in spectra])


def basis_of(A: Tensor, max_size: int, fresh_vectors: list[int]) -> KrylovBasis:
    """A basis from a random vector. fresh_vectors: receives the steps at which a random vector is drawn."""
    n = A.shape[-1]

    def fresh(step: int) -> Tensor:
        fresh_vectors.append(step)
        return randn(n, stream_name=f"fresh/{step}")

    first = randn(1, n, stream_name="start")
    return KrylovBasis(first / first.norm(), A.new_empty(len(A), 0, n), max_size=max_size, fresh=fresh)


def in_one_block(basis: KrylovBasis, A: Tensor, count: int, step: int = 0) -> int:
    """Takes steps with A after which the host waits once; returns the number of discarded ones."""
    for _ in range(count):
        basis.extend((A @ basis.next[..., None])[..., 0])
    finite, discarded = basis.settle(step)
    assert finite.all()
    return discarded


def check_basis(basis: KrylovBasis, A: Tensor, scale: float) -> None:
    """Assert that the basis is orthonormal, that T is A in it, and that ``next`` is the unit vector that follows."""
    Q = basis.rows[:, : basis.size]
    rows = torch.cat([Q, basis.next[:, None]], 1)
    identity = torch.eye(basis.size + 1, dtype=A.dtype).expand(len(A), -1, -1)
    torch.testing.assert_close(rows @ rows.mT, identity, atol=1e-12, rtol=0)
    values = basis.pairs(np.arange(len(A)))[0]
    torch.testing.assert_close(values, torch.linalg.eigvalsh(Q @ A @ Q.mT), atol=1e-12 * scale, rtol=0)


def test_a_block_of_steps_makes_the_basis_and_the_matrix_of_single_steps(schedule_of_a_gpu) -> None:
    A = decaying(points=3)
    one_by_one, in_blocks = (basis_of(A, 20, []) for _ in range(2))
    for block in range(2):
        for step in range(4):
            one_by_one.advance((A @ one_by_one.next[..., None])[..., 0], 4 * block + step)
        assert in_one_block(in_blocks, A, 4, 4 * block) == 0
        check_basis(in_blocks, A, 8.0)
    np.testing.assert_allclose(in_blocks.diagonal, one_by_one.diagonal, atol=1e-11)
    np.testing.assert_allclose(in_blocks.coupling, one_by_one.coupling, atol=1e-11)
    in_one_block(in_blocks, A, 4, 8), in_one_block(in_blocks, A, 4, 12)
    assert in_blocks.size == 16 and in_blocks.block == 3  # a full basis has 19 vectors and the next one


def test_the_basis_stays_orthonormal_where_nearly_all_of_a_product_cancels(schedule_of_a_gpu) -> None:
    A = decaying(points=2) + 1e6 * torch.eye(N, dtype=torch.float64)
    basis = basis_of(A, 20, [])
    in_one_block(basis, A, 4), in_one_block(basis, A, 4, 4)
    check_basis(basis, A, 1e6)


def test_steps_after_a_breakdown_are_discarded_and_the_basis_goes_on_from_a_random_vector() -> None:
    """The Krylov space of a matrix of rank 2 is exhausted after three steps; the other point is not."""
    A = torch.stack([symmetric(torch.tensor([3.0, 2.0] + [0.0] * 18).double(), points=1)[0], decaying(1, 20)[0]])
    drawn: list[int] = []
    basis = basis_of(A, 20, drawn)
    assert in_one_block(basis, A, 4) == 1 and basis.size == 3
    assert basis.breakdown.tolist() == [True, False]
    assert drawn == [2] and basis.coupling[0, 2] == 0 and basis.coupling[1, 2] > 0
    check_basis(basis, A, 8.0)
    in_one_block(basis, A, 1, 4)
    check_basis(basis, A, 8.0)


def test_a_number_that_is_not_finite_stays_at_its_point() -> None:
    A = decaying(points=2)
    basis = basis_of(A, 30, [])

    for step in range(4):
        w = (A @ basis.next[..., None])[..., 0]
        basis.extend(w.index_fill(0, torch.tensor([0]), torch.nan) if step == 2 else w)
    finite, discarded = basis.settle(0)
    assert finite.tolist() == [False, True] and discarded == 0
    expected = torch.linalg.eigvalsh(basis.rows[1:, :4] @ A[1:] @ basis.rows[1:, :4].mT)
    torch.testing.assert_close(basis.pairs(np.array([1]))[0], expected)


@pytest.mark.parametrize("max_basis", [None, 18], ids=["without restart", "with restarts"])
@pytest.mark.parametrize("which", ["LM", "SA"])
def test_the_pairs_are_those_of_the_cpu_within_their_residuals(
    schedule_of_a_gpu, monkeypatch, which, max_basis
) -> None:
    H = operator(decaying(points=4))
    solve = {"k": 4, "which": which, "max_basis": max_basis, "method": "lanczos", "rtol": 1e-5, "max_matvecs": 400}
    in_blocks = top_eigenpairs(H, copies=True, **solve)
    monkeypatch.setitem(krylov.STEPS_PER_WAIT, "cpu", 1)
    expected = top_eigenpairs(H, copies=True, **solve)
    assert in_blocks.converged.all() and in_blocks.complete.all()
    apart = (in_blocks.values - expected.values).abs()
    assert (apart <= in_blocks.residuals + expected.residuals + 1e-12).all()
    # The host looks at every fourth step only, in the first run and in each search.
    assert (in_blocks.num_matvecs <= expected.num_matvecs + 16).all()


def test_multiple_eigenvalues_and_low_ranks_are_found(schedule_of_a_gpu) -> None:
    low_rank = torch.tensor([5.0, 5.0, 2.0] + [0.0] * (N - 3)).double()
    copies = torch.cat([torch.tensor([3.0, 3.0, 3.0, 2.0]).double(), torch.linspace(-1, 1, N - 4).double()])
    A = torch.stack([symmetric(values, points=1)[0] for values in (low_rank, copies)])
    limits = Limits(seed=0, max_steps=400, max_basis=N)
    selections = (Selection("LA", k=3, rtol=1e-6),)
    pairs = with_missed_copies(Matrices(A), selections, lanczos(Matrices(A), selections, limits), limits)
    assert pairs.complete.all() and pairs.converged.all()
    wanted = pairs.wanted(selections).values.sort(descending=True).values
    torch.testing.assert_close(wanted, torch.tensor([[5.0, 5.0, 2.0], [3.0, 3.0, 3.0]]).double(), atol=1e-5, rtol=0)


def test_products_whose_vectors_were_discarded_do_not_raise_the_degree(schedule_of_a_gpu, monkeypatch) -> None:
    """The bound on eigenvalues that were missed would otherwise rest on a larger Krylov space than there is."""
    low_rank = torch.tensor([5.0, 4.0, 2.0, 1.0] + [0.0] * (N - 4)).double()
    run = lanczos_run(Matrices(symmetric(low_rank, points=2)), TOP, Limits(seed=0, max_steps=60, max_basis=N))
    excess, degrees = run.rule.excess, []

    def watched(state: RitzState) -> Tensor:
        degrees.append((state.degree, run.basis.size))
        return excess(state)

    monkeypatch.setattr(run.rule, "excess", watched)
    run.run()
    assert run.discarded > 0
    assert degrees and all(degree == size for degree, size in degrees)


@pytest.mark.parametrize("max_basis", [12, 30], ids=["the basis is full by then", "the basis has room"])
def test_no_point_takes_more_products_than_it_may(schedule_of_a_gpu, max_basis) -> None:
    taken: list[int] = []

    class Counting(Matrices):
        def products(self, V: Tensor) -> Tensor:
            taken.append(len(V))
            return super().products(V)

        def select(self, points: Tensor) -> "Counting":
            return Counting(self.A[points])

    pairs = lanczos(Counting(decaying(points=3)), TOP, Limits(seed=0, max_steps=11, max_basis=max_basis))
    assert (pairs.num_matvecs <= 11).all() and sum(taken) == int(pairs.num_matvecs.sum())


def test_a_gauss_rule_in_blocks_has_the_moments_of_its_start(schedule_of_a_gpu, monkeypatch) -> None:
    drawn: list[int] = []

    def watched(H: Matrices, seed: int, step: int) -> Tensor:
        drawn.append(step)
        return random_vector(H, seed, step)

    monkeypatch.setattr("hessian_tools.curvature.eigen.lanczos.random_vector", watched)
    spectra = [torch.linspace(-1.0, 2.0, 20), torch.tensor([2.0, 1.0, -1.0] + [0.0] * 17)]  # one with a breakdown
    A = torch.stack([symmetric(values.double(), points=1)[0] for values in spectra])
    z = randn(2, 20, stream_name="z")
    nodes, weights, _ = gauss_quadrature(Matrices(A), z, num_steps=7, seed=0)
    for degree in range(14):
        moment = torch.einsum("pi,pij,pj->p", z, torch.linalg.matrix_power(A, degree), z) / (z**2).sum(-1)
        torch.testing.assert_close((weights * nodes**degree).sum(-1), moment, atol=1e-10, rtol=1e-9)
    assert len(drawn) > 1 and len(set(drawn)) == len(drawn)  # each breakdown is followed by a vector of its own


class OnCard(Tensor):
    """A tensor that stands for one on a GPU: what is computed from it lies there, too."""


class Waits(TorchFunctionMode):
    """Counts the calls for which the host would wait for a GPU on which all ``OnCard`` tensors lie."""

    READS = (Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__bool__, Tensor.__float__, Tensor.__int__)
    INDICES = (Tensor.nonzero, torch.nonzero, Tensor.masked_select, torch.masked_select)

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        on_card = isinstance(args[0], OnCard) if args else False
        if func is Tensor.cpu and on_card:
            self.count += 1
            return func(*args, **kwargs).as_subclass(Tensor)
        if on_card and func in (*self.READS, *self.INDICES):
            self.count += 1
        moved = func is Tensor.to and any(isinstance(a, torch.device | OnCard) for a in args[1:])
        result = func(*args, **kwargs)
        if moved and not on_card:
            self.count += not kwargs.get("non_blocking", False)
            result = result.as_subclass(OnCard)
        return result


class CardMatrices(Matrices):
    """Matrices on the simulated card, whose points are selected without a wait."""

    def select(self, points: Tensor) -> "CardMatrices":
        return CardMatrices(self.A[points.to(self.A.device, non_blocking=True)])


@pytest.fixture
def waits(schedule_of_a_gpu) -> Iterator[Waits]:
    with Waits() as mode:
        yield mode


def run_on_card(A: Tensor) -> BatchedLanczos:
    """A run on the simulated card."""
    start = randn(1, A.shape[-1], stream_name="start").as_subclass(OnCard)
    run = lanczos_run(
        CardMatrices(A.as_subclass(OnCard)), TOP, Limits(seed=0, max_steps=200, max_basis=18), start=start
    )
    basis = run.basis
    basis.rows = basis.rows.as_subclass(OnCard)
    basis.next = basis.rows[:, 0]
    basis._last_coupling = basis._last_coupling.as_subclass(OnCard)
    return run


def test_the_host_waits_at_most_once_in_four_steps(waits) -> None:
    """Points finish at different steps, the basis is restarted, and finished points are dropped meanwhile."""
    run, room = run_on_card(decaying(points=6)), []
    run.restarted = lambda run: room.append(run.basis.restart_size - run.basis.size)
    waits.count = 0
    pairs = run.run()
    count = waits.count
    assert isinstance(pairs.vectors, OnCard)  # nothing was moved off the card to avoid a wait
    assert pairs.converged.all() and len(pairs.num_matvecs.unique()) > 1
    assert room and all(steps % 4 == 0 for steps in room)  # whole blocks of steps fill the basis after each restart
    assert run.discarded == 0  # points that have finished do not hold up the others
    # The first 17 steps fill the basis in 5 blocks, of which one is short.
    assert 0 < count <= run.steps / 4 + 1


def test_the_counter_of_waits_sees_the_schedule_of_the_cpu(waits, monkeypatch) -> None:
    monkeypatch.setitem(krylov.STEPS_PER_WAIT, "cpu", 1)
    run = run_on_card(decaying(points=6))
    waits.count = 0
    run.run()
    assert waits.count >= run.steps


def test_points_leave_compiled_products_without_a_wait() -> None:
    tensors = (torch.arange(12.0).view(6, 2).as_subclass(OnCard),)
    never_called = Traced(point_part=tuple, vector_part=torch.neg)
    stacked = Stacked(never_called, tensors, 6, torch.arange(6).as_subclass(OnCard))
    with Waits() as waits:
        for points in ([0, 2, 3, 5], [1, 4], [3, 2, 1, 0], [-1, 0, 1, 2], [0, 1, -1, -2], [2, 2, 3, 4]):
            chosen = stacked.select(torch.tensor(points))
            assert waits.count == 0
            values = chosen.tensors[0].as_subclass(Tensor)[chosen.rows.as_subclass(Tensor)]
            assert torch.equal(values, tensors[0].as_subclass(Tensor)[torch.tensor(points)])
            kept_all = len(chosen.tensors[0]) == 6 and chosen.tensors[0] is tensors[0]
            assert kept_all == (points == [0, 2, 3, 5])
            # A second choice is made from the first one.
            again = chosen.select(torch.tensor([1]))
            last = again.tensors[0].as_subclass(Tensor)[again.rows.as_subclass(Tensor)]
            assert torch.equal(last, values[1:2])
            waits.count = 0
