"""The third derivative along a direction: closed forms, differences of exact Hessians, and torch's wrong kernels."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from cases import NETWORKS, Case, at, network_case, randn, seeded, tanh_mlp, without_type_checks
from torch import Tensor, nn

from hessian_tools.curvature import Expansion, gradient, hessian, third_derivative
from hessian_tools.curvature.directions import third_derivative as third_derivative_module
from hessian_tools.loss import LossFunction

Norm = Callable[[int], nn.Module]
NORMS: dict[str, Norm] = {
    "batch": lambda width: nn.BatchNorm2d(width, track_running_stats=False),
    "instance": lambda width: nn.InstanceNorm2d(width, affine=True),
    "group": lambda width: nn.GroupNorm(2, width),
    "none": lambda width: nn.Identity(),
}
# Normalisations whose third derivative torch's own kernels have wrong.
WRONG_NATIVELY = ("batch", "instance", "layer")


class FeatureNorm(nn.Module):
    """Layer normalisation over all axes but the examples."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, x.shape[1:])


NORMS["layer"] = lambda width: FeatureNorm()


@cache
def smooth_case(norm: str, activation: Callable[[], nn.Module] = nn.Tanh) -> Case:
    """Convolution, normalisation, smooth activation, average pooling, linear head."""

    def build() -> nn.Module:
        block = [nn.Conv2d(1, 4, 3), NORMS[norm](4), activation(), nn.AvgPool2d(2)]
        return nn.Sequential(*block, nn.Flatten(), nn.Linear(16, 3))

    batch = (randn(3, 6, 1, 6, 6, stream_name="images"), torch.tensor([0, 1, 2, 0, 1, 2]).expand(3, 6))
    return network_case(f"smooth-{norm}", seeded(build), nn.functional.cross_entropy, batch)


def directions(case: Case) -> Tensor:
    return randn(*case.thetas.shape, stream_name="direction") / 10


def differences(case: Case, d: Tensor, h: float = 1e-3) -> Tensor:
    """(phi''(h) - phi''(-h)) / 2h from exact Hessians, with two lengths h combined so that the error is O(h^4)."""

    def second_derivative(t: float) -> Tensor:
        return (hessian(case.loss, case.thetas + t * d, case.batch).mv(d) * d).sum(-1)

    near, far = ((second_derivative(s * h) - second_derivative(-s * h)) / (2 * s * h) for s in (1, 2))
    return (4 * near - far) / 3


@contextmanager
def native_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes the likely mistake on purpose: torch's own normalisation is used in place of PrimitiveNormalisation."""

    @contextmanager
    def nothing() -> Iterator[None]:
        yield

    with monkeypatch.context() as patch:
        patch.setattr(third_derivative_module, "PrimitiveNormalisation", nothing)
        yield


def test_a_polynomial_and_a_quadratic() -> None:
    """For sum a theta^3 the third derivative is T(d, d, d) = 6 sum a d^3, and for a quadratic it is 0."""
    theta, d, a = (randn(4, 5, stream_name=name) for name in ("theta", "d", "a"))
    result = third_derivative(lambda theta, a: (a * theta**3).sum(), theta, a, d)
    torch.testing.assert_close(result.value, (a * theta**3).sum(-1))
    torch.testing.assert_close(result.first, 3 * (a * theta**2 * d).sum(-1))
    torch.testing.assert_close(result.second, 6 * (a * theta * d**2).sum(-1))
    torch.testing.assert_close(result.third, 6 * (a * d**3).sum(-1))
    assert (result.error < 1e-12).all()
    for t in (0.3, randn(4, stream_name="t")):
        exact = (a * (theta + (t if isinstance(t, float) else t[:, None]) * d) ** 3).sum(-1) - result.value
        torch.testing.assert_close(result.change(t), exact)
    flat = third_derivative(lambda theta, a: (a * theta**2).sum(), theta, a, d)
    assert (flat.third == 0).all()


@pytest.mark.parametrize("norm", NORMS)
def test_networks_against_differences_of_exact_hessians(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = smooth_case(norm)
    d = directions(case)
    result, expected = third_derivative(case.loss, case.thetas, case.batch, d), differences(case, d)
    torch.testing.assert_close(result.third, expected, rtol=1e-7, atol=1e-9)
    assert (result.error < 1e-12).all()
    with native_kernels(monkeypatch):
        native = third_derivative(case.loss, case.thetas, case.batch, d)
    off = (native.third / expected - 1).abs().max()
    assert (off > 1e-3) == (norm in WRONG_NATIVELY)
    # The two routes disagree where torch is wrong, and the stated error shows it.
    assert bool(((native.third - expected).abs() > 1e-6).any()) == bool((native.error > 1e-6).any())


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.GELU, nn.SiLU, nn.Softplus, nn.Mish])
def test_third_derivatives_of_activations(activation: Callable[[], nn.Module]) -> None:
    case = smooth_case("batch", activation)
    d = directions(case)
    torch.testing.assert_close(
        third_derivative(case.loss, case.thetas, case.batch, d).third, differences(case, d), rtol=1e-6, atol=1e-9
    )


