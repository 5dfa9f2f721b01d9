"""A ``DataLoader`` whose batches are read again at every product gives the numbers of one big batch (float64)."""

import random
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import hessian_tools as ht
from hessian_tools.curvature import moments
from hessian_tools.curvature.engines.double_backward import KeptGraphs
from hessian_tools.curvature.engines.engine import PreparedProducts
from hessian_tools.curvature.engines.partial_products import BatchwiseProducts
from hessian_tools.curvature.objective.loader_batches import LoaderBatches, bytes_of, checksum

DTYPE = torch.float64
X = torch.randn(23, 4, generator=ht.stream(0, "x"), dtype=DTYPE)
Y = torch.randint(0, 3, (23,), generator=ht.stream(0, "y"))
Y[[2, 9, 10, 21]] = -100  # labels that do not count
DATA = TensorDataset(X, Y)


def model() -> nn.Module:
    return ht.seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), seed=0).double()


def weighted(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels, torch.tensor([1.0, 5.0, 0.5]))


def summed(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels, reduction="sum")


def streamed(criterion: Any, loader: Any, **options: Any) -> Any:
    H = ht.hessian_of(model(), criterion, loader, max_memory=1, **options)
    assert isinstance(H.objective.batches, LoaderBatches)
    return H


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert expected.abs().max() > 0
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def same(results: Iterable[Tensor]) -> None:
    first, second = results
    close(first, second)


@pytest.mark.parametrize("criterion", [F.cross_entropy, weighted, summed], ids=["mean", "class weights", "sum"])
@pytest.mark.parametrize("route", ["auto", "direct", "kept"])
def test_a_loader_that_is_read_at_every_product_is_one_big_batch(criterion: Any, route: Any) -> None:
    expected = ht.hessian_of(model(), criterion, (X, Y)).to_dense()
    H = streamed(criterion, DataLoader(DATA, batch_size=5), route=route)
    close(H.to_dense(), expected)
    close(H.mv(torch.ones(43, dtype=DTYPE)), expected.sum(1))


@pytest.mark.heavy
def test_every_quantity_of_a_loader_is_that_of_one_big_batch() -> None:
    theta, layout = ht.flatten(model())
    loss, loader = ht.make_loss(model(), weighted, layout), DataLoader(DATA, batch_size=5)
    close(ht.gradient(loss, theta, loader, max_memory=1), ht.gradient(loss, theta, (X, Y)))
    for make in (ht.hessian, ht.gauss_newton):
        one, many = make(loss, theta, (X, Y)), make(loss, theta, loader, max_memory=1)
        methods: tuple[Literal["lanczos", "exact"], ...] = ("lanczos", "exact")
        for method in methods:
            same(ht.top_eigenpairs(H, k=3, rtol=1e-9, method=method).values for H in (many, one))
        estimators: tuple[Literal["probes", "exact"], ...] = ("probes", "exact")
        for estimator in estimators:
            same(ht.trace(H, num_probes=4, method=estimator).samples for H in (many, one))
        same(ht.spectral_density(H, num_probes=2).grid for H in (many, one))
        same(moments(H, num_probes=4).frobenius_squared.samples for H in (many, one))
        same(ht.gradient_curvature(H).rho for H in (many, one))
        same(ht.by_module(H, num_probes=4).trace for H in (many, one))
    along = [ht.loss_along(H, torch.eye(43, dtype=DTYPE)[:, :2], steps=[0.0, 0.5]) for H in (many, one)]
    close(along[0].loss, along[1].loss)
    assert ht.check_operator(ht.hessian(loss, theta.float(), loader, max_memory=1)).ok


