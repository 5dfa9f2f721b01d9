"""Curvature along the gradient: closed forms, invariances, the distance of two inner loops, rounding errors."""

import math
from itertools import pairwise

import pytest
import torch
from cases import NETWORKS, Case, quadratic, randn, seeded, small_conv, squared_error, tanh_mlp
from torch import Tensor, nn

from hessian_tools.curvature import (
    DESCENT_THRESHOLD,
    alignment,
    cos_displacement,
    cosine_null,
    curvature_along,
    filter_scale,
    gauss_newton,
    gradient,
    gradient_curvature,
    hessian,
    product_asymmetry,
    rademacher,
    rho_normalised,
    rounding_error,
    small_step_difference,
)
from hessian_tools.layout import flatten
from hessian_tools.loss import Loss, make_loss


def test_the_formulas_are_the_rayleigh_quotient_and_the_ratio_of_norms() -> None:
    g, A = randn(4, 6, stream_name="g"), randn(4, 6, 6, stream_name="A")
    hg = ((A + A.mT) @ g[..., None])[..., 0]
    result = curvature_along(g, hg)
    torch.testing.assert_close(result.rho, (g * hg).sum(-1) / (g * g).sum(-1))
    torch.testing.assert_close(result.hg_ratio, hg.norm(dim=-1) / g.norm(dim=-1))
    torch.testing.assert_close(result.grad_norm, g.norm(dim=-1))
    assert (result.rho.abs() <= result.hg_ratio).all()


def test_a_zero_gradient_gives_nan() -> None:
    result = curvature_along(torch.zeros(2, 3), torch.zeros(2, 3))
    assert result.rho.isnan().all()
    assert result.hg_ratio.isnan().all()
    assert (result.grad_norm == 0).all()


@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)
def test_the_curvature_of_an_operator_along_its_own_gradient(case: Case) -> None:
    alphas = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)
    result = gradient_curvature(hessian(case.loss, case.thetas, case.batch), alphas)
    g = gradient(case.loss, case.thetas, case.batch)
    hg = (case.dense @ g[..., None])[..., 0]
    rho = (g * hg).sum(-1) / (g * g).sum(-1)
    torch.testing.assert_close(result.rho, rho)
    torch.testing.assert_close(result.hg_ratio, hg.norm(dim=-1) / g.norm(dim=-1))
    torch.testing.assert_close(result.grad_norm, g.norm(dim=-1))
    torch.testing.assert_close(result.alpha_rho, alphas * rho)
    assert result.error is not None and (result.error < 1e-12 * result.hg_ratio).all()
    torch.testing.assert_close(result.alpha_rho_error, alphas * result.error)


def test_the_error_covers_the_rounding_of_rho_in_float32() -> None:
    for case in NETWORKS:
        exact = gradient_curvature(hessian(case.loss, case.thetas, case.batch))
        rounded = gradient_curvature(hessian(case.loss, case.thetas.float(), case.batch))
        assert rounded.error is not None
        for name in ("rho", "hg_ratio"):
            off = (getattr(rounded, name).double() - getattr(exact, name)).abs()
            assert (off <= rounded.error).all(), (case.name, name)
        assert (rounded.error < 1e-3 * rounded.hg_ratio).all()


def test_a_single_point_has_no_point_axis_and_without_step_size_there_is_no_alpha_rho() -> None:
    case = tanh_mlp()
    theta, batch, _ = case.at(1)
    result = gradient_curvature(hessian(case.loss, theta, batch))
    all_points = gradient_curvature(hessian(case.loss, case.thetas, case.batch))
    assert result.rho.shape == result.grad_norm.shape == result.error.shape == ()
    torch.testing.assert_close(result.rho, all_points.rho[1])
    assert result.alpha_rho is None and result.alpha_rho_error is None


def test_blocks_and_restrictions_use_their_part_of_the_gradient() -> None:
    case = tanh_mlp()
    H, g = hessian(case.loss, case.thetas, case.batch), gradient(case.loss, case.thetas, case.batch)
    block = H.block("head")
    part = g[:, block.rows]
    torch.testing.assert_close(gradient_curvature(block).rho, curvature_along(part, block.mv(part)).rho)
    Q = torch.linalg.qr(randn(g.shape[-1], 4, stream_name="Q")).Q
    seen = gradient_curvature(H.restrict(Q))
    torch.testing.assert_close(seen.grad_norm, (g @ Q).norm(dim=-1))
    G = gauss_newton(case.loss, case.thetas, case.batch)
    torch.testing.assert_close(gradient_curvature(G).rho, curvature_along(g, G.mv(g)).rho)
    with pytest.raises(ValueError, match="the gradient that belongs to a Combination is not known"):
        gradient_curvature(H - G)


