"""The self-check: right operators pass it, planted wrong ones are named."""

from collections.abc import Callable

import pytest
import torch
from cases import CASES, LINEAR, NETWORKS, SPECTRA, Case, at, quadratic, randn, seeded, squared_error, symmetric
from torch import Tensor, nn
from torch.func import grad, jacrev, jvp, vmap

from hessian_tools.curvature import Check, GaussNewton, Hessian, Operator, check_operator, gauss_newton, hessian
from hessian_tools.curvature.checks.differences import difference_quotients
from hessian_tools.flat import flatten
from hessian_tools.loss import make_loss

CONV = next(case for case in NETWORKS if case.name == "conv-batchnorm")


class ByRoute(Hessian):
    """A Hessian whose products take another route, point by point."""

    def products(self, V: Tensor) -> Tensor:
        batches = self.points.batches[0]
        rows = []
        for i, theta in enumerate(self.points.thetas):
            batch = batches if self.points.shared else at(batches, i)
            rows.append(torch.stack([self.route(theta, batch, v) for v in V[i].T], dim=-1))
        return torch.stack(rows).detach()


class ForwardOverJacrev(ByRoute):
    def route(self, theta: Tensor, batch: object, v: Tensor) -> Tensor:
        return jvp(jacrev(lambda t: self.points.loss(t, batch)), (theta,), (v,))[1]


class ReverseOverForward(ByRoute):
    def route(self, theta: Tensor, batch: object, v: Tensor) -> Tensor:
        return grad(lambda t: jvp(lambda s: self.points.loss(s, batch), (t,), (v,))[1])(theta)


class ReverseOverReverse(ByRoute):
    def route(self, theta: Tensor, batch: object, v: Tensor) -> Tensor:
        return grad(lambda t: grad(lambda s: self.points.loss(s, batch))(t) @ v)(theta)


class OutsideVmap(Hessian):
    def products(self, V: Tensor) -> Tensor:
        def gradients(thetas: Tensor) -> Tensor:
            return vmap(grad(self.points.loss))(thetas, self.points.batches[0])

        columns = [jvp(gradients, (self.points.thetas,), (v,))[1] for v in V.unbind(-1)]
        return torch.stack(columns, dim=-1).detach()


class Doubled(Hessian):
    """Symmetric, linear, and wrong by a factor."""

    def products(self, V: Tensor) -> Tensor:
        return 1.001 * super().products(V)


class Affine(Hessian):
    def products(self, V: Tensor) -> Tensor:
        return super().products(V) + 1e-3


class WrongInPieces(Hessian):
    """Right at once, wrong one at a time."""

    def products(self, V: Tensor) -> Tensor:
        return super().products(V) * (1 + 1e-6 * (self.points.most == 1))


class Dense(Operator):
    """Some matrix, of which no loss is known."""

    num_points, dtype, device = None, torch.float64, torch.device("cpu")

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    @property
    def num_params(self) -> int:
        return len(self.matrix)

    def products(self, V: Tensor) -> Tensor:
        return self.matrix @ V

    def select(self, points: Tensor) -> Operator:
        raise NotImplementedError


def planted(kind: type[Hessian], case: Case = CONV, dtype: torch.dtype = torch.float64) -> Hessian:
    H = hessian(case.loss, case.thetas.to(dtype), case.batch)
    return kind(H.points, H.single)


def failed(check: Check) -> set[str]:
    return {finding.name for finding in check.findings if finding.passed is False}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_right_operators_pass_every_check(case: Case, dtype: torch.dtype) -> None:
    check = check_operator(hessian(case.loss, case.thetas.to(dtype), case.batch), num_probes=1)
    assert check.ok, str(check)
    assert all(finding.passed for finding in check.findings), str(check)
    assert all(finding.value <= finding.allowed for finding in check.findings)
    assert len(str(check).splitlines()) == 6


WRONG_ROUTES = {
    ForwardOverJacrev: {"symmetry", "differences"},
    ReverseOverForward: {"symmetry", "differences"},
    OutsideVmap: {"symmetry", "differences"},
    Doubled: {"differences"},
    Affine: {"symmetry", "linearity", "differences"},
    WrongInPieces: {"batching"},
}


@pytest.mark.parametrize("kind", WRONG_ROUTES, ids=lambda kind: kind.__name__)
def test_planted_wrong_products_are_caught(kind: type[Hessian]) -> None:
    """Those of differentiating through F.batch_norm in another order, and plain mistakes."""
    check = check_operator(planted(kind))
    assert not check.ok
    assert failed(check) == WRONG_ROUTES[kind], str(check)


