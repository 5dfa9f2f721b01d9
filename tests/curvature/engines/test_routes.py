"""Products equal dense references in float64 for every engine, chunk size and memory limit."""

import gc
import warnings
import weakref
from collections.abc import Callable
from functools import partial

import pytest
import torch
from cases import GAUSS_NEWTON, LINEAR, NETWORKS, Case, randn, relu_mlp, seeded, squared_error, without_type_checks
from contract import check_operator, close
from kept_memory import bytes_kept
from torch import Tensor, nn
from torch.nn import functional as F

from hessian_tools.curvature import gauss_newton, hessian, top_eigenpairs
from hessian_tools.curvature.engines import direct
from hessian_tools.curvature.engines.choice import ENOUGH_PRODUCTS_ON_GPU, choose_engine, enough_products
from hessian_tools.curvature.engines.compiled import trace_cache as traced
from hessian_tools.curvature.engines.compiled.compiled_products import CompiledProducts, Traced
from hessian_tools.curvature.engines.double_backward import KeptGraphs
from hessian_tools.curvature.engines.memory import MEMORY_BUDGET, MemoryBudget
from hessian_tools.layout import flatten
from hessian_tools.loss import make_loss

RELU = relu_mlp()
ALL = [*NETWORKS, RELU]
CONV = NETWORKS[1]
MLP = NETWORKS[0]
OPTIONS = [
    {"route": "auto", "max_memory": 4e6},  # comes first, because "auto" would use a trace that exists
    {"route": "direct"},
    {"route": "direct", "batching": "loop"},
    {"route": "direct", "max_memory": 1},
    {"route": "kept"},
    {"route": "kept", "max_memory": 1},
    {"route": "kept", "chunk": 1, "batching": "loop"},
    {"route": "traced"},
    {"route": "traced", "chunk": 1},
    {"route": "traced", "max_memory": 1},
]


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_all_options_give_the_dense_matrix(case: Case) -> None:
    V = randn(case.thetas.shape[-1], 3, stream_name="V")
    # A new loss, because "auto" would use traces that other tests have made for the old one.
    loss = make_loss(case.loss.model, case.loss.criterion, case.loss.layout)
    for options in OPTIONS:
        H = hessian(loss, case.thetas, case.batch, **options)
        close(H @ V, case.dense @ V)
        assert H.route == ("kept" if options["route"] == "auto" else options["route"]), options


@pytest.mark.heavy
@pytest.mark.parametrize("route", ["kept", "traced"])
def test_contract(route: str) -> None:
    check_operator(lambda *args, **options: hessian(*args, route=route, **options), MLP)


@pytest.mark.slow
@pytest.mark.parametrize("case", [LINEAR[1], GAUSS_NEWTON[3]], ids=lambda case: case.name)
def test_gauss_newton_by_trace(case: Case) -> None:
    V = randn(case.thetas.shape[-1], 3, stream_name="V")
    for options in ({"route": "traced"}, {"route": "traced", "max_memory": 1}, {"route": "direct"}, {"route": "kept"}):
        G = gauss_newton(case.loss, case.thetas, case.batch, **options)
        close(G @ V, case.dense @ V)
        assert G.route == options["route"]


OLD_TORCH = pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.6 has no forward mode in inference mode")


@pytest.mark.parametrize(
    "route", [pytest.param("direct", marks=OLD_TORCH), "kept", pytest.param("traced", marks=OLD_TORCH)]
)
def test_inference_mode_changes_nothing(route: str) -> None:
    """In inference mode torch records no graph, and a kept graph once gave products of zero there."""
    V = randn(MLP.thetas.shape[-1], 2, stream_name="V")
    loss = make_loss(MLP.loss.model, MLP.loss.criterion, MLP.loss.layout)
    with torch.inference_mode():
        made = [tensor.clone() for tensor in (MLP.thetas, *MLP.batch, V)]
        inside = hessian(loss, made[0], tuple(made[1:3]), route=route) @ made[3]
    outside = hessian(loss, made[0], tuple(made[1:3]), route=route) @ made[3]
    for product in (inside, outside):
        close(product.clone(), MLP.dense @ V)