def test_a_zero_gradient_gives_nan_and_zero_curvature_gives_zero() -> None:
    def loss(theta: Tensor, slope: Tensor) -> Tensor:
        return (slope * theta).sum()

    thetas, slopes = torch.ones(2, 3), torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 2.0]])
    result = gradient_curvature(hessian(loss, thetas, slopes))
    assert result.error is not None
    for numbers in (result.rho, result.hg_ratio, result.error):
        assert numbers.isnan().tolist() == [True, False] and float(numbers[1]) == 0
    assert result.grad_norm.tolist() == [0.0, 3.0]


def test_a_product_with_a_zero_in_one_entry_has_rounding_errors() -> None:
    A = randn(20, 30, 30, stream_name="A").float()
    A = A + A.mT
    A[:, 0], A[:, :, 0] = 0, 0
    result = gradient_curvature(hessian(quadratic, randn(20, 30, stream_name="theta").float(), A))
    eps_alone = rounding_error(result.hg_ratio, torch.zeros(20))
    assert result.error is not None and (result.error > eps_alone).any()


@pytest.mark.parametrize("alpha", [0.5, 0.99, 1.01, 3.0])
def test_descent_threshold_is_where_the_integral_changes_sign(alpha: float) -> None:
    """The integral of g'g (1 - alpha t rho) over t in [0, 1] is the fall of a quadratic loss (Lee 2023, Eq. 3)."""
    g = torch.tensor([3.0], dtype=torch.float64)
    rho = curvature_along(g, 2 * g).rho
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    integral = torch.trapezoid(float(g @ g) * (1 - alpha * t * rho), t)
    assert bool(integral > 0) == bool(alpha * rho < DESCENT_THRESHOLD)


def test_cosine_with_the_displacement() -> None:
    gradients = randn(2, 4, 7, stream_name="gradients")
    displacement = -gradients.sum(-2)
    cosines = cos_displacement(gradients, displacement)
    reference = nn.functional.cosine_similarity(-gradients, displacement[:, None], dim=-1)
    torch.testing.assert_close(cosines, reference)
    assert cos_displacement(gradients, torch.zeros(2, 7)).isnan().all()


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_the_mean_cosine_of_orthogonal_gradients_lies_within_the_null(steps: int) -> None:
    """The null is the range from 1/K to 1/sqrt(K) for K steps; where in it the mean lies depends on the norms."""
    directions = torch.linalg.qr(randn(200, 8, 8, stream_name="directions")).Q[:, :steps]
    norms = torch.exp(2 * randn(200, steps, stream_name="norms"))
    gradients = directions * norms[..., None]
    means = cos_displacement(gradients, -gradients.sum(-2)).mean(-1)
    null = cosine_null(steps)
    assert (means > null.low - 1e-12).all()
    assert (means < null.high + 1e-12).all()
    assert math.isnan(null.mean) and math.isnan(null.std)
    equal = cos_displacement(directions, -directions.sum(-2)).mean(-1)
    torch.testing.assert_close(equal, torch.full_like(equal, null.high))


def test_alignment_in_closed_form() -> None:
    """The argument is the Gram matrix of the gradients: diagonal if they are orthogonal, constant if they are equal."""
    norms = torch.tensor([1.0, 5.0, 0.1], dtype=torch.float64)
    assert alignment(torch.diag(norms**2)) == 0
    torch.testing.assert_close(alignment(torch.full((4, 4), 2.5)), torch.tensor(1.0))
    assert alignment(torch.ones(1, 1)).isnan()
    assert alignment(torch.zeros(3, 3)).isnan()
    gradients = randn(5, 3, 20, stream_name="gradients")
    direct = ((gradients.sum(1) ** 2).sum(-1) / (gradients**2).sum((1, 2)) - 1) / 2
    torch.testing.assert_close(alignment(gradients @ gradients.mT), direct)


