"""Routes, chunks and memory change nothing but time: against dense references, in float64."""

import gc
import warnings
import weakref

import pytest
import torch
from cases import GAUSS_NEWTON, LINEAR, NETWORKS, Case, randn, relu_mlp, seeded, squared_error, without_type_checks
from contract import check_operator, close
from torch import Tensor, nn
from torch.nn import functional as F

from hessian_tools.curvature import gauss_newton, hessian, top_eigenpairs
from hessian_tools.curvature.engines import choice as routes
from hessian_tools.curvature.engines.compiled import trace_cache as traced
from hessian_tools.curvature.engines.compiled.compiled_products import Traced
from hessian_tools.curvature.engines.double_backward import KeptGraphs
from hessian_tools.curvature.engines.memory import MEMORY_BUDGET, MemoryBudget
from hessian_tools.curvature.objective.objective import Objective
from hessian_tools.layout import flatten
from hessian_tools.loss import make_loss

RELU = relu_mlp()
ALL = [*NETWORKS, RELU]
CONV = NETWORKS[1]
MLP = NETWORKS[0]
WAYS = [
    {"route": "direct"},
    {"route": "direct", "batching": "loop"},
    {"route": "direct", "max_memory": 1},
    {"route": "kept"},
    {"route": "kept", "max_memory": 1},
    {"route": "kept", "chunk": 1, "batching": "loop"},
    {"route": "traced"},
    {"route": "traced", "chunk": 1},
    {"route": "traced", "max_memory": 1},
    {"route": "auto", "max_memory": 4e6},
]


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_every_way_gives_the_dense_matrix(case: Case) -> None:
    V = randn(case.thetas.shape[-1], 3, path="V")
    # A loss of its own: the automatic rule counts all products that were asked of one.
    loss = make_loss(case.loss.model, case.loss.criterion, case.loss.layout)
    for options in WAYS:
        H = hessian(loss, case.thetas, case.batch, **options)
        close(H @ V, case.dense @ V)
        assert H.route == ("kept" if options["route"] == "auto" else options["route"]), options


@pytest.mark.parametrize("route", ["kept", "traced"])
def test_contract(route: str) -> None:
    check_operator(lambda *args, **options: hessian(*args, route=route, **options), MLP)


@pytest.mark.parametrize("case", [LINEAR[1], GAUSS_NEWTON[3]], ids=lambda case: case.name)
def test_gauss_newton_by_trace(case: Case) -> None:
    V = randn(case.thetas.shape[-1], 3, path="V")
    for options in ({"route": "traced"}, {"route": "traced", "max_memory": 1}, {"route": "kept"}):
        G = gauss_newton(case.loss, case.thetas, case.batch, **options)
        close(G @ V, case.dense @ V)
        assert G.route == ("direct" if options["route"] == "kept" else "traced")


OLD_TORCH = pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.6 has no forward mode in inference mode")


@pytest.mark.parametrize(
    "route", [pytest.param("direct", marks=OLD_TORCH), "kept", pytest.param("traced", marks=OLD_TORCH)]
)
def test_inference_mode_changes_nothing(route: str) -> None:
    """torch records no graph there, from which a kept one gave zeros."""
    V = randn(MLP.thetas.shape[-1], 2, path="V")
    loss = make_loss(MLP.loss.model, MLP.loss.criterion, MLP.loss.layout)
    with torch.inference_mode():
        made = [tensor.clone() for tensor in (MLP.thetas, *MLP.batch, V)]
        inside = hessian(loss, made[0], tuple(made[1:3]), route=route) @ made[3]
    outside = hessian(loss, made[0], tuple(made[1:3]), route=route) @ made[3]
    for product in (inside, outside):
        close(product.clone(), MLP.dense @ V)


