"""Products compiled by Inductor: exact ones, few compilations, and plain errors."""

import random
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from cases import GAUSS_NEWTON, NETWORKS, Case, randn
from contract import close
from torch import Tensor, fx, nn

from hessian_tools.curvature import check_operator, gauss_newton, hessian, hessian_of, top_eigenpairs
from hessian_tools.curvature.operators.loss_operator import LossOperator
from hessian_tools.loss import Loss, make_loss

MLP, CONV = NETWORKS[:2]
NO_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")


def fresh(case: Case) -> Loss:
    """The loss of a case, without the traces and graphs that other tests have made."""
    assert isinstance(case.loss, Loss)
    return make_loss(case.loss.model, case.loss.criterion, case.loss.layout)


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Stands in for Inductor, which takes ten seconds; returns a list that gets the shape of V at each compilation."""
    shapes: list[tuple[int, ...]] = []

    def compile(module: fx.GraphModule, *, dynamic: bool, fullgraph: bool) -> Callable[..., Tensor]:
        assert (dynamic, fullgraph) == (False, True)
        nodes = module.graph.find_nodes(op="placeholder")
        shapes.append(tuple(nodes[0].meta["val"].shape))
        return module

    monkeypatch.setattr(torch, "compile", compile)
    return shapes


@NO_COMPILER
@pytest.mark.heavy
@pytest.mark.parametrize(
    ("make", "case", "columns"),
    [(hessian, MLP, 1), (hessian, CONV, 3), (gauss_newton, GAUSS_NEWTON[3], 1)],
    ids=["MLP", "Conv with batch norm", "Gauss-Newton of a Conv with batch norm"],
)
def test_compiled_products_are_exact_and_leave_the_process_as_it_was(
    make: Callable[..., LossOperator], case: Case, columns: int
) -> None:
    import torch._dynamo
    import torch._inductor.config

    configs = (torch._dynamo.config, torch._inductor.config)
    before = [config.get_config_copy() for config in configs]
    states = torch.get_rng_state(), random.getstate()
    G = make(fresh(case), case.thetas, case.batch, compile=True)
    V = randn(case.thetas.shape[1], columns, stream_name="V")
    close(G @ V, case.dense @ V)
    close(G @ V, make(case.loss, case.thetas, case.batch, route="direct") @ V)
    assert G.route == "traced" and "engine compiled, by Inductor" in repr(G)
    assert [config.get_config_copy() for config in configs] == before
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]


@NO_COMPILER
@pytest.mark.heavy
def test_one_point_and_inference_mode() -> None:
    theta, batch, dense = MLP.at(1)
    v = randn(len(theta), stream_name="v")
    H = hessian(fresh(MLP), theta, batch, compile=True)
    close(H @ v, dense @ v)
    with torch.inference_mode():
        close(hessian(H.objective.loss, theta, batch, compile=True) @ v, dense @ v)


@pytest.mark.slow
def test_operators_of_one_loss_share_what_is_compiled(compilations: list[tuple[int, ...]]) -> None:
    loss, n = fresh(CONV), CONV.thetas.shape[1]
    V = randn(n, 3, stream_name="V")
    for _ in range(2):
        H = hessian(loss, CONV.thetas, CONV.batch, compile=True)
        close(H @ V, CONV.dense @ V)
        close(H @ V[:, 0], CONV.dense @ V[:, 0])
        close(hessian(loss, CONV.thetas, CONV.batch, route="traced") @ V, CONV.dense @ V)
    assert compilations == [(3, n, 3), (3, n)]
    assert check_operator(H).ok  # compares with products of the engine direct


@pytest.mark.slow
def test_few_graphs_are_compiled_while_points_leave(compilations: list[tuple[int, ...]]) -> None:
    points, n = 21, MLP.thetas.shape[1]
    thetas = randn(points, n, stream_name="many")
    batch = tuple(leaf[torch.arange(points) % 3] for leaf in MLP.batch)
    H = hessian(fresh(MLP), thetas, batch, compile=True)
    expected = hessian(fresh(MLP), thetas, batch, route="direct").to_dense()
    chosen = torch.arange(points)
    for _ in range(points - 1):
        close(
            H.products(randn(len(chosen), n, 1, stream_name="V"))[0],
            expected[chosen[0]] @ randn(len(chosen), n, 1, stream_name="V")[0],
        )
        H, chosen = H.select(torch.arange(1, len(chosen))), chosen[1:]
    assert compilations == [(21, n), (16, n), (8, n)]
    close(H.select(torch.tensor([0, 0])).products(torch.ones(2, n, 1).double())[1], expected[-1].sum(-1, keepdim=True))


@pytest.mark.slow
def test_top_eigenpairs_of_compiled_products(compilations: list[tuple[int, ...]]) -> None:
    H = hessian(fresh(MLP), MLP.thetas, MLP.batch, compile=True)
    expected = torch.linalg.eigvalsh(MLP.dense).flip(-1)[:, :2]
    close(top_eigenpairs(H, k=2, rtol=1e-8).values, expected)
    assert 1 <= len(compilations) <= 3


@pytest.mark.parametrize("route", ["direct", "kept", "double_backward"])
def test_another_route_is_refused(route: Any) -> None:
    with pytest.raises(ValueError, match=f"^compile=True is for route='traced', not for route='{route}'; leave one"):
        hessian(MLP.loss, MLP.thetas, MLP.batch, route=route, compile=True)
    with pytest.raises(ValueError, match="^compile=True takes points together, batching='loop' one by one"):
        gauss_newton(MLP.loss, MLP.thetas, MLP.batch, batching="loop", compile=True)


def test_a_product_that_cannot_be_traced_says_to_leave_compile_out() -> None:
    def branching(theta: Tensor, batch: Tensor) -> Tensor:
        return (theta**4).sum() if float(theta.sum()) > 0 else (theta**2).sum()

    H = hessian(branching, torch.ones(3), torch.ones(2), compile=True)
    with pytest.raises(ValueError, match="^compile=True needs a trace, but .*; leave compile out$"):
        H @ torch.ones(3)


@pytest.mark.slow
def test_where_inductor_fails_the_error_says_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failed(RuntimeError):
        inner_exception = FileNotFoundError("no C++ compiler\nand much more")

    def fail(module: fx.GraphModule, **options: object) -> Callable[..., Tensor]:
        raise Failed("backend='inductor' raised:\n")

    V = randn(MLP.thetas.shape[1], stream_name="V")
    monkeypatch.setattr(torch, "compile", fail)
    H = hessian_of(nn.Linear(2, 1), nn.MSELoss(), (torch.ones(3, 2), torch.ones(3, 1)), compile=True)
    said = r"^compile=True: Inductor, .*; leave compile out \(FileNotFoundError: no C\+\+ compiler\)$"
    with pytest.raises(ValueError, match=said):
        H @ torch.ones(3)
    # A result that is not that of the graph is not returned.
    monkeypatch.setattr(torch, "compile", lambda module, **options: lambda *inputs: 1.001 * module(*inputs))
    H = hessian(fresh(MLP), MLP.thetas, MLP.batch, compile=True)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"\(its product differs from that of the graph it was given\)$"):
            H @ V

    def no_memory(module: fx.GraphModule, **options: object) -> Callable[..., Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory (planted)")

    monkeypatch.setattr(torch, "compile", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        hessian(fresh(MLP), *MLP.at(0)[:2], compile=True) @ V


def faulty(row: int) -> Callable[..., Callable[..., Tensor]]:
    """Stands in for torch.compile, with a fault of Inductor's at one point."""

    def compile(module: fx.GraphModule, **options: object) -> Callable[..., Tensor]:
        def run(V: Tensor, *kept: Tensor) -> Tensor:
            product = module(V, *kept).clone()
            product[row] *= 1.5
            return product

        return run

    return compile