def test_alignment_of_an_oscillating_quadratic() -> None:
    """Gradient descent with alpha * lambda = 1.9 multiplies the gradient by -0.9: A = -.33 for three steps."""
    g = torch.tensor([1.0, -0.9, 0.81])
    assert round(float(alignment(g[:, None] * g)), 2) == -0.33


def conv_problem(eps: float) -> tuple[Loss, Tensor, tuple[Tensor, Tensor], list[str]]:
    """A loss, a point, a batch, and the names of the weights that are normalised. eps: of the normalisation."""
    model = seeded(lambda: small_conv(eps=eps))
    theta, layout = flatten(model)
    batch = randn(6, 1, 8, 8, stream_name="images"), torch.tensor([0, 1, 2, 0, 1, 2])
    return make_loss(model, nn.functional.cross_entropy, layout), theta.double(), batch, ["0.weight", "4.weight"]


def normalised(loss: Loss, theta: Tensor, batch: tuple[Tensor, Tensor], names: list[str]) -> tuple[Tensor, Tensor]:
    """The normalised and the raw curvature along the gradient."""
    g, H = gradient(loss, theta, batch), hessian(loss, theta, batch)
    d = filter_scale(loss.layout, theta, names)
    return rho_normalised(d, g, H.mv(d**2 * g)), curvature_along(g, H.mv(g)).rho


@pytest.mark.parametrize(("eps", "rtol"), [(1e-12, 1e-8), (1e-5, 2e-2)])
def test_normalised_curvature_ignores_the_scale_of_filters(eps: float, rtol: float) -> None:
    loss, theta, batch, names = conv_problem(eps)
    factors = torch.exp(randn(4, stream_name="factors"))[:, None, None, None]
    pieces = loss.layout.unflatten(theta)
    scaled = loss.layout.flatten(pieces | {name: factors * pieces[name] for name in names})
    (before, raw_before), (after, raw_after) = (normalised(loss, t, batch, names) for t in (theta, scaled))
    torch.testing.assert_close(after, before, rtol=rtol, atol=0)
    assert abs(raw_after / raw_before - 1) > 0.1


def test_normalised_curvature_is_the_quotient_of_the_scaled_hessian() -> None:
    A, g, d = randn(3, 5, 5, stream_name="A"), randn(3, 5, stream_name="g"), randn(3, 5, stream_name="d").abs()
    A = A + A.mT
    D = torch.diag_embed(d)
    dg = D @ g[..., None]
    quotient = (dg.mT @ (D @ A @ D) @ dg)[:, 0, 0] / (dg**2).sum((-2, -1))
    torch.testing.assert_close(rho_normalised(d, g, (A @ (d**2 * g)[..., None])[..., 0]), quotient)


def test_filter_scale_is_the_norm_of_each_filter() -> None:
    loss, theta, _, names = conv_problem(1e-5)
    d = filter_scale(loss.layout, theta, names)
    pieces, scales = loss.layout.unflatten(theta), loss.layout.unflatten(d)
    for name, scale in scales.items():
        if name in names:
            assert torch.allclose(scale, pieces[name].flatten(1).norm(dim=1)[:, None, None, None].expand_as(scale))
        else:
            assert (scale == 1).all()
    both = filter_scale(loss.layout, torch.stack([theta, 2 * theta]), names)
    torch.testing.assert_close(both[0], d)
    with pytest.raises(ValueError, match=r"no parameter named '7\.weight'"):
        filter_scale(loss.layout, theta, ["7.weight"])


def test_asymmetry_predicts_the_float32_error_of_rho() -> None:
    """The prediction is right within an order of magnitude, in the median over points."""
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 30), nn.Tanh(), nn.Linear(30, 30), nn.Tanh(), nn.Linear(30, 2)))
    theta, layout = flatten(model)
    loss = make_loss(model, squared_error, layout)
    thetas = theta.double() + 0.3 * randn(30, layout.numel, stream_name="thetas")
    batch = randn(30, 20, 4, stream_name="x"), randn(30, 20, 2, stream_name="y")
    rhos, predicted = [], None
    for dtype in (torch.float64, torch.float32):
        at, z = thetas.to(dtype), rademacher(layout.numel, 6).to(dtype)
        g, H = gradient(loss, at, batch), hessian(loss, at, batch)
        hg = H.mv(g)
        rhos.append(curvature_along(g, hg).rho.double())
        predicted = product_asymmetry(hg, g, H @ z, z)
    actual = (rhos[0] - rhos[1]).abs().median()
    assert actual / 10 < predicted.median() < 10 * actual


