"""Products by a trace equal those of the direct route, and a trace is not used where it could be wrong."""

import gc
import weakref
from functools import partial

import pytest
import torch
from cases import without_type_checks
from torch import nn
from torch.nn import functional as F

from hessian_tools import Conv4, extremal_eigenpairs, flatten, hessian, make_loss, seeded, stream
from hessian_tools.curvature.engines.choice import enough_products
from hessian_tools.curvature.engines.compiled import trace_cache
from hessian_tools.curvature.objective.matrix import hessian_product

pytestmark = pytest.mark.slow

POINTS = 5


def network(name: str) -> nn.Module:
    builders = {
        "conv batch norm": lambda: Conv4(3, width=4, input_shape=(1, 16, 16)),
        "tanh": lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 6), nn.Tanh(), nn.Linear(6, 3)),
        "layer norm gelu": lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(256, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3)
        ),
    }
    return seeded(builders[name], seed=0).double()


def problem(model: nn.Module):
    """The loss of a network, POINTS points, their batches, and three vectors V for each point."""
    theta, layout = flatten(model)
    g = stream(0, "traced")
    thetas = theta + 0.05 * torch.randn(POINTS, len(theta), generator=g, dtype=torch.float64)
    x = torch.rand(POINTS, 4, 1, 16, 16, generator=g, dtype=torch.float64)
    y = torch.arange(4).remainder(3).expand(POINTS, 4).contiguous()
    V = torch.randn(POINTS, len(theta), 3, generator=g, dtype=torch.float64)
    return make_loss(model, F.cross_entropy, layout), thetas, (x, y), V


def check_route(loss, thetas, batch, V, **options) -> str:
    """Asserts that traced and direct products agree, and returns the route that was taken."""
    H = hessian(loss, thetas, batch, route="traced", **options)
    expected = hessian(loss, thetas, batch, route="direct", **options) @ V
    assert torch.allclose(H @ V, expected, rtol=1e-10, atol=1e-12 * expected.abs().max())
    return H.route


@pytest.mark.parametrize("name", ["conv batch norm", "tanh", "layer norm gelu"])
def test_traced_products_equal_direct_ones(name):
    loss, thetas, (x, y), V = problem(network(name))
    assert check_route(loss, thetas, (x, y), V) == "traced"
    assert check_route(loss, thetas, (x[0], y[0]), V, shared=True) == "traced"
    assert check_route(loss, thetas, [(x, y), (x[:, :2], y[:, :2])], V) == "traced"
    assert check_route(loss, thetas[0], (x[0], y[0]), V[0]) == "traced"


def test_a_product_does_not_change_the_next_one():
    loss, thetas, batch, V = problem(network("conv batch norm"))
    H = hessian(loss, thetas, batch, route="traced")
    assert torch.equal(H @ V, H @ V)


@pytest.mark.heavy
def test_dropping_points_does_not_change_the_others():
    loss, thetas, batch, V = problem(network("conv batch norm"))
    H = hessian(loss, thetas, batch, route="traced")
    whole = H @ V
    for keep in ([0, 1, 2, 4], [1, 4], [3]):
        rows = torch.tensor(keep)
        fewer = H.select(rows)
        assert torch.allclose(fewer @ V[rows], whole[rows], rtol=1e-10)
        again = fewer.select(torch.tensor([len(keep) - 1]))
        assert torch.allclose(again @ V[rows[-1:]], whole[rows[-1:]], rtol=1e-10)
        assert again.route == "traced"


@pytest.mark.parametrize("rows", [[4, 3, 2, 1, 0], [0, 0, 1, 2], [0, 1, 2, 3, 3], [0, 0], [-1, 0, 1, 2], [2, 0, 4]])
def test_points_can_be_selected_in_any_order_and_repeatedly(rows):
    loss, thetas, batch, V = problem(network("tanh"))
    H = hessian(loss, thetas, batch, route="traced")
    whole = H @ V
    chosen = torch.tensor(rows)
    assert torch.allclose(H.select(chosen) @ V[chosen], whole[chosen], rtol=1e-10)


def test_a_change_of_the_network_or_criterion_is_noticed():
    model, temperature = network("tanh"), {"is": 1.0}
    layout = flatten(model)[1]
    loss = make_loss(model, lambda out, y: F.cross_entropy(out / temperature["is"], y), layout)
    _, thetas, batch, V = problem(model)
    assert check_route(loss, thetas, batch, V) == "traced"
    model[2] = nn.Softplus()
    assert check_route(loss, thetas, batch, V) == "traced"
    temperature["is"] = 0.3
    assert check_route(loss, thetas, batch, V) == "traced"


def test_a_traced_network_can_be_freed():
    loss, thetas, batch, V = problem(network("tanh"))
    hessian(loss, thetas, batch, route="traced") @ V
    model = weakref.ref(loss.model)
    del loss
    gc.collect()
    assert model() is None


def test_with_several_batches_fewer_points_fit_in_memory():
    loss, thetas, (x, y), _ = problem(network("conv batch norm"))
    one, three = (hessian(loss, thetas, [(x, y)] * n, route="traced", chunk=6).at_once for n in (1, 3))
    # ``chunk`` counts products of the route "direct", each of which takes the memory of two kept batches.
    assert (one, three) == (12, 4)