def quartic(theta: Tensor, batch: Tensor) -> Tensor:
    return (batch * theta**4).sum()


@pytest.mark.parametrize("value", [float("nan"), 1e12])
def test_a_point_that_diverged_or_is_large_hides_no_fault_at_another(
    monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    batch, V = torch.ones(4, 3, dtype=torch.float64), torch.ones(4, 3, 1, dtype=torch.float64)
    thetas = torch.arange(12, dtype=torch.float64).view(4, 3) + 1
    thetas[0] = value
    monkeypatch.setattr(torch, "compile", faulty(2))
    with pytest.raises(ValueError, match="its product differs from that of the graph"):
        hessian(quartic, thetas, batch, compile=True).products(V)
    monkeypatch.setattr(torch, "compile", lambda module, **options: module)
    H = hessian(quartic, thetas, batch, compile=True)
    torch.testing.assert_close(H.products(V), 12 * thetas[..., None] ** 2, equal_nan=True)


def test_a_result_without_a_finite_point_is_no_check(monkeypatch: pytest.MonkeyPatch) -> None:
    thetas, V = torch.ones(2, 3, dtype=torch.float64), torch.ones(2, 3, 1, dtype=torch.float64)
    monkeypatch.setattr(torch, "compile", faulty(1))
    H = hessian(quartic, thetas, thetas, compile=True)
    assert H.products(V * float("nan")).isnan().all()
    with pytest.raises(ValueError, match="its product differs from that of the graph"):
        H.products(V)


def test_it_says_that_the_environment_switches_dynamo_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    H = hessian_of(nn.Linear(2, 1), nn.MSELoss(), (torch.ones(3, 2), torch.ones(3, 1)), compile=True)
    with pytest.raises(ValueError, match=r"^compile=True: .*; leave compile out \(TORCHDYNAMO_DISABLE=1 switches it"):
        H @ torch.ones(3)


@pytest.mark.slow
def test_dynamo_compiles_one_graph_for_each_size_while_points_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def backend(module: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        shapes.append(next(tuple(each.shape) for each in inputs if each.shape[-1] == n))
        return module.forward

    n, points = MLP.thetas.shape[1], 21
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    batch = tuple(leaf[torch.arange(points) % 3] for leaf in MLP.batch)
    H = hessian(fresh(MLP), randn(points, n, stream_name="many"), batch, compile=True)
    for left in range(points, 0, -1):
        H.products(torch.ones(left, n, 1, dtype=torch.float64))
        H = H.select(torch.arange(min(1, left - 1), left))
    assert shapes == [(21, n), (16, n), (8, n)]


@NO_COMPILER
@pytest.mark.heavy
def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    import torch._inductor.config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        H = hessian(fresh(MLP), MLP.thetas, MLP.batch, compile=True)
        with pytest.raises(ValueError, match="^compile=True: Inductor, .*leave compile out .*ompiler"):
            H @ randn(MLP.thetas.shape[1], stream_name="V")