def test_a_function_of_its_own_derivative_is_sent_to_the_kept_graph() -> None:
    """As backward hooks are."""
    loss, thetas, (x, y) = network()
    handle = loss.model[0].register_full_backward_hook(lambda module, before, after: None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that the hook fires
        product = hessian(loss, thetas[:2], (x[:2], y[:2]), route="kept").mv(thetas[:2])
        with pytest.raises(RuntimeError, match="pass route='kept'"):
            hessian(loss, thetas[:2], (x[:2], y[:2]), route="direct").mv(thetas[:2])
    handle.remove()
    close(product, hessian(loss, thetas[:2], (x[:2], y[:2]), route="direct").mv(thetas[:2]))


def test_eigenpairs_do_not_depend_on_the_way() -> None:
    expected = torch.linalg.eigvalsh(MLP.dense)[:, [-1]]
    for options in WAYS:
        H = hessian(MLP.loss, MLP.thetas, MLP.batch, **options)
        found = top_eigenpairs(H, k=1, which="LA", rtol=1e-9)
        assert torch.allclose(found.values, expected, rtol=1e-9)


def network(criterion: nn.Module | None = None) -> tuple[object, Tensor, tuple[Tensor, Tensor]]:
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))).double()
    theta, layout = flatten(model)
    thetas = theta + 0.1 * randn(20, len(theta), path="many")
    batch = randn(20, 5, 3, path="x"), randn(20, 5, 2, path="y")
    return make_loss(model, criterion or squared_error, layout), thetas, batch