def test_the_error_of_a_network_with_backward_hooks_names_the_kept_route() -> None:
    """torch makes backward hooks of autograd.Functions, which have no forward derivative."""
    loss, thetas, (x, y) = network()
    handle = loss.model[0].register_full_backward_hook(lambda module, before, after: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the hook fires
        product = hessian(loss, thetas[:2], (x[:2], y[:2]), route="kept").mv(thetas[:2])
        with pytest.raises(RuntimeError, match="pass route='kept'"):
            hessian(loss, thetas[:2], (x[:2], y[:2]), route="direct").mv(thetas[:2])
    handle.remove()
    close(product, hessian(loss, thetas[:2], (x[:2], y[:2]), route="direct").mv(thetas[:2]))


@pytest.mark.slow
def test_eigenpairs_do_not_depend_on_the_options() -> None:
    expected = torch.linalg.eigvalsh(MLP.dense)[:, [-1]]
    for options in OPTIONS:
        H = hessian(MLP.loss, MLP.thetas, MLP.batch, **options)
        found = top_eigenpairs(H, k=1, which="LA", rtol=1e-9)
        assert torch.allclose(found.values, expected, rtol=1e-9)


def network(criterion: nn.Module | None = None) -> tuple[object, Tensor, tuple[Tensor, Tensor]]:
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))).double()
    theta, layout = flatten(model)
    thetas = theta + 0.1 * randn(20, len(theta), stream_name="many")
    batch = randn(20, 5, 3, stream_name="x"), randn(20, 5, 2, stream_name="y")
    return make_loss(model, criterion or squared_error, layout), thetas, batch