def test_with_kinks_the_result_is_that_of_the_smooth_piece() -> None:
    """With ReLU and max-pooling, differences agree if they are short enough to stay on the piece."""
    case = next(case for case in NETWORKS if case.name == "conv-batchnorm")
    d = directions(case)
    result = third_derivative(case.loss, case.thetas, case.batch, d)
    torch.testing.assert_close(result.third, differences(case, d, h=1e-6), rtol=1e-4, atol=1e-4)


def test_the_lower_derivatives_are_those_of_gradient_and_hessian() -> None:
    case = smooth_case("batch")
    d = directions(case)
    result = third_derivative(case.loss, case.thetas, case.batch, d)
    torch.testing.assert_close(result.first, (gradient(case.loss, case.thetas, case.batch) * d).sum(-1))
    torch.testing.assert_close(result.second, (hessian(case.loss, case.thetas, case.batch).mv(d) * d).sum(-1))
    values = torch.stack([case.loss(case.thetas[i], at(case.batch, i)) for i in range(3)])
    torch.testing.assert_close(result.value, values)


def test_the_error_of_each_order_falls_at_its_rate() -> None:
    """Halving the step divides the error of the prediction of order k by 2^(k+1)."""
    case = tanh_mlp()
    g = gradient(case.loss, case.thetas, case.batch)
    result = third_derivative(case.loss, case.thetas, case.batch, g)

    def error_of_order(alpha: float, order: int) -> Tensor:
        after = [case.loss(case.thetas[i] - alpha * g[i], at(case.batch, i)) for i in range(3)]
        return (torch.stack(after) - result.value - result.change(-alpha, order=order)).abs()

    for order in (1, 2, 3):
        rate = (error_of_order(2e-3, order) / error_of_order(1e-3, order)).log2()
        torch.testing.assert_close(rate, torch.full_like(rate, order + 1), rtol=0, atol=0.1)


def test_chunks_loops_lists_single_points_and_shared_batches_agree() -> None:
    case = smooth_case("batch")
    d = directions(case)
    whole = third_derivative(case.loss, case.thetas, case.batch, d)
    for options in ({"chunk": 1}, {"chunk": 4}, {"batching": "loop"}):
        torch.testing.assert_close(
            third_derivative(case.loss, case.thetas, case.batch, d, **options).third, whole.third
        )
    single = third_derivative(case.loss, *case.at(1)[:2], d[1])
    assert single.third.shape == single.error.shape == ()
    torch.testing.assert_close(single.third, whole.third[1])
    x, y = case.batch
    pieces = [(x[:, :2], y[:, :2]), (x[:, 2:], y[:, 2:])]
    parts = [third_derivative(case.loss, case.thetas, piece, d).third for piece in pieces]
    both = third_derivative(case.loss, case.thetas, pieces, d)
    torch.testing.assert_close(both.third, (2 * parts[0] + 4 * parts[1]) / 6)
    one = third_derivative(case.loss, case.thetas, case.at(0)[1], d, shared=True)
    torch.testing.assert_close(one.third[0], whole.third[0])


def test_the_error_covers_the_rounding_of_float32() -> None:
    case = smooth_case("batch")
    d = directions(case)
    exact = third_derivative(case.loss, case.thetas, case.batch, d).third
    rounded = third_derivative(case.loss, case.thetas.float(), case.batch, d.float())
    assert ((rounded.third - exact).abs() <= rounded.error).all()
    assert (rounded.error < 1e-3 * exact.abs() + 1e-4).all()


def test_a_point_that_is_not_finite_changes_no_other_and_inputs_are_not_changed() -> None:
    case = smooth_case("batch")
    thetas = case.thetas.clone().requires_grad_()
    d, state = directions(case), torch.get_rng_state()
    result = third_derivative(case.loss, thetas, case.batch, d)
    assert not result.third.requires_grad
    assert thetas.grad is None
    assert torch.equal(state, torch.get_rng_state())
    d[1] = torch.nan
    with_nan = third_derivative(case.loss, case.thetas, case.batch, d)
    assert with_nan.third.isnan().tolist() == with_nan.error.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(with_nan.third[0], result.third[0])


def test_wrong_arguments_are_refused_in_plain_words() -> None:
    loss: LossFunction = lambda theta, _: (theta**3).sum()  # noqa: E731
    with without_type_checks(), pytest.raises(ValueError, match="directions has shape .3,., .* thetas has .2,. there"):
        third_derivative(loss, torch.ones(2, 3), None, torch.ones(3), shared=True)
    with pytest.raises(ValueError, match="one direction for each point"):
        third_derivative(loss, torch.ones(3), None, torch.ones(3, dtype=torch.float64))
    zero = torch.tensor(0.0)
    with pytest.raises(ValueError, match="order=4"):
        Expansion(zero, zero, zero, zero, zero).change(0.1, order=4)