def test_several_points_and_given_weights() -> None:
    theta, layout = ht.flatten(model())
    loss, loader = ht.make_loss(model(), F.cross_entropy, layout), DataLoader(DATA, batch_size=9)
    thetas = torch.stack([theta, 2 * theta, -theta])
    for weights in ("size", [1.0, 2.0, 3.0]):
        options: Any = {"shared": True, "weights": weights}
        many = ht.hessian(loss, thetas, loader, max_memory=1, **options)
        assert isinstance(many.objective.batches, LoaderBatches)
        expected = ht.hessian(loss, thetas, list(loader), **options).to_dense()
        close(many.to_dense(), expected)
        close(many.select(torch.tensor([2, 0])).to_dense(), expected[[2, 0]])


def test_losses_that_only_reverse_mode_can_differentiate() -> None:
    def penalised(theta: Tensor, x: Tensor) -> Tensor:
        with torch.enable_grad():
            theta = theta if theta.requires_grad else theta.clone().requires_grad_()
            value = (torch.sin(x @ theta) ** 2).mean()
            (slope,) = torch.autograd.grad(value, theta, create_graph=True)
        return value + (slope**2).sum()

    theta, rows = torch.linspace(0.1, 0.4, 4, dtype=DTYPE), list(X)
    loader: DataLoader[Any] = DataLoader(rows, batch_size=8)  # type: ignore[arg-type]
    weights = [8.0, 8.0, 7.0]
    kept, read = (ht.hessian(penalised, theta, loader, weights=weights, max_memory=m) for m in (None, 1))
    close(read.to_dense(), kept.to_dense())
    same(ht.gradient(penalised, theta, loader, weights=weights, max_memory=m) for m in (1, None))


