"""The Gauss-Newton operator against closed forms and dense J'BJ, and its relation to the Hessian."""

import pytest
import torch
from cases import (
    GAUSS_NEWTON,
    LINEAR,
    NETWORKS,
    Case,
    randn,
    relu_mlp,
    rows_of,
    squared_error,
    tanh_mlp,
    without_type_checks,
)
from contract import check_operator, close
from torch import Tensor, nn

from hessian_tools.curvature import gauss_newton, gauss_newton_spectrum, hessian, top_eigenpairs, trace
from hessian_tools.layout import flatten
from hessian_tools.loss import HiddenStateError, make_loss

by_name = pytest.mark.parametrize("case", GAUSS_NEWTON, ids=lambda case: case.name)
CONV = next(case for case in GAUSS_NEWTON if case.name == "conv-batchnorm")


@pytest.mark.slow
@by_name
def test_contract(case: Case) -> None:
    check_operator(gauss_newton, case)


@pytest.mark.parametrize("case", LINEAR, ids=lambda case: case.name)
def test_for_linear_networks_it_is_the_hessian(case: Case) -> None:
    V = randn(case.thetas.shape[-1], 2, stream_name="V")
    G, H = (make(case.loss, case.thetas, case.batch) for make in (gauss_newton, hessian))
    close(G @ V, H @ V)
    assert ((H - G) @ V).abs().max() < 1e-12 * (H @ V).abs().max()


@by_name
def test_loop_and_vmap_agree(case: Case) -> None:
    V = randn(case.thetas.shape[-1], 2, stream_name="V")
    close(gauss_newton(case.loss, case.thetas, case.batch, batching="loop") @ V, case.dense @ V)


@pytest.mark.parametrize("case", [LINEAR[1], CONV], ids=lambda case: case.name)
def test_it_is_the_fisher_matrix_with_labels_drawn_from_the_model(case: Case) -> None:
    """The Fisher matrix is the mean over examples, and expectation over y ~ p, of the score's outer product."""
    theta, (x, _), dense = case.at(0)
    theta = theta.clone().requires_grad_()
    log_p = case.loss.outputs(theta, x).log_softmax(-1)
    scores = rows_of(log_p, theta)
    close(scores.T @ (log_p.detach().exp().flatten()[:, None] * scores) / len(x), dense)


def test_one_theta_expanded_over_points() -> None:
    """All tasks start from one theta. torch has no forward derivative where points share memory."""
    thetas, V = CONV.thetas[:1].expand(3, -1), randn(CONV.thetas.shape[-1], 2, stream_name="V")
    for make in (gauss_newton, hessian):
        close(make(CONV.loss, thetas, CONV.batch) @ V, make(CONV.loss, thetas.clone(), CONV.batch) @ V)


def test_for_relu_networks_without_normalisation_its_trace_is_that_of_the_hessian() -> None:
    """Such a network is linear in each weight alone, so H - G has a zero diagonal."""
    relu, conv = (
        [make(case.loss, case.thetas, case.batch).to_dense() for make in (hessian, gauss_newton)]
        for case in (relu_mlp(), CONV)
    )
    for (H, G), equal in ((relu, True), (conv, False)):
        traces = [A.diagonal(dim1=-2, dim2=-1).sum(-1) for A in (H, G)]
        assert torch.allclose(*traces, rtol=1e-10) is equal
        assert (H - G).norm() > 0.01 * H.norm()


def test_positive_semi_definite_where_the_hessian_is_not() -> None:
    G, H = (make(CONV.loss, CONV.thetas, CONV.batch) for make in (gauss_newton, hessian))
    least = top_eigenpairs(G, k=1, which="SA", rtol=1e-6).values[:, 0]
    most = top_eigenpairs(G, k=1, which="LA", rtol=1e-6).values[:, 0]
    assert (least > -1e-10 * most).all()
    assert (top_eigenpairs(H, k=1, which="SA").values < 0).any()


@pytest.mark.parametrize("points", [False, True])
def test_list_of_unequal_batches(points: bool) -> None:
    case = tanh_mlp()
    thetas, (x, y) = (case.thetas, case.batch) if points else case.at(0)[:2]
    pieces = [(x[..., :5, :], y[..., :5, :]), (x[..., 5:, :], y[..., 5:, :])]
    whole = gauss_newton(case.loss, thetas, (x, y)).to_dense()
    close(gauss_newton(case.loss, thetas, pieces).to_dense(), whole)
    halves = [gauss_newton(case.loss, thetas, piece).to_dense() for piece in pieces]
    close(gauss_newton(case.loss, thetas, pieces, weights=[1, 3]).to_dense(), (halves[0] + 3 * halves[1]) / 4)