def test_auto_chooses_by_the_number_of_points_and_of_announced_products() -> None:
    loss, thetas, (x, y) = network()
    few, many = hessian(loss, thetas[:8], (x[:8], y[:8])), hessian(loss, thetas, (x, y))
    for H in (few, many):
        for _ in range(2):
            H.mv(thetas[0])
    assert (few.route, many.route) == ("kept", "direct")
    enough = enough_products(1000, few.device)
    many.announce(enough // 20 - 1)
    many.mv(thetas[0])
    assert many.route == "direct"
    many.announce(enough // 20)
    many.mv(thetas[0])
    assert many.route == "traced"
    assert hessian(loss, thetas[:8], (x[:8], y[:8]), chunk=4).route == "direct"
    assert isinstance(few.prepared.current, KeptGraphs)
    few.announce(1)  # a trace of these shapes exists already
    few.mv(thetas[0])
    assert few.route == "traced"
    assert isinstance(few.prepared.current, CompiledProducts)


def test_a_second_run_takes_the_engine_of_the_first() -> None:
    """A second run was once slower than the first, because products of both were counted and a trace was made."""
    for points in (3, 20):
        loss, thetas, (x, y) = network()
        routes = []
        for _ in range(3):
            H = hessian(loss, thetas[:points], (x[:points], y[:points]))
            top_eigenpairs(H, k=2, method="lanczos")
            routes.append(H.route)
        assert routes == ["kept" if points == 3 else "direct"] * 3
        assert not traced._TRACES.get(loss)


@pytest.mark.slow
def test_many_announced_products_are_compiled_at_the_first_call() -> None:
    loss, thetas, batch = network()
    thetas, batch = thetas.repeat(10, 1), tuple(leaf.repeat_interleave(10, dim=0) for leaf in batch)
    H = hessian(loss, thetas, batch)
    top_eigenpairs(H, k=2, method="lanczos")
    assert H.route == "traced"


def test_the_engine_is_chosen_by_device_size_points_and_products() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")

    def chosen(device: torch.device, forward: int, num_points: int, num_products: int = 1, **flags: bool) -> str:
        return choose_engine(device=device, forward=forward, num_points=num_points, num_products=num_products, **flags)

    assert chosen(cuda, 10, 8) == "double_backward"
    assert chosen(cpu, 10, 9) == "direct"
    assert chosen(cpu, 2**20, 9) == "double_backward"
    assert chosen(cuda, 2**20, 9) == "direct"
    assert chosen(cpu, 10, 8, double_backward=False) == "direct"
    assert [enough_products(f, cpu) for f in (10**5, 5 * 10**6, 250 * 10**6)] == [2000, 333, 7]
    assert {enough_products(f, cuda) for f in (10**5, 250 * 10**6)} == {ENOUGH_PRODUCTS_ON_GPU}
    assert (chosen(cpu, 10**5, 1, 2000), chosen(cpu, 10**5, 1, 1999)) == ("compiled", "double_backward")
    assert chosen(cpu, 10**5, 1, 2000, compilable=False) == "double_backward"
    # The top five of a ResNet-18 at one point: 1.1 s by the kept graph, 9.8 s with a trace.
    assert chosen(cuda, 250 * 10**6, 1, 30) == "double_backward"
    assert (chosen(cuda, 10, 1, 8, compiled_before=True), chosen(cuda, 10, 1, 1, compiled_before=True)) == (
        "compiled",
        "double_backward",
    )


def test_criteria_without_a_forward_derivative_take_the_kept_graph() -> None:
    loss, thetas, batch = network(nn.MSELoss())
    V = randn(thetas.shape[1], 2, stream_name="V")
    for route in ("kept", "auto"):
        close(hessian(loss, thetas, batch, route=route) @ V, hessian(*network(), route="direct") @ V)


def test_the_kept_graph_of_a_loss_without_curvature_gives_zero() -> None:
    thetas = torch.ones(2, 3)
    for loss in (lambda theta, a: (a * theta).sum(), lambda theta, a: theta[0] ** 2):
        expected = hessian(loss, thetas, torch.ones(2, 3), route="direct").to_dense()
        assert torch.equal(hessian(loss, thetas, torch.ones(2, 3), route="kept").to_dense(), expected)


@pytest.mark.slow
def test_several_weighted_batches_by_every_route() -> None:
    thetas, (x, y) = MLP.thetas, MLP.batch
    batches = [(x[:, :2], y[:, :2]), (x[:, 2:], y[:, 2:]), (x, y)]
    V = randn(thetas.shape[-1], 2, stream_name="V")
    expected = hessian(MLP.loss, thetas, batches, weights=[1, 2, 3], route="direct") @ V
    for route in ("kept", "traced"):
        H = hessian(MLP.loss, thetas, batches, weights=[1, 2, 3], route=route)
        close(H @ V, expected)
        assert H.route == route


def test_parts_free_their_kept_tensors() -> None:
    H = hessian(CONV.loss, CONV.thetas, CONV.batch, route="traced", max_memory=1)
    parts = H.parts()
    assert len(parts) == len(list(parts)) == 3
    assert [part.num_points for part in parts[1:]] == [1, 1]
    first = parts[0]
    first.mv(CONV.thetas[0])
    kept = weakref.ref(first.prepared.current)
    assert kept() is not None
    del first
    gc.collect()
    assert kept() is None
    assert parts[0].objective.thetas.data_ptr() == CONV.thetas.data_ptr()


def test_kept_tensors_stay_within_max_memory() -> None:
    H = hessian(CONV.loss, CONV.thetas, CONV.batch, route="traced")
    H.mv(CONV.thetas[0])
    (trace,) = H.prepared.findings.traces
    assert 3 * trace.kept_bytes == bytes_kept(H.prepared)
    allowed = max(trace.work_bytes, trace.point_bytes) + 2 * trace.kept_bytes
    assert trace.working_bytes(H.device, allowed) == allowed - 2 * trace.kept_bytes
    prepared = hessian(CONV.loss, CONV.thetas, CONV.batch, route="traced", max_memory=allowed).prepared
    assert prepared.fitting_points("compiled") == 2
    prepared.products(torch.zeros(3, H.num_params, 1, dtype=H.dtype))
    assert bytes_kept(prepared) == 0
    assert hessian(CONV.loss, CONV.thetas, CONV.batch).engine.memory.budget(H.device) == MEMORY_BUDGET["cpu"]


class Refusing:
    """A function or method whose first tensor is thetas, which runs out of memory for more than ``max_size`` points."""

    def __init__(self, function: Callable[..., object], max_size: int) -> None:
        self.function, self.max_size, self.sizes = function, max_size, []

    def __get__(self, instance: object, owner: type) -> object:
        return partial(self, instance)

    def __call__(self, *arguments: object, **options: object) -> object:
        size = len(next(argument for argument in arguments if isinstance(argument, Tensor)))
        self.sizes.append(size)
        if size > self.max_size:
            raise torch.OutOfMemoryError("CUDA out of memory (planted)")
        return self.function(*arguments, **options)


@pytest.mark.parametrize(("route", "where", "name"), [("direct", direct, "own_memory"), ("traced", Traced, "prepare")])
@pytest.mark.parametrize("chunk", [20, None])
def test_chunks_that_a_device_refuses_are_halved(
    monkeypatch, route: str, where: type, name: str, chunk: int | None
) -> None:
    loss, thetas, batch = network()
    V = randn(thetas.shape[1], 2, stream_name="V")
    H = hessian(loss, thetas, batch, route=route, chunk=chunk)
    with without_type_checks():
        expected = hessian(loss, thetas, batch, route="kept") @ V
        refusing = Refusing(getattr(where, name), 3)
        monkeypatch.setattr(where, name, refusing)
        close(H @ V, expected)
        assert H.engine.memory.shortages > 0
        refused = [size for size in refusing.sizes if size > 3]
        assert len(refused) == H.engine.memory.shortages
        close(H @ V, expected)
        assert [size for size in refusing.sizes if size > 3] == refused  # the shortages are remembered
        monkeypatch.setattr(where, name, Refusing(refusing.function, 0))
        with pytest.raises(torch.OutOfMemoryError, match="planted"):
            hessian(loss, thetas, batch, route=route) @ V


def test_pieces_have_nearly_equal_sizes_and_are_halved_when_memory_runs_out() -> None:
    memory, seen = MemoryBudget(), []

    def piece(rows: slice) -> int:
        seen.append((rows.start, rows.stop))
        if rows.stop - rows.start > 2:
            raise torch.OutOfMemoryError
        return rows.stop - rows.start

    assert memory.in_pieces(7, piece, at_once=6) == [1, 1, 1, 1, 1, 1, 1]
    assert (memory.shortages, seen[:3]) == (2, [(0, 4), (0, 3), (0, 1)])
    assert MemoryBudget().in_pieces(9, lambda rows: rows.stop - rows.start, at_once=4) == [3, 3, 3]


@pytest.mark.parametrize("bad", [0, 0.5, -1, "4GB", True, float("nan")])
def test_bad_memory_is_refused(bad: object) -> None:
    with without_type_checks(), pytest.raises(ValueError, match="a number of bytes, such as 4e9"):
        hessian(CONV.loss, CONV.thetas, CONV.batch, max_memory=bad)


@pytest.mark.parametrize("route", ["direct", "kept", "traced"])
@pytest.mark.parametrize("after", [1, 2])
def test_an_interruption_leaves_no_incomplete_state(route: str, after: int) -> None:
    calls = {"left": 0}

    def criterion(out: Tensor, y: Tensor) -> Tensor:
        calls["left"] -= 1
        if calls["left"] == 0:
            raise KeyboardInterrupt
        return F.cross_entropy(out, y)

    case = RELU
    loss = make_loss(case.loss.model, criterion, case.loss.layout)
    V = randn(case.thetas.shape[-1], 2, stream_name="V")
    H = hessian(loss, case.thetas, case.batch, route=route, max_memory=1)
    calls["left"] = after
    with pytest.raises(KeyboardInterrupt):
        H @ V
    assert not traced._TRACES.get(loss)
    assert bytes_kept(H.prepared) == 0
    close(H @ V, case.dense @ V)
    assert H.route == route
