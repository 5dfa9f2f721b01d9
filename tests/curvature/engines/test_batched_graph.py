"""Batched graphs compute the same as their functions, do not change their inputs, and can be run repeatedly."""

import pytest
import torch
from cases import randn
from torch import Tensor, fx
from torch.func import vmap

from hessian_tools.curvature.engines.compiled.batched_graph import batched_graph, graph_of
from hessian_tools.curvature.engines.compiled.memory_plan import peak_bytes, reuse_memory
from hessian_tools.curvature.engines.compiled.simplify import simplify

N = 160  # matrices of 25 600 numbers, which are large enough for a buffer


def reads_both_sides(v: Tensor, a: Tensor) -> Tensor:
    u = v @ a
    return ((u + u.mT) * v).sum(0)  # the inputs u and u.mT share memory


def reads_again_later(v: Tensor, a: Tensor) -> Tensor:
    u = v * a
    w = u + a
    return (w * v - u).sum(0)


def returns_a_view(v: Tensor, a: Tensor) -> Tensor:
    return ((v * a) * v).mT


def overwrites_only_its_own(v: Tensor, a: Tensor) -> Tensor:
    flat = v.reshape(-1)
    return (flat * 2 + a.reshape(-1)).reshape(N, N) - v


def many_short_lived(v: Tensor, a: Tensor) -> Tensor:
    total = v
    for _ in range(6):
        total = (total @ a) / N + torch.mm(a, v) / N
    return total.sum(-1)


FUNCTIONS = [reads_both_sides, reads_again_later, returns_a_view, overwrites_only_its_own, many_short_lived]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("points", [False, True])
@pytest.mark.parametrize("probes", [False, True])
def test_a_batched_graph_computes_its_function(function, points, probes) -> None:
    V, a = randn(*[2] * points, N, N, *[3] * probes, stream_name="V"), randn(*[2] * points, N, N, stream_name="a")
    graph = batched_graph(function, V, (a,), points=points, probes=probes)
    expected = (lambda v, a: vmap(lambda c: function(c, a), in_dims=-1, out_dims=-1)(v)) if probes else function
    expected = vmap(expected) if points else expected
    buffers = [b.empty().fill_(float("nan")) for b in graph.buffers]
    first = graph.run(V, a, *buffers)
    assert torch.allclose(first, expected(V, a), rtol=1e-12)
    before = (V.clone(), a.clone(), first.clone())
    assert torch.allclose(graph.run(2 * V, a, *buffers), expected(2 * V, a), rtol=1e-12)
    assert all(torch.equal(now, then) for now, then in zip((V, a, first), before, strict=True))


def test_memory_is_reused() -> None:
    graph = graph_of(many_short_lived, randn(N, N, stream_name="V"), randn(N, N, stream_name="a")).graph
    peak, largest = peak_bytes(graph)
    assert largest == 8 * N * N
    assert 2 * largest <= peak <= 4 * largest
    assert 1 <= len(reuse_memory(graph)) <= 3


def simplified(function, *inputs: Tensor) -> list[str]:
    """The operations of the simplified graph of a function, after a check that its result is unchanged."""
    module = graph_of(function, *inputs)
    expected = function(*inputs)
    simplify(module.graph)
    module.recompile()
    assert torch.allclose(module(*inputs), expected, rtol=1e-12)
    return [str(node.target) for node in module.graph.nodes if node.op == "call_function"]


def test_zeros_repetitions_and_views_of_views_are_dropped() -> None:
    x, y = randn(4, 4, stream_name="x"), randn(4, 4, stream_name="y")
    assert simplified(lambda x, y: x * y + torch.zeros_like(x) * y, x, y) == ["aten.mul.Tensor"]
    assert simplified(lambda x, y: x * y - torch.zeros(4, 4).double() @ y, x, y) == ["aten.mul.Tensor"]
    assert len(simplified(lambda x, y: (x @ y).sin() + (x @ y).sin(), x, y)) == 3
    assert simplified(lambda x, y: (x * y).t().t().reshape(16).reshape(4, 4), x, y) == ["aten.mul.Tensor"]
    # A zero stays if the sum has its shape by broadcasting.
    assert "aten.add.Tensor" in simplified(lambda x, y: x[0] * y[0] + torch.zeros_like(x), x, y)
    assert "aten.sub.Tensor" in simplified(lambda x, y: torch.zeros_like(x) - x * y, x, y)


def test_two_draws_of_random_numbers_are_not_merged() -> None:
    graph = graph_of(lambda x: torch.rand_like(x) - torch.rand_like(x), torch.ones(3)).graph
    simplify(graph)
    drawn = [node for node in graph.nodes if isinstance(node, fx.Node) and "rand" in str(node.target)]
    assert len(drawn) == 2
