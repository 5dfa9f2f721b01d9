"""How many vectors of length param the solvers hold, where memory is short, and what ``ht.plan`` says beforehand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import hessian_tools as ht
from hessian_tools.curvature import Hessian, Operator
from hessian_tools.curvature import moments as moments_of
from hessian_tools.curvature.eigen import krylov
from hessian_tools.curvature.engines import memory
from hessian_tools.curvature.estimates.plan import PeakBytes

WIDTH = 150
X = torch.randn(2, 10, generator=ht.stream(0, "x"))
Y = torch.tensor([0, 3])


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget of which a vector of the network below is more than a sixteenth."""
    monkeypatch.setattr(memory, "MEMORY_BUDGET", {"cpu": 40_000, "cuda": 40_000})
    monkeypatch.setattr(krylov, "PIECE_BYTES", 4000)


def network_hessian(make: Any = ht.hessian, batch: Any = (X, Y), **options: Any) -> Hessian:
    """The matrix of a network with 3160 parameters, whose activations are small beside them."""
    model = ht.seeded(lambda: nn.Sequential(nn.Linear(10, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 10)), seed=0)
    theta, layout = ht.flatten(model)
    return make(ht.make_loss(model, F.cross_entropy, layout), theta, batch, max_memory=1e9, **options)


class Diagonal(Operator):
    """A diagonal matrix, whose product makes one vector."""

    num_points, dtype, device = None, torch.float32, torch.device("cpu")

    def __init__(self) -> None:
        self.diagonal = torch.cat([torch.linspace(10, 20, 12), torch.linspace(0, 1, 2988)])

    @property
    def num_params(self) -> int:
        return len(self.diagonal)

    def products(self, V: Tensor) -> Tensor:
        return self.diagonal[:, None] * V

    def select(self, points: Tensor) -> Operator:
        raise NotImplementedError


def vectors_held(H: Operator, given: list[Tensor], work: Callable[[Operator], object]) -> float:
    """The most vectors alive at once: the given ones, what is made of them, and the results."""
    with PeakBytes() as count:
        for tensor in given:
            count.add(tensor)
        kept = work(H)
    assert kept is not None
    return count.peak / (H.num_params * H.dtype.itemsize)


def probes(num_probes: int) -> Callable[[Operator], Tensor]:
    return lambda H: ht.trace(H, num_probes=num_probes, method="probes").samples


def five(H: Operator) -> ht.EigenPairs:
    return ht.top_eigenpairs(H, k=5, method="lanczos", vectors=True, copies=False)


def test_a_trace_holds_six_vectors_whatever_the_number_of_probes(short: None) -> None:
    for num_probes in (2, 20):
        D, H = Diagonal(), network_hessian()
        assert vectors_held(D, [D.diagonal], probes(num_probes)) <= 5
        assert vectors_held(H, [H.objective.thetas], probes(num_probes)) <= 6
        assert H.route == "kept"


def test_freed_memory_goes_back_to_the_system_where_vectors_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[bool] = []
    monkeypatch.setattr(
        "hessian_tools.curvature.engines.double_backward.return_freed_blocks", lambda: called.append(True)
    )
    H = network_hessian(route="kept")
    H.mv(torch.ones(H.num_params))
    assert not called
    monkeypatch.setattr(memory, "MEMORY_BUDGET", {"cpu": 40_000, "cuda": 40_000})
    network_hessian(route="kept").mv(torch.ones(H.num_params))
    assert called


def test_five_eigenpairs_hold_twenty_five_vectors(short: None) -> None:
    D, H = Diagonal(), network_hessian()
    assert vectors_held(D, [D.diagonal], five) <= 25
    graph = 0.6  # activations, which are no vectors of this length
    assert vectors_held(H, [H.objective.thetas], five) <= 25 + graph


def test_less_memory_gives_the_same_results(monkeypatch: pytest.MonkeyPatch) -> None:
    H = Diagonal()
    trace, pairs, moments = probes(20)(H), five(H), moments_of(H, num_probes=5)
    assert vectors_held(H, [H.diagonal], probes(20)) > 20  # by default blocks of probes are faster
    monkeypatch.setattr(memory, "MEMORY_BUDGET", {"cpu": 40_000, "cuda": 40_000})
    monkeypatch.setattr(krylov, "PIECE_BYTES", 4000)
    torch.testing.assert_close(probes(20)(H), trace)
    torch.testing.assert_close(moments_of(H, num_probes=5).diagonal.value, moments.diagonal.value)
    short = five(H)
    assert bool(short.converged.all())
    assert bool(((short.values - H.diagonal[:12].flip(0)[:5]).abs() <= short.residuals + 1e-4).all())
    assert bool(((short.values - pairs.values).abs() <= short.residuals + pairs.residuals + 1e-4).all())
    network = network_hessian()
    searched = ht.trace(network, num_probes=4, rtol=1e-9, max_probes=12, method="probes")
    assert torch.equal(searched.samples, probes(12)(network))


