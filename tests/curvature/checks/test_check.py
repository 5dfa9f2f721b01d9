"""The self-check ``check_operator``: correct operators pass it, and for wrong ones it names what is wrong."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from cases import CASES, SPECTRA, Case, quadratic, randn, seeded, squared_error, symmetric
from torch import Tensor, nn
from wrong_operators import (
    CONV,
    Affine,
    Dense,
    ForwardOverJacrev,
    OutsideVmap,
    ReverseOverForward,
    ReverseOverReverse,
    SlightlyScaled,
    WrongInPieces,
    failed,
    wrong_hessian,
)

from hessian_tools.curvature import Hessian, check_operator, hessian
from hessian_tools.layout import flatten
from hessian_tools.loss import make_loss


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
    SlightlyScaled: {"differences"},
    Affine: {"symmetry", "linearity", "differences"},
    WrongInPieces: {"batching"},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRONG_ROUTES, ids=lambda kind: kind.__name__)
def test_wrong_products_are_caught(kind: type[Hessian]) -> None:
    """The wrong products come from differentiating F.batch_norm in another order, or from plain mistakes."""
    check = check_operator(wrong_hessian(kind))
    assert not check.ok
    assert failed(check) == WRONG_ROUTES[kind], str(check)


@pytest.mark.parametrize("kind", [ForwardOverJacrev, ReverseOverForward, OutsideVmap], ids=lambda kind: kind.__name__)
def test_wrong_routes_are_caught_in_float32_by_float64_differences(kind: type[Hessian]) -> None:
    check = check_operator(wrong_hessian(kind, dtype=torch.float32), num_probes=1, max_points=1)
    assert check.differences.passed is False
    assert 5e-3 < check.differences.value < 1
    assert "not derivatives of this loss's gradient" in str(check)


def test_products_in_another_correct_order_pass() -> None:
    assert check_operator(wrong_hessian(ReverseOverReverse)).ok


def test_a_matrix_is_judged_by_symmetry_and_linearity() -> None:
    A = symmetric(SPECTRA["indefinite"])[0]
    check = check_operator(Dense(A))
    assert check.ok
    assert [finding.passed for finding in check.findings] == [None, True, True, None, None, None]
    skew = A + 1e-6 * (torch.ones(24, 24).triu() - torch.ones(24, 24).tril())
    assert failed(check_operator(Dense(skew.double()))) == {"symmetry"}


def test_lost_precision_of_float32_is_found() -> None:
    """Adding and subtracting 1e6 in float32 loses most digits of theta."""

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
    """The second derivative of relu(t)^2 / 2 at 0 is 0 in torch, and 0 or 1 by backward and forward quotients."""
    check = check_operator(hessian(kink, torch.zeros(3, dtype=torch.float64), None))
    assert check.differences.passed is None
    assert "not smooth" in check.differences.sentence
    assert check.ok
    assert check_operator(hessian(kink, torch.tensor([1.0, -2.0]), None)).differences.passed


def test_flat_and_linear_losses_pass() -> None:
    for loss in (lambda theta, _: theta.sum(), lambda theta, _: 0 * (theta**2).sum()):
        check = check_operator(hessian(loss, torch.ones(3, dtype=torch.float64), None), num_probes=1)
        assert all(finding.passed for finding in check.findings), str(check)


def test_a_loss_that_is_not_finite_fails_with_a_sentence() -> None:
    thetas = CONV.thetas.clone()
    thetas[1] = torch.nan
    check = check_operator(hessian(CONV.loss, thetas, CONV.batch))
    assert failed(check) == {"state"}
    assert "not finite at 1 of" in check.state.sentence


def test_hidden_state_is_found_even_if_it_appears_after_the_operator_was_made() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))).eval()
    theta, layout = flatten(model)
    H = hessian(
        make_loss(model, squared_error, layout), theta, (randn(4, 2, stream_name="x"), randn(4, 1, stream_name="y"))
    )
    assert check_operator(H).ok
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check = check_operator(H)
    assert failed(check) == {"state"}
    assert "'1' (BatchNorm1d)" in str(check)
    assert [finding.passed for finding in check.findings[1:]] == [None] * 5
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


NOISES: dict[str, Callable[[int], Tensor]] = {
    "torch": torch.rand,
    "NumPy": lambda n: torch.from_numpy(np.random.rand(n)).float(),
    "counter": lambda n: next(COUNT) * torch.ones(n),
}


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_a_loss_that_no_longer_repeats_is_found(noise: Callable[[int], Tensor]) -> None:
    """The operator refuses such a loss when it is made, so the noise is switched on afterwards."""
    switch = [torch.ones]
    H = hessian(lambda theta, _: (theta * switch[0](3)).sum() ** 2, torch.ones(3), None)
    switch[0] = noise
    states = torch.get_rng_state(), np.random.get_state()[1]
    assert failed(check_operator(H)) == {"state"}
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])


COUNT = iter(range(1, 10_000))


def test_batching_is_not_judged_for_a_loss_that_vmap_refuses() -> None:
    def loss(theta: Tensor, a: Tensor) -> Tensor:
        return (theta**2).sum() if bool(a > 0) else (theta**4).sum()

    H = hessian(loss, torch.ones(2, 3), torch.tensor([1.0, -1.0]), batching="loop")
    check = check_operator(H)
    assert check.ok
    assert check.batching.passed is None


def test_only_some_points_are_checked_and_nothing_is_changed() -> None:
    calls = []

    def loss(theta: Tensor, A: Tensor) -> Tensor:
        calls.append(1)
        return quadratic(theta, A)

    A = symmetric(SPECTRA["decaying"], points=6)
    thetas = randn(6, 24, stream_name="many").requires_grad_()
    H = hessian(loss, thetas, A, batching="loop", chunk=4)
    A[1] = torch.nan  # not checked: the checked points are the first, the third and the last
    assert check_operator(H, num_probes=1, max_points=3).ok
    assert not check_operator(H, max_points=6).ok
    assert thetas.grad is None
    assert torch.equal(A[0], symmetric(SPECTRA["decaying"], points=6)[0])
    with pytest.raises(ValueError, match="max_points=0"):
        check_operator(H, max_points=0)