def test_auto_goes_by_counts_of_points_and_products() -> None:
    loss, thetas, (x, y) = network()
    few, many = hessian(loss, thetas[:8], (x[:8], y[:8])), hessian(loss, thetas, (x, y))
    for H in (few, many):
        H.mv(thetas[0])
    assert (few.route, many.route) == ("kept", "direct")
    asked, enough = 28, routes.enough_products(many.points.forward)
    assert enough == routes.ENOUGH_PRODUCTS
    many @ torch.zeros(thetas.shape[1], (enough - asked) // 20, dtype=torch.float64)
    assert many.route == "direct"
    many.mv(thetas[0])
    assert many.route == "traced"
    assert hessian(loss, thetas[:8], (x[:8], y[:8]), chunk=4).route == "direct"
    assert isinstance(few.points._prepared["hessian_at"][0], KeptGraphs)
    few.mv(thetas[0])
    assert few.route == "traced"
    assert not isinstance(few.points._prepared["hessian_at"][0], KeptGraphs)


def test_a_large_forward_pass_is_kept_and_traced_earlier() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert routes.worth_keeping(8, 10, cuda)
    assert not routes.worth_keeping(9, 10, cpu)
    assert routes.worth_keeping(9, 2**20, cpu)
    assert not routes.worth_keeping(9, 2**20, cuda)
    assert [routes.enough_products(f) for f in (10**5, 5 * 10**6, 250 * 10**6)] == [2000, 333, 7]


def test_criteria_without_a_forward_derivative_are_done_by_the_graph() -> None:
    loss, thetas, batch = network(nn.MSELoss())
    V = randn(thetas.shape[1], 2, path="V")
    for route in ("kept", "auto"):
        close(hessian(loss, thetas, batch, route=route) @ V, hessian(*network(), route="direct") @ V)


def test_losses_without_curvature_have_a_graph_too() -> None:
    thetas = torch.ones(2, 3)
    for loss in (lambda theta, a: (a * theta).sum(), lambda theta, a: a.sum(), lambda theta, a: theta[0] ** 2):
        expected = hessian(loss, thetas, torch.ones(2, 3), route="direct").to_dense()
        assert torch.equal(hessian(loss, thetas, torch.ones(2, 3), route="kept").to_dense(), expected)


def test_several_batches_of_an_objective_and_weights() -> None:
    thetas, (x, y) = MLP.thetas, MLP.batch
    batches = [(x[:, :2], y[:, :2]), (x[:, 2:], y[:, 2:]), (x, y)]
    V = randn(thetas.shape[-1], 2, path="V")
    expected = hessian(MLP.loss, thetas, batches, weights=[1, 2, 3], route="direct") @ V
    for route in ("kept", "traced"):
        H = hessian(MLP.loss, thetas, batches, weights=[1, 2, 3], route=route)
        close(H @ V, expected)
        assert H.route == route


def test_parts_let_go_of_what_they_kept() -> None:
    H = hessian(CONV.loss, CONV.thetas, CONV.batch, route="traced", max_memory=1)
    parts = H.parts()
    assert len(parts) == len(list(parts)) == 3
    assert [part.num_points for part in parts[1:]] == [1, 1]
    first = parts[0]
    first.mv(CONV.thetas[0])
    kept = weakref.ref(first.points._prepared["hessian_at"][0])
    assert kept() is not None
    del first
    gc.collect()
    assert kept() is None
    assert parts[0].points.thetas.data_ptr() == CONV.thetas.data_ptr()


def test_what_is_kept_stays_within_the_memory_given() -> None:
    H = hessian(CONV.loss, CONV.thetas, CONV.batch, route="traced")
    H.mv(CONV.thetas[0])
    (trace,), (kept,) = H.points._traces(type(H).matrix_at), H.points._prepared["hessian_at"]
    assert 3 * trace.kept_bytes == kept.nbytes
    allowed = max(trace.work_bytes, trace.point_bytes) + 2 * trace.kept_bytes
    assert trace.working_bytes(H.device, allowed) == allowed - 2 * trace.kept_bytes
    points = hessian(CONV.loss, CONV.thetas, CONV.batch, route="traced", max_memory=allowed).points
    assert points._fitting("traced", type(H).matrix_at) == 2
    points.products(torch.zeros(3, H.num_params, 1, dtype=H.dtype))
    assert not points._prepared
    assert hessian(CONV.loss, CONV.thetas, CONV.batch).points.room.budget(H.device) == MEMORY_BUDGET["cpu"]


class Refusing:
    """A function that finds no memory for more than so many points at once."""

    def __init__(self, function: object, most: int) -> None:
        self.function, self.most, self.sizes = function, most, []

    def __get__(self, instance: object, owner: type) -> object:
        return lambda thetas, *rest, **options: self(instance, thetas, *rest, **options)

    def __call__(self, instance: object, first: object, *rest: object, **options: object) -> object:
        size = first.stop - first.start if isinstance(first, slice) else len(first)
        self.sizes.append(size)
        if size > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory (planted)")
        return self.function(instance, first, *rest, **options)


@pytest.mark.parametrize(("route", "where", "name"), [("direct", Objective, "each"), ("traced", Traced, "at")])
def test_chunks_that_a_device_refuses_are_halved(monkeypatch, route: str, where: type, name: str) -> None:
    loss, thetas, batch = network()
    V = randn(thetas.shape[1], 2, path="V")
    H = hessian(loss, thetas, batch, route=route, chunk=20)
    with without_type_checks():
        expected = hessian(loss, thetas, batch, route="kept") @ V
        refusing = Refusing(getattr(where, name), 3)
        monkeypatch.setattr(where, name, refusing)
        close(H @ V, expected)
        assert H.points.room.refusals > 0
        refused = [size for size in refusing.sizes if size > 3]
        assert len(refused) == H.points.room.refusals
        close(H @ V, expected)
        assert [size for size in refusing.sizes if size > 3] == refused  # remembered
        monkeypatch.setattr(where, name, Refusing(refusing.function, 0))
        with pytest.raises(torch.OutOfMemoryError, match="planted"):
            hessian(loss, thetas, batch, route=route) @ V


def test_pieces_are_even_and_halved_where_refused() -> None:
    room, seen = MemoryBudget(), []

    def piece(rows: slice) -> int:
        seen.append((rows.start, rows.stop))
        if rows.stop - rows.start > 2:
            raise torch.OutOfMemoryError
        return rows.stop - rows.start

    assert room.in_pieces(7, piece, at_once=6) == [1, 1, 1, 1, 1, 1, 1]
    assert (room.refusals, seen[:3]) == (2, [(0, 4), (0, 3), (0, 1)])
    assert MemoryBudget().in_pieces(9, lambda rows: rows.stop - rows.start, at_once=8, each=2) == [3, 3, 3]


@pytest.mark.parametrize("bad", [0, -1, "4GB", True, float("nan")])
def test_bad_memory_is_refused(bad: object) -> None:
    with without_type_checks(), pytest.raises(ValueError, match="give a number of bytes, such as 4e9"):
        hessian(CONV.loss, CONV.thetas, CONV.batch, max_memory=bad)


@pytest.mark.parametrize("route", ["direct", "kept", "traced"])
@pytest.mark.parametrize("after", [1, 2])
def test_an_interruption_leaves_nothing_half_made(route: str, after: int) -> None:
    calls = {"left": 0}

    def criterion(out: Tensor, y: Tensor) -> Tensor:
        calls["left"] -= 1
        if calls["left"] == 0:
            raise KeyboardInterrupt
        return F.cross_entropy(out, y)

    case = RELU
    loss = make_loss(case.loss.model, criterion, case.loss.layout)
    V = randn(case.thetas.shape[-1], 2, path="V")
    H = hessian(loss, case.thetas, case.batch, route=route, max_memory=1)
    calls["left"] = after
    with pytest.raises(KeyboardInterrupt):
        H @ V
    assert not traced._TRACES.get(loss)
    assert not H.points._prepared
    close(H @ V, case.dense @ V)
    assert H.route == route