@pytest.mark.parametrize("kind", [ForwardOverJacrev, ReverseOverForward, OutsideVmap], ids=lambda kind: kind.__name__)
def test_wrong_routes_are_caught_in_float32_by_float64_differences(kind: type[Hessian]) -> None:
    check = check_operator(planted(kind, dtype=torch.float32), num_probes=1, max_points=1)
    assert check.differences.passed is False
    assert 5e-3 < check.differences.value < 1
    assert "not derivatives of this loss's gradient" in str(check)


COMPOSED: dict[str, Callable[[Operator, Operator, Tensor], Operator]] = {
    "gauss-newton": lambda H, G, Q: G,
    "difference": lambda H, G, Q: H - G,
    "block": lambda H, G, Q: H.block("body"),
    "restriction": lambda H, G, Q: H.restrict(Q),
    "restricted-block-of-a-sum": lambda H, G, Q: (0.5 * H + 2 * G).block("body").restrict(Q),
}


@pytest.mark.parametrize("kind", COMPOSED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_composed_operators_are_judged_in_full(dtype: torch.dtype, kind: str) -> None:
    """At many points and at one."""
    case = next(case for case in NETWORKS if case.name == "tanh-mlp")
    for thetas, batch in ((case.thetas.to(dtype), case.batch), (case.thetas[1].to(dtype), at(case.batch, 1))):
        H, G = hessian(case.loss, thetas, batch), gauss_newton(case.loss, thetas, batch)
        operator = composed(kind, H, G)
        check = check_operator(operator, num_probes=1, max_points=2)
        assert check.ok, str(check)
        assert all(finding.passed for finding in check.findings), str(check)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_rounding_of_a_difference_is_that_of_its_terms(dtype: torch.dtype) -> None:
    """Of a linear network H - G is zero."""
    case = LINEAR[1]
    thetas = case.thetas.to(dtype)
    check = check_operator(hessian(case.loss, thetas, case.batch) - gauss_newton(case.loss, thetas, case.batch))
    assert all(finding.passed for finding in check.findings), str(check)
    assert "the terms of Hv" in str(check)


@pytest.mark.parametrize("kind", [kind for kind in COMPOSED if kind != "gauss-newton"])
@pytest.mark.parametrize("route", [ForwardOverJacrev, ReverseOverForward], ids=lambda kind: kind.__name__)
def test_planted_wrong_products_are_caught_inside_others(route: type[Hessian], kind: str) -> None:
    right = composed(kind, planted(ReverseOverReverse), gauss_newton(CONV.loss, CONV.thetas, CONV.batch))
    wrong = composed(kind, planted(route), gauss_newton(CONV.loss, CONV.thetas, CONV.batch))
    assert check_operator(right, num_probes=1, max_points=1).ok
    assert "differences" in failed(check_operator(wrong, num_probes=1, max_points=1))


def composed(kind: str, H: Operator, G: Operator) -> Operator:
    rows = H.block("body").num_params if kind.endswith("sum") else H.num_params
    Q = torch.linalg.qr(randn(rows, 4, path="subspace", dtype=H.dtype)).Q
    return COMPOSED[kind](H, G, Q)


class WrongGaussNewton(GaussNewton):
    def products(self, V: Tensor) -> Tensor:
        return 1.02 * super().products(V)


def test_a_wrong_gauss_newton_matrix_is_caught() -> None:
    G = gauss_newton(CONV.loss, CONV.thetas, CONV.batch)
    check = check_operator(WrongGaussNewton(G.points, G.single))
    assert failed(check) == {"differences"}
    assert check.differences.value == pytest.approx(0.02 / 1.02, rel=1e-3)
    assert "not derivatives of this loss's gradient" in str(check)


def test_hidden_state_is_found_inside_others() -> None:
    H, noisy = (hessian(f, torch.ones(3), None) for f in (cubic, lambda theta, _: (theta * torch.rand(3)).sum() ** 2))
    assert failed(check_operator(H + noisy)) == {"state"}
    assert check_operator(H + 2 * H).ok


def test_sums_with_a_matrix_of_no_loss_are_judged_by_symmetry_and_linearity() -> None:
    H = hessian(cubic, torch.ones(24).double(), None)
    check = check_operator(H + Dense(symmetric(SPECTRA["indefinite"])[0]))
    assert [finding.passed for finding in check.findings] == [None, True, True, None, None, None]


def test_another_right_route_passes() -> None:
    assert check_operator(planted(ReverseOverReverse)).ok


def test_a_matrix_is_judged_by_symmetry_and_linearity() -> None:
    A = symmetric(SPECTRA["indefinite"])[0]
    check = check_operator(Dense(A))
    assert check.ok
    assert [finding.passed for finding in check.findings] == [None, True, True, None, None, None]
    skew = A + 1e-6 * (torch.ones(24, 24).triu() - torch.ones(24, 24).tril())
    assert failed(check_operator(Dense(skew.double()))) == {"symmetry"}


def test_precision_names_what_float32_lost() -> None:
    """A fourth power of theta, less most of its digits in float32."""

    def loss(theta: Tensor, big: Tensor) -> Tensor:
        return ((theta + big - big) ** 4).sum()

    H = hessian(loss, torch.full((3,), 0.3), torch.tensor(1e6))
    check = check_operator(H)
    assert failed(check) == {"precision"}
    assert "measure in float64" in check.precision.sentence
    assert check_operator(hessian(loss, torch.full((3,), 0.3).double(), torch.tensor(1e6))).ok


def kink(theta: Tensor, _: object) -> Tensor:
    return (theta.relu() ** 2).sum() / 2


def test_a_kink_is_not_judged() -> None:
    """relu(t)^2 / 2 at 0: torch says 0, quotients say 0 and 1."""
    check = check_operator(hessian(kink, torch.zeros(3, dtype=torch.float64), None))
    assert check.differences.passed is None
    assert "not smooth" in check.differences.sentence
    assert check.ok
    assert check_operator(hessian(kink, torch.tensor([1.0, -2.0]), None)).differences.passed


def test_flat_and_linear_losses_pass() -> None:
    for loss in (lambda theta, _: theta.sum(), lambda theta, _: 0 * (theta**2).sum()):
        check = check_operator(hessian(loss, torch.ones(3, dtype=torch.float64), None), num_probes=1)
        assert all(finding.passed for finding in check.findings), str(check)


def test_not_a_number_fails_in_words() -> None:
    thetas = CONV.thetas.clone()
    thetas[1] = torch.nan
    check = check_operator(hessian(CONV.loss, thetas, CONV.batch))
    assert {"symmetry", "linearity", "differences"} <= failed(check)


def test_hidden_state_is_found_even_when_it_came_later() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))).eval()
    theta, layout = flatten(model)
    H = hessian(make_loss(model, squared_error, layout), theta, (randn(4, 2, path="x"), randn(4, 1, path="y")))
    assert check_operator(H).ok
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check = check_operator(H)
    assert failed(check) == {"state"}
    assert "'1' (BatchNorm1d)" in str(check)
    assert [finding.passed for finding in check.findings[1:]] == [None] * 5
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("noise", [torch.rand, lambda n: next(COUNT) * torch.ones(n)], ids=["random", "counter"])
def test_a_loss_that_does_not_repeat_is_found(noise: Callable[[int], Tensor]) -> None:
    H = hessian(lambda theta, _: (theta * noise(3)).sum() ** 2, torch.ones(3), None)
    state = torch.get_rng_state()
    assert failed(check_operator(H)) == {"state"}
    assert torch.equal(state, torch.get_rng_state())