def test_exact_products_have_no_asymmetry() -> None:
    case = NETWORKS[1]
    g, z = randn(*case.thetas.shape, stream_name="g"), randn(3, case.thetas.shape[-1], 4, stream_name="z")
    asymmetry = product_asymmetry((case.dense @ g[..., None])[..., 0], g, case.dense @ z, z)
    assert (asymmetry < 1e-13 * case.dense.abs().amax()).all()
    asymmetric = case.dense + randn(*case.dense.shape, stream_name="crooked")
    skew = ((asymmetric - asymmetric.mT) @ g[..., None])[..., 0]
    expected = ((skew[..., None] * z).sum(1) / g.norm(dim=-1)[:, None] / z.norm(dim=1)).abs().amax(-1)
    torch.testing.assert_close(product_asymmetry((asymmetric @ g[..., None])[..., 0], g, asymmetric @ z, z), expected)


@pytest.mark.parametrize(("target", "reference"), [(1, 3), (2, 4), (1, 6)])
def test_the_distance_of_two_inner_loops_has_a_third_order_remainder(target: int, reference: int) -> None:
    """(tau^2 / 2) (1/T - 1/R) H g is the distance of their ends up to a multiple of tau^3."""
    case = tanh_mlp()
    theta, batch, dense = case.at(0)
    hg = dense @ gradient(case.loss, theta, batch)

    def descend(steps: int, tau: float) -> Tensor:
        at = theta
        for _ in range(steps):
            at = at - tau / steps * gradient(case.loss, at, batch)
        return at

    taus = [0.02 / 2**i for i in range(4)]
    remainders = []
    for tau in taus:
        predicted = small_step_difference(hg, tau=tau, target_steps=target, reference_steps=reference)
        actual = descend(reference, tau) - descend(target, tau)
        remainders.append(float((actual - predicted).norm()))
    slopes = [math.log2(a / b) for a, b in pairwise(remainders)]
    assert all(2.9 < slope < 3.1 for slope in slopes), slopes


@pytest.mark.parametrize("scale", [1e-30, 1e-21, 1e21, 1e30])
def test_float32_is_right_at_extreme_scales(scale: float) -> None:
    """Ratios do not depend on the size of the gradient, whose square leaves the range of float32."""
    g, hg, z, hz = (
        randn(5, stream_name="g"),
        randn(5, stream_name="hg"),
        randn(5, 2, stream_name="z"),
        randn(5, 2, stream_name="hz"),
    )
    expected, result = curvature_along(g, hg), curvature_along((g * scale).float(), (hg * scale).float())
    for name, unit in (("rho", 1.0), ("hg_ratio", 1.0), ("grad_norm", scale)):
        assert float(getattr(result, name)) / unit == pytest.approx(float(getattr(expected, name)), rel=1e-5)
    scaled = [(t * scale).float() for t in (torch.stack([g, hg]), g + hg)]
    torch.testing.assert_close(cos_displacement(*scaled).double(), cos_displacement(torch.stack([g, hg]), g + hg))
    d = randn(5, stream_name="d").abs()
    normalised = rho_normalised(d.float(), (g * scale).float(), (hg * scale).float())
    assert float(normalised) == pytest.approx(float(rho_normalised(d, g, hg)), rel=1e-5)
    asymmetry = product_asymmetry((hg * scale).float(), (g * scale).float(), hz.float(), z.float())
    assert float(asymmetry) == pytest.approx(float(product_asymmetry(hg, g, hz, z)), rel=1e-5)
    assert float(alignment(torch.ones(3, 3) * scale)) == pytest.approx(1.0)


def test_scaling_by_powers_of_two_changes_no_bit_of_the_ratios() -> None:
    g, hg = randn(4, 7, stream_name="g"), randn(4, 7, stream_name="hg")
    plain, scaled = curvature_along(g, hg), curvature_along(g * 2.0**-40, hg * 2.0**-40)
    assert torch.equal(plain.rho, scaled.rho) and torch.equal(plain.hg_ratio, scaled.hg_ratio)
    zero = curvature_along(torch.zeros(3), torch.zeros(3))
    assert float(zero.grad_norm) == 0 and bool(zero.rho.isnan()) and bool(zero.hg_ratio.isnan())