@pytest.mark.heavy
def test_eigenpairs_by_trace_and_in_parts_are_the_same():
    loss, thetas, batch, _ = problem(network("conv batch norm"))
    expected = extremal_eigenpairs(hessian(loss, thetas, batch, route="direct"), magnitude=2)
    found = extremal_eigenpairs(hessian(loss, thetas, batch, route="traced"), magnitude=2)
    assert torch.allclose(found.magnitude.values, expected.magnitude.values, rtol=1e-6)
    parts = hessian(loss, thetas, batch, route="traced", chunk=1)
    assert [part.num_points for part in parts.parts()] == [2, 2, 1]
    in_parts = extremal_eigenpairs(parts, magnitude=2)
    assert torch.allclose(in_parts.smallest.values, expected.smallest.values, rtol=1e-6)
    assert in_parts.magnitude.residuals.shape == (POINTS, 2)


def test_a_nan_point_does_not_spoil_the_others():
    loss, thetas, batch, V = problem(network("conv batch norm"))
    thetas = thetas.clone()
    thetas[1] = float("nan")
    product = hessian(loss, thetas, batch, route="traced") @ V
    assert product[1].isnan().all()
    assert product[[0, 2, 3, 4]].isfinite().all()


class Branching(nn.Module):
    """A network that branches on the values of its parameters, which a trace does not show."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 0.5, -0.3]))

    def forward(self, x):
        return (x * self.weight**2).sum(-1) if float(self.weight.detach()[0]) > 0 else (x * self.weight**3).sum(-1)


def test_a_network_that_branches_on_its_parameters_is_never_traced():
    model = Branching().double()
    theta, layout = flatten(model)
    loss = make_loss(model, lambda out, y: (out**2).mean(), layout)
    x = torch.rand(4, 3, generator=stream(1), dtype=torch.float64)
    assert trace_cache.traced_product(partial(hessian_product, loss), "branch", loss, theta, (x, x), points=1) is None
    with pytest.raises(ValueError, match="cannot be traced, because .* pass route='auto' or 'direct'"):
        hessian(loss, theta[None], (x[None], x[None]), route="traced").mv(theta)
    with pytest.raises(ValueError, match="route='traced' takes points together; pass route='direct' or 'kept'"):
        hessian(loss, theta[None], (x[None], x[None]), route="traced", batching="loop")
    H = hessian(loss, theta[None], (x[None], x[None]))
    H.announce(10**6)
    assert torch.allclose(H.mv(theta), hessian(loss, theta, (x, x), route="kept").mv(theta)[None])
    assert H.route == "kept"


def test_a_changed_frozen_parameter_is_not_taken_from_an_old_trace():
    model = network("tanh")
    _, thetas, batch, V = problem(model)
    theta, layout = flatten(model, where=["1"])
    loss_of_first_layer = make_loss(model, F.cross_entropy, layout)
    first = hessian(loss_of_first_layer, thetas[:, : len(theta)], batch, route="traced") @ V[:, : len(theta)]
    with torch.no_grad():
        model[3].weight.mul_(2)
    assert check_route(loss_of_first_layer, thetas[:, : len(theta)], batch, V[:, : len(theta)]) == "traced"
    again = hessian(loss_of_first_layer, thetas[:, : len(theta)], batch, route="traced") @ V[:, : len(theta)]
    assert not torch.allclose(first, again)


def test_auto_compiles_only_for_announced_products_and_never_a_plain_function():
    loss, thetas, batch, V = problem(network("tanh"))
    H = hessian(loss, thetas, batch)
    for _ in range(enough_products(forward=10**5, device=H.device) // (POINTS * 3) + 1):
        assert (H @ V).isfinite().all()
    assert H.route == "kept"  # products that were not announced never cause a trace
    H.announce(enough_products(forward=10**5, device=H.device) // POINTS)
    H @ V
    assert H.route == "traced"
    plain = hessian(lambda t, b: (t**4).sum(), thetas, torch.zeros(POINTS))
    plain.announce(10**6)
    plain @ V
    assert plain.route == "direct"


@pytest.mark.heavy
def test_traces_are_kept_and_their_number_is_bounded(monkeypatch):
    loss, thetas, (x, y), V = problem(network("tanh"))
    for examples in (1, 2, 3, 4, 1):
        hessian(loss, thetas, (x[:, :examples], y[:, :examples]), route="traced") @ V
    assert len(trace_cache._TRACES[loss]) == 4
    monkeypatch.setattr(trace_cache, "MAX_TRACES", 2)
    hessian(loss, thetas, (x.repeat(1, 2, 1, 1, 1), y.repeat(1, 2)), route="traced") @ V
    assert len(trace_cache._TRACES[loss]) == 2


def test_an_unknown_route_is_refused():
    loss, thetas, batch, _ = problem(network("tanh"))
    with without_type_checks(), pytest.raises(ValueError, match="route='fast' must be one of"):
        hessian(loss, thetas, batch, route="fast")