COUNT = iter(range(1, 10_000))


def test_loss_that_vmap_refuses_is_not_judged_by_batching() -> None:
    def loss(theta: Tensor, a: Tensor) -> Tensor:
        return (theta**2).sum() if bool(a > 0) else (theta**4).sum()

    H = hessian(loss, torch.ones(2, 3), torch.tensor([1.0, -1.0]), batching="loop")
    check = check_operator(H)
    assert check.ok
    assert check.batching.passed is None


def test_only_some_points_are_looked_at_and_nothing_is_changed() -> None:
    calls = []

    def loss(theta: Tensor, A: Tensor) -> Tensor:
        calls.append(1)
        return quadratic(theta, A)

    A = symmetric(SPECTRA["decaying"], points=6)
    thetas = randn(6, 24, path="many").requires_grad_()
    H = hessian(loss, thetas, A, batching="loop", chunk=4)
    A[1] = torch.nan  # between the first, the third and the last
    assert check_operator(H, num_probes=1, max_points=3).ok
    assert not check_operator(H, max_points=6).ok
    assert thetas.grad is None
    assert torch.equal(A[0], symmetric(SPECTRA["decaying"], points=6)[0])
    with pytest.raises(ValueError, match="max_points=0"):
        check_operator(H, max_points=0)


def cubic(theta: Tensor, _: object) -> Tensor:
    return (theta**3).sum()


def test_difference_quotients_of_a_cubic() -> None:
    """H = 6 diag(theta): central quotients are exact but for rounding; the sides differ by h times 6."""
    thetas = torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=torch.float64)
    H = hessian(cubic, thetas, None)
    V = torch.eye(2, dtype=torch.float64)
    quotients = difference_quotients(H, V)
    torch.testing.assert_close(quotients.central, 6 * torch.diag_embed(thetas), rtol=1e-6, atol=1e-6)
    assert (quotients.disagreement < 1e-5).all()
    error = (quotients.central - 6 * torch.diag_embed(thetas)).norm(dim=1)
    assert (error <= 2 * quotients.disagreement).all()
    coarse = difference_quotients(hessian(cubic, 1e-3 * thetas, None), V)
    assert coarse.central.shape == (2, 2, 2)
