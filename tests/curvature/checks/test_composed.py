"""The self-check of sums, blocks, restrictions and Gauss-Newton matrices."""

from collections.abc import Callable

import pytest
import torch
from cases import LINEAR, NETWORKS, SPECTRA, at, randn, symmetric
from torch import Tensor
from wrong_operators import (
    CONV,
    Dense,
    ForwardOverJacrev,
    ReverseOverForward,
    ReverseOverReverse,
    cubic,
    failed,
    wrong_hessian,
)

from hessian_tools.curvature import GaussNewton, Hessian, Operator, check_operator, gauss_newton, hessian

COMPOSED: dict[str, Callable[[Operator, Operator, Tensor], Operator]] = {
    "gauss-newton": lambda H, G, Q: G,
    "difference": lambda H, G, Q: H - G,
    "block": lambda H, G, Q: H.block("body"),
    "restriction": lambda H, G, Q: H.restrict(Q),
    "scaled": lambda H, G, Q: (H - G).scaled(1 + Q[:, 0].abs()),  # D (H - G) D with a diagonal matrix D
    "restricted-block-of-a-sum": lambda H, G, Q: (0.5 * H + 2 * G).block("body").restrict(Q),
}


@pytest.mark.parametrize("kind", COMPOSED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_all_six_checks_judge_composed_operators(dtype: torch.dtype, kind: str) -> None:
    """Tested for operators at several points and at a single point."""
    case = next(case for case in NETWORKS if case.name == "tanh-mlp")
    for thetas, batch in ((case.thetas.to(dtype), case.batch), (case.thetas[1].to(dtype), at(case.batch, 1))):
        H, G = hessian(case.loss, thetas, batch), gauss_newton(case.loss, thetas, batch)
        operator = composed(kind, H, G)
        check = check_operator(operator, num_probes=1, max_points=2)
        assert check.ok, str(check)
        assert all(finding.passed for finding in check.findings), str(check)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_the_rounding_of_a_difference_is_measured_by_its_terms(dtype: torch.dtype) -> None:
    """For a linear network H - G is zero except for rounding."""
    case = next(case for case in LINEAR if case.name == "softmax-regression")
    thetas = case.thetas.to(dtype)
    check = check_operator(hessian(case.loss, thetas, case.batch) - gauss_newton(case.loss, thetas, case.batch))
    assert all(finding.passed for finding in check.findings), str(check)
    assert "the terms of Hv" in str(check)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in COMPOSED if kind != "gauss-newton"])
@pytest.mark.parametrize("route", [ForwardOverJacrev, ReverseOverForward], ids=lambda kind: kind.__name__)
def test_wrong_products_are_caught_inside_other_operators(route: type[Hessian], kind: str) -> None:
    """By two of the three routes torch differentiates batch normalisation wrongly; reverse over reverse is right."""
    right = composed(kind, wrong_hessian(ReverseOverReverse), gauss_newton(CONV.loss, CONV.thetas, CONV.batch))
    wrong = composed(kind, wrong_hessian(route), gauss_newton(CONV.loss, CONV.thetas, CONV.batch))
    assert check_operator(right, num_probes=1, max_points=1).ok
    assert "differences" in failed(check_operator(wrong, num_probes=1, max_points=1))


def composed(kind: str, H: Operator, G: Operator) -> Operator:
    """The operator of this kind, made of a Hessian H and a Gauss-Newton matrix G."""
    rows = H.block("body").num_params if kind.endswith("sum") else H.num_params
    Q = torch.linalg.qr(randn(rows, 4, stream_name="subspace", dtype=H.dtype)).Q
    return COMPOSED[kind](H, G, Q)


class WrongGaussNewton(GaussNewton):
    """A Gauss-Newton matrix whose products are 2 % too large."""

    def products(self, V: Tensor) -> Tensor:
        return 1.02 * super().products(V)


def test_a_wrong_gauss_newton_matrix_is_caught() -> None:
    G = gauss_newton(CONV.loss, CONV.thetas, CONV.batch)
    check = check_operator(WrongGaussNewton(G.prepared, G.single))
    assert failed(check) == {"differences"}
    assert check.differences.value == pytest.approx(0.02 / 1.02, rel=1e-3)
    assert "not derivatives of this loss's gradient" in str(check)


def test_hidden_state_is_found_inside_other_operators() -> None:
    draw = [torch.ones]
    H, noisy = (hessian(f, torch.ones(3), None) for f in (cubic, lambda theta, _: (theta * draw[0](3)).sum() ** 2))
    draw[0] = torch.rand  # after the look at the loss that an operator takes when it is made
    assert failed(check_operator(H + noisy)) == {"state"}
    assert check_operator(H + 2 * H).ok


def test_sums_with_a_matrix_of_no_known_loss_are_judged_by_symmetry_and_linearity() -> None:
    H = hessian(cubic, torch.ones(24).double(), None)
    check = check_operator(H + Dense(symmetric(SPECTRA["indefinite"])[0]))
    assert [finding.passed for finding in check.findings] == [None, True, True, None, None, None]