def test_shared_batch() -> None:
    case = LINEAR[0]
    G = gauss_newton(case.loss, case.thetas, case.at(0)[1], shared=True)
    close(G.to_dense(), case.dense[0].expand_as(G.to_dense()))


def test_criterion_that_couples_examples() -> None:
    """(sum of outputs)^2: B is 2 in every entry, so G = 2 (sum of rows of J)'(sum of rows of J)."""
    model = nn.Linear(3, 1, bias=False)
    loss = make_loss(model, lambda out, y: out.sum() ** 2, flatten(model)[1])
    x = randn(4, 3, stream_name="x")
    G = gauss_newton(loss, randn(3, stream_name="theta"), (x, torch.zeros(4)))
    close(G.to_dense(), 2 * torch.outer(x.sum(0), x.sum(0)))


def test_mse_loss_works_for_gauss_newton() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    theta, layout = flatten(model)
    thetas, batch = theta.double().expand(2, -1), (randn(2, 4, 2, stream_name="x"), randn(2, 4, 1, stream_name="y"))
    expected = gauss_newton(make_loss(model, squared_error, layout), thetas, batch).to_dense()
    close(gauss_newton(make_loss(model, nn.MSELoss(), layout), thetas, batch).to_dense(), expected)


def test_nan_at_one_point_stays_there() -> None:
    thetas = CONV.thetas.clone()
    thetas[1, 0] = torch.nan
    V = randn(thetas.shape[-1], 2, stream_name="V")
    product = gauss_newton(CONV.loss, thetas, CONV.batch) @ V
    assert product[1].isnan().all()
    close(product[[0, 2]], (CONV.dense @ V)[[0, 2]])


def test_products_do_not_need_grad_mode() -> None:
    V = randn(CONV.thetas.shape[-1], 2, stream_name="V")
    with torch.no_grad():
        close(gauss_newton(CONV.loss, CONV.thetas, CONV.batch) @ V, CONV.dense @ V)


def test_float32_agrees_with_float64_to_rounding() -> None:
    V = randn(CONV.thetas.shape[-1], 2, stream_name="V")
    product = gauss_newton(CONV.loss, CONV.thetas.float(), CONV.batch) @ V.float()
    assert product.dtype == torch.float32
    assert (product - CONV.dense @ V).norm() < 1e-4 * (CONV.dense @ V).norm()


def test_wrong_arguments_are_refused_in_plain_words() -> None:
    def plain(theta: Tensor, batch: object) -> Tensor:
        return (theta**2).sum()

    with without_type_checks(), pytest.raises(ValueError, match=r"make_loss\(model, criterion, layout\)") as refusal:
        gauss_newton(plain, torch.ones(3), None)
    assert len(str(refusal.value)) < 240
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    loss = make_loss(model, squared_error, flatten(model)[1])
    with pytest.raises(HiddenStateError, match="BatchNorm1d"):
        gauss_newton(loss, flatten(model)[0], (torch.ones(4, 2), torch.ones(4, 3)))
    case = NETWORKS[0]
    with pytest.raises(ValueError, match="shared=True"):
        gauss_newton(case.loss, case.thetas[:2], case.batch)


def test_a_network_with_several_outputs() -> None:
    """Against J'BJ by plain autograd, for the operator, its spectrum and its trace."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"a": self.a(x).tanh(), "b": self.b(x).tanh()}

    def criterion(out: dict[str, Tensor], y: Tensor) -> Tensor:
        return squared_error(out["a"], y) + nn.functional.softplus(out["a"].sum(-1) + out["b"][:, 0]).mean()

    model = Heads().double()
    theta, layout = flatten(model)
    loss = make_loss(model, criterion, layout)
    x, y = randn(2, 3, stream_name="x"), randn(2, 2, stream_name="y")

    def outputs(t: Tensor) -> Tensor:
        return torch.cat([out.flatten() for out in loss.outputs(t, x).values()])

    def criterion_of_row(u: Tensor) -> Tensor:
        return criterion({"a": u[:4].view(2, 2), "b": u[4:].view(2, 1)}, y)

    J, B = (
        torch.autograd.functional.jacobian(outputs, theta),
        torch.autograd.functional.hessian(criterion_of_row, outputs(theta)),
    )
    G = gauss_newton(loss, theta, (x, y))
    close(G.to_dense(), J.mT @ B @ J)
    spectrum = gauss_newton_spectrum(loss, theta, (x, y))
    close(spectrum.values, torch.linalg.eigvalsh(J.mT @ B @ J).flip(0)[:6])
    estimate = trace(G)
    close(estimate.value, (J.mT @ B @ J).trace())
    assert (estimate.method, int(estimate.num_matvecs)) == ("outputs", 6)