class Counted(Dataset[Any]):
    """Examples whose readings are counted, and of whose batches it is known which are alive."""

    def __init__(self) -> None:
        self.readings = 0
        self.alive = weakref.WeakSet[Tensor]()
        self.most_alive = 0

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.readings += 1
        return X[index], Y[index]

    def collate(self, examples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        x, y = (torch.stack(column) for column in zip(*examples, strict=True))
        self.alive.add(x)
        self.most_alive = max(self.most_alive, len(self.alive))
        return x, y


def test_a_loader_is_read_once_for_each_product_and_one_batch_is_held_at_a_time() -> None:
    data = Counted()
    reports: list[tuple[int, int]] = []
    loader = DataLoader(data, batch_size=3, collate_fn=data.collate)
    H = streamed(F.cross_entropy, loader, progress=lambda done, total: reports.append((done, total)))
    assert reports == [(i + 1, 8) for i in range(8)] * 2  # the first reading, and one for the weights
    V = torch.eye(43, dtype=DTYPE)[:, :6]
    H @ V  # the engine is chosen
    del reports[:]
    data.readings = data.most_alive = 0
    H @ V
    assert data.readings == len(X) and reports == [(i + 1, 8) for i in range(8)]
    assert data.most_alive <= 4  # the first, the largest, the present one and the next
    kept = ht.hessian_of(model(), F.cross_entropy, loader)
    data.readings = 0
    kept @ V
    assert data.readings == 0


def test_the_graphs_of_batches_that_do_not_fit_together_are_not_kept_together() -> None:
    batches, budget = list(DataLoader(DATA, batch_size=1)), 2000
    expected = ht.hessian_of(model(), F.cross_entropy, batches, weights=[1.0] * 23)
    H = ht.hessian_of(model(), F.cross_entropy, batches, weights=[1.0] * 23, max_memory=budget)
    V = torch.eye(43, dtype=DTYPE)
    close(H @ V, expected @ V)
    assert expected.route == H.route == "kept"
    for operator, kept in ((expected, KeptGraphs), (H, BatchwiseProducts)):
        assert isinstance(operator.prepared, PreparedProducts) and isinstance(operator.prepared.current, kept)


def test_an_iterable_data_set_without_a_length() -> None:
    class Rows(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(DATA)

    loader = DataLoader(Rows(), batch_size=5)
    close(streamed(F.cross_entropy, loader).to_dense(), ht.hessian_of(model(), F.cross_entropy, (X, Y)).to_dense())


class Noisy(Dataset[Any]):
    """Examples that are augmented by ``draw``."""

    def __init__(self, draw: Callable[[], float]) -> None:
        self.draw = draw

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return X[index] + self.draw(), Y[index]


DRAWS = {"torch": lambda: float(torch.rand(())), "NumPy": lambda: float(np.random.rand()), "Python": random.random}


@pytest.mark.parametrize("generator", DRAWS)
@pytest.mark.parametrize("max_memory", [None, 1])
def test_random_augmentation_is_refused_in_a_sentence(generator: str, max_memory: int | None) -> None:
    of_numpy: Any = np.random.get_state()
    before = torch.get_rng_state(), of_numpy[1].copy(), random.getstate()
    loader = DataLoader(Noisy(DRAWS[generator]), batch_size=5)
    with pytest.raises(ValueError, match=r"other data .*in batch 0.* random augmentation .* list\(loader\)"):
        ht.hessian_of(model(), F.cross_entropy, loader, max_memory=max_memory)
    assert torch.equal(before[0], torch.get_rng_state()) and before[2] == random.getstate()
    of_numpy = np.random.get_state()
    assert (before[1] == of_numpy[1]).all()


@pytest.mark.slow
def test_random_augmentation_in_workers_is_refused() -> None:
    loader = DataLoader(Noisy(DRAWS["torch"]), batch_size=5, num_workers=1)
    with pytest.raises(ValueError, match="other data"):
        ht.hessian_of(model(), F.cross_entropy, loader)


def test_data_that_change_later_or_can_be_read_only_once_are_refused() -> None:
    x = X.clone()
    H = streamed(F.cross_entropy, DataLoader(TensorDataset(x, Y), batch_size=5))
    H.mv(torch.ones(43, dtype=DTYPE))
    x[-1, 0] += 1e-9
    with pytest.raises(ValueError, match=r"other data .*in batch 4"):
        H.mv(torch.ones(43, dtype=DTYPE))

    class Once(IterableDataset[Any]):
        def __init__(self) -> None:
            self.rows = iter(DATA)

        def __iter__(self) -> Iterator[Any]:
            return self.rows

    with pytest.raises(ValueError, match="no batch at all.*can be read only once"):
        ht.hessian_of(model(), F.cross_entropy, DataLoader(Once(), batch_size=5))
    with pytest.raises(ValueError, match="the DataLoader gives no batch"):
        ht.hessian_of(model(), F.cross_entropy, DataLoader(TensorDataset(X[:0], Y[:0]), batch_size=5))


def test_a_named_trace_of_the_product_is_refused_for_a_loader_that_is_read_again() -> None:
    H = streamed(F.cross_entropy, DataLoader(DATA, batch_size=5), route="traced")
    with pytest.raises(ValueError, match="raise max_memory, or pass route='auto'"):
        H.mv(torch.ones(43, dtype=DTYPE))


def test_bytes_and_checksums_of_batches() -> None:
    batch = {"x": np.ones((2, 3), dtype=np.float32), "y": [torch.ones(4, dtype=torch.int64), None]}
    assert bytes_of(batch, torch.zeros(1, dtype=DTYPE)) == 6 * 8 + 4 * 8
    others: list[Any] = [
        batch | {"x": np.ones((3, 2), dtype=np.float32)},
        batch | {"x": np.ones((2, 3))},
        batch | {"y": [torch.ones(4, dtype=torch.int32), None]},
        batch | {"y": [torch.ones(4, dtype=torch.int64), 0]},
    ]
    assert len({checksum(each) for each in (batch, *others)}) == 5
    assert checksum(batch) == checksum({"x": batch["x"].copy(), "y": batch["y"]})  # type: ignore[attr-defined]
    assert checksum((torch.ones(3, dtype=torch.bfloat16), torch.tensor(True), object())) > 0