@pytest.mark.slow
@pytest.mark.parametrize("make", [ht.hessian, ht.gauss_newton])
@pytest.mark.parametrize("route", ["kept", "direct"])
@pytest.mark.parametrize("is_short", [True, False])
def test_the_plan_is_what_is_counted(make: Any, route: str, is_short: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_short:
        monkeypatch.setattr(memory, "MEMORY_BUDGET", {"cpu": 40_000, "cuda": 40_000})
        monkeypatch.setattr(krylov, "PIECE_BYTES", 4000)
    v = torch.ones(3160)
    works: dict[str, tuple[Callable[[Operator], object], dict[str, Any]]] = {
        "product": (lambda H: H.mv(v.clone()), {}),
        "trace": (probes(6), {"num_probes": 6}),
        "top_eigenpairs": (five, {"k": 5, "vectors": True}),
    }
    for calculation, (work, options) in works.items():
        H = network_hessian(make, route=route)
        planned = ht.plan(H, calculation, **options)  # type: ignore[arg-type]
        # Products of several vectors together are estimated from one for the Hessian.
        assert planned.counted or (calculation, route, is_short) == ("trace", "direct", False)
        assert planned.held["theta"] == 4 * H.num_params
        assert H.prepared.engines == ()  # nothing has been computed
        counted = vectors_held(H, [H.objective.thetas], work) - 1
        # Short of memory, pieces of 4 kB are beside the plan; else temporary tensors of an orthogonalisation may be.
        tolerance = 0.05 if planned.counted else 0.5
        assert counted == pytest.approx(planned.bytes_added / planned.vector_bytes, rel=tolerance, abs=0.6)


def test_a_plan_says_where_what_is_held_and_prints_it() -> None:
    H = network_hessian()
    planned = ht.plan(H, "top_eigenpairs", k=3, vectors=True)
    assert planned.results == 3 * planned.vector_bytes and planned.device == "cpu"
    assert planned.held["weights and buffers of the model"] == planned.vector_bytes
    assert planned.held["batches"] == 2 * 10 * 4 + 2 * 8
    assert planned.bytes_in_all == sum(planned.held.values()) + planned.bytes_added
    text = repr(planned)
    assert text.startswith(
        "MemoryPlan of top_eigenpairs on cpu, engine double_backward, memory of a product counted\ntheta "
    )
    assert "Krylov basis (" in text and "added at most" in text and "vectors" in text
    tiny = ht.hessian(lambda theta, a: (a * theta**2).sum(), torch.ones(5), torch.ones(5))
    assert "the whole matrix and its eigenvectors" in ht.plan(tiny, "top_eigenpairs").added


def test_a_loss_that_reads_numbers_has_an_estimated_plan() -> None:
    def branching(theta: Tensor, a: Tensor) -> Tensor:
        return (a * theta**2).sum() * (2 if float(a.sum()) > 0 else 1)

    H = ht.hessian(branching, torch.zeros(1000), torch.ones(1000), route="kept")
    planned = ht.plan(H, "trace", num_probes=4)
    assert not planned.counted and "memory of a product estimated" in repr(planned)
    counted = vectors_held(H, [H.objective.thetas, *H.objective.batches], probes(4)) - 2
    assert counted <= planned.bytes_added / planned.vector_bytes <= 5 * counted


def test_the_plan_of_a_loader_that_is_read_again_holds_one_batch() -> None:
    model = ht.seeded(lambda: nn.Linear(10, 4), seed=0)
    loader = DataLoader(TensorDataset(X.repeat(9, 1), Y.repeat(9)), batch_size=4)
    planned = ht.plan(ht.hessian_of(model, F.cross_entropy, loader, max_memory=1), "product")
    batch = 4 * (10 * 4 + 8)
    assert planned.held["batches, one read at a time"] == 3 * batch
    assert planned.added["kept between products (gradient and graph)"] == 0


def test_what_has_no_plan_is_refused() -> None:
    H = network_hessian()
    many = ht.hessian(lambda theta, a: (a * theta**2).sum(), torch.ones(3, 2), torch.ones(2), shared=True)
    for of in (H + H, many, Diagonal()):
        with pytest.raises(ValueError, match="at one point"):
            ht.plan(of)
    with pytest.raises(ValueError, match="calculation='density' must be one of"):
        ht.plan(H, "density")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="4000 eigenvalues"):
        ht.plan(H, "top_eigenpairs", k=4000)
