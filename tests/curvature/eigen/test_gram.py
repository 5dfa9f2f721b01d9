"""The exact Gauss-Newton spectrum against eigenvalues of the dense matrix, and the validity of its error bound."""

import pytest
import torch
from cases import (
    GAUSS_NEWTON,
    LINEAR,
    Case,
    at,
    dense_gauss_newton,
    gauss_newton_case,
    randn,
    squared_error,
    tanh_mlp,
    without_type_checks,
)
from contract import close
from torch import Tensor, nn

from hessian_tools.curvature import gauss_newton, gauss_newton_spectrum, ragged, spectrum
from hessian_tools.layout import flatten
from hessian_tools.loss import Loss, make_loss

by_name = pytest.mark.parametrize("case", GAUSS_NEWTON, ids=lambda case: case.name)
CONV = next(case for case in GAUSS_NEWTON if case.name == "conv-batchnorm")
TANH = gauss_newton_case(tanh_mlp())


def falling(dense: Tensor, k: int) -> Tensor:
    """The k largest eigenvalues in falling order."""
    return torch.linalg.eigvalsh(dense).flip(-1)[..., :k]


def linear_loss(criterion: nn.Module | None = None, *, inputs: int = 3, outputs: int = 1) -> Loss:
    model = nn.Linear(inputs, outputs, bias=False)
    return make_loss(model, criterion or squared_error, flatten(model)[1])


@by_name
def test_every_eigenvalue_agrees_with_the_dense_matrix(case: Case) -> None:
    spectrum = gauss_newton_spectrum(case.loss, case.thetas, case.batch)
    outputs = case.loss.outputs(case.thetas[0], case.batch[0][0]).numel()
    k = min(outputs, case.thetas.shape[-1])
    assert spectrum.values.shape == (len(case.thetas), k)
    close(spectrum.values, falling(case.dense, k))
    close(spectrum.trace, case.dense.diagonal(dim1=-2, dim2=-1).sum(-1))
    close(spectrum.frobenius, case.dense.flatten(1).norm(dim=-1))
    assert spectrum.vectors is None
    assert (spectrum.error <= 1e-12 * spectrum.values[:, 0]).all()
    assert (spectrum.values.diff(dim=-1) <= 0).all()


@by_name
def test_vectors_are_orthonormal_eigenvectors(case: Case) -> None:
    spectrum = gauss_newton_spectrum(case.loss, case.thetas, case.batch, vectors=True)
    X = spectrum.vectors
    assert X is not None
    close(X.mT @ X, torch.eye(X.shape[-1], dtype=X.dtype).expand(len(X), -1, -1))
    close((X * spectrum.values[:, None]) @ X.mT, case.dense)
    close(spectrum.values, gauss_newton_spectrum(case.loss, case.thetas, case.batch).values)


@by_name
def test_single_points_chunks_and_the_loop_give_the_same(case: Case) -> None:
    whole = gauss_newton_spectrum(case.loss, case.thetas, case.batch, vectors=True)
    for i in range(len(case.thetas)):
        single = gauss_newton_spectrum(case.loss, *case.at(i)[:2], vectors=True)
        close(single.values, whole.values[i])
        assert single.vectors is not None
        assert (single.error.shape, single.vectors.shape) == ((), (case.thetas.shape[-1], len(single.values)))
    for options in ({"chunk": 1}, {"chunk": 7}, {"chunk": 40}, {"batching": "loop"}):
        close(gauss_newton_spectrum(case.loss, case.thetas, case.batch, **options).values, whole.values)


def test_list_of_unequal_batches() -> None:
    x, y = TANH.batch
    pieces = [(x[:, :5], y[:, :5]), (x[:, 5:], y[:, 5:])]
    spectrum = gauss_newton_spectrum(TANH.loss, TANH.thetas, pieces, vectors=True)
    close(spectrum.values, falling(TANH.dense, 7))
    halves = [
        torch.stack([dense_gauss_newton(TANH.loss, TANH.thetas[i], at(piece, i)) for i in range(3)]) for piece in pieces
    ]
    other = gauss_newton_spectrum(TANH.loss, TANH.thetas, pieces, weights=[1, 3])
    close(other.values, falling((halves[0] + 3 * halves[1]) / 4, 7))


def test_shared_batch() -> None:
    case = LINEAR[0]
    spectrum = gauss_newton_spectrum(case.loss, case.thetas, case.at(0)[1], shared=True)
    close(spectrum.values, falling(case.dense[0], 5).expand(3, 5))


def test_criterion_that_couples_examples() -> None:
    """(sum of outputs)^2 + |outputs|^2 has B = 2 (1 1' + I), not diagonal in the examples."""
    loss = linear_loss(lambda out, y: out.sum() ** 2 + (out**2).sum())
    x = randn(2, 3, stream_name="x")
    s = x.sum(0)
    spectrum = gauss_newton_spectrum(loss, randn(3, stream_name="theta"), (x, torch.zeros(2)))
    close(spectrum.values, falling(2 * (torch.outer(s, s) + x.T @ x), 2))


def test_error_covers_the_rounding_of_single_precision() -> None:
    """For a linear network and squared error J and B are exact, so only the small eigenproblem has errors."""
    for seed in range(20):
        x = (10.0 ** torch.linspace(0, -4, 6))[:, None] * randn(6, 30, stream_name=f"scaled/{seed}").float()
        loss, batch = linear_loss(inputs=30), (x, torch.zeros(6, 1))
        spectrum = gauss_newton_spectrum(loss, torch.ones(30), batch)
        exact = falling(2 * x.double() @ x.double().T / 6, 6)
        assert spectrum.values.dtype == torch.float32
        assert ((spectrum.values - exact).abs() <= spectrum.error).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 30.0, 300.0, 3000.0])
def test_confident_predictions_are_not_mistaken_for_a_concave_criterion(scale: float, dtype: torch.dtype) -> None:
    """For such predictions B is only rounding, of either sign, and the stated error includes what was clipped."""
    loss = linear_loss(nn.functional.cross_entropy, inputs=4, outputs=3)
    x, theta = randn(20, 8, 4, stream_name="x"), scale * randn(20, 12, stream_name="theta")
    y = torch.zeros(20, 8, dtype=torch.long)
    exact = gauss_newton_spectrum(loss, theta, (x, y)).values
    spectrum = gauss_newton_spectrum(loss, theta.to(dtype), (x, y))
    assert (spectrum.values >= 0).all()
    assert gauss_newton_spectrum(loss, theta.to(dtype), (x, y), vectors=True).vectors.isfinite().all()
    slack = 1e3 * torch.finfo(dtype).eps  # for the rounding of J and B
    assert ((spectrum.values - exact).abs() <= spectrum.error[:, None] + slack * exact[:, :1] + slack).all()


def test_the_error_includes_clipped_negative_curvature() -> None:
    """In B = diag(1, -1e-9) the entry -1e-9 is set to zero, which changes J'BJ by 1e-9 times the input squared."""
    loss = linear_loss(lambda out, y: (out[0, 0] ** 2 - 1e-9 * out[1, 0] ** 2) / 2)
    x = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0]], dtype=torch.float64)
    spectrum = gauss_newton_spectrum(loss, torch.zeros(3, dtype=torch.float64), (x, torch.zeros(2)))
    close(spectrum.values, torch.tensor([4.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(float(spectrum.error), 9e-9, rtol=1e-5, atol=0.0)


def test_effective_dimension() -> None:
    """Orthogonal inputs of equal length give as many equal eigenvalues as there are examples."""
    loss, theta = linear_loss(inputs=5), torch.ones(5, dtype=torch.float64)
    spectrum = gauss_newton_spectrum(loss, theta, (3 * torch.eye(4, 5), torch.zeros(4, 1)))
    close(spectrum.values, torch.full((4,), 2 * 9 / 4, dtype=torch.float64))
    close(spectrum.effective_dimension(), torch.tensor(4.0, dtype=torch.float64))
    close(spectrum.effective_dimension(ridge=4.5), torch.tensor(2.0, dtype=torch.float64))
    with pytest.raises(ValueError, match="positive number"):
        spectrum.effective_dimension(ridge=0.0)


def test_nan_at_one_point_stays_there() -> None:
    thetas = CONV.thetas.clone()
    thetas[1, 0] = torch.nan
    for vectors in (False, True):
        spectrum = gauss_newton_spectrum(CONV.loss, thetas, CONV.batch, vectors=vectors)
        assert spectrum.values.isfinite().all(-1).tolist() == [True, False, True]
        assert spectrum.values[1].isnan().all()
        assert spectrum.error.isnan().tolist() == [False, True, False]
        close(spectrum.values[[0, 2]], falling(CONV.dense, 18)[[0, 2]])
        assert vectors is False or spectrum.vectors[1].isnan().all()


def test_nan_in_the_targets_gives_nan_and_not_zero_curvature() -> None:
    y = torch.ones(2, 4, 1)
    y[1] = torch.nan
    loss = linear_loss(lambda out, y: (y * out**2).mean())
    spectrum = gauss_newton_spectrum(loss, torch.ones(2, 3), (randn(2, 4, 3, stream_name="x"), y))
    assert spectrum.values.isnan().any(-1).tolist() == spectrum.error.isnan().tolist() == [False, True]


def test_inputs_are_not_changed() -> None:
    thetas = CONV.thetas.clone().requires_grad_()
    state = torch.get_rng_state()
    with torch.no_grad():
        spectrum = gauss_newton_spectrum(CONV.loss, thetas, CONV.batch, vectors=True)
    assert not spectrum.values.requires_grad
    assert torch.equal(thetas, CONV.thetas)
    assert thetas.grad is None
    assert torch.equal(torch.get_rng_state(), state)


def test_wrong_arguments_are_refused_in_plain_words() -> None:
    loss = linear_loss(lambda out, y: torch.cos(out).sum())
    with pytest.raises(ValueError, match="not convex in the outputs") as refusal:
        gauss_newton_spectrum(loss, torch.zeros(3), (torch.ones(2, 3), torch.zeros(2)))
    assert len(str(refusal.value)) < 240
    with without_type_checks(), pytest.raises(ValueError, match="loss is the function .*such as ht.make_loss"):
        gauss_newton_spectrum(lambda theta, _: (theta**2).sum(), torch.zeros(3), None)


@pytest.mark.slow
@by_name
def test_the_spectrum_of_a_gauss_newton_matrix_uses_its_gram_matrix(case: Case) -> None:
    """It has all eigenvalues, zeros included, to within its error."""
    G = gauss_newton(case.loss, case.thetas, case.batch)
    outputs, n = case.loss.outputs(case.thetas[0], case.batch[0][0]).numel(), G.num_params
    ours, dense = spectrum(G, vectors=True), spectrum(G, method="dense")
    assert type(ours) is type(dense) is type(gauss_newton_spectrum(case.loss, case.thetas, case.batch))
    assert ours.values.shape == dense.values.shape == (len(case.thetas), n)
    assert ours.num_matvecs.tolist() == [min(outputs, n)] * len(case.thetas)
    distance = (ours.values.sort(-1).values - dense.values.sort(-1).values).abs().amax(-1)
    assert (distance <= ours.error + dense.error).all()
    assert torch.equal(ours.rank, dense.rank)
    X = ours.vectors
    close((X * ours.values[:, None, : X.shape[-1]]) @ X.mT, case.dense)
    one = spectrum(gauss_newton(case.loss, *case.at(1)[:2]))
    close(one.values, ours.values[1])
    assert one.error.shape == one.num_matvecs.shape == ()


def test_without_a_gram_matrix_the_spectrum_is_computed_as_for_any_other_matrix() -> None:
    """There is none for a criterion that is not convex and for batches of different sizes. NaN stays at its point."""
    concave = linear_loss(lambda out, y: torch.cos(out).sum())
    theta, x = randn(3, stream_name="theta"), randn(2, 3, stream_name="x")
    reports: list[tuple[int, int]] = []
    G = gauss_newton(concave, theta, (x, torch.zeros(2)))
    result = spectrum(G, progress=lambda done, total: reports.append((done, total)))
    exact = -(x.T * torch.cos(x @ theta)) @ x
    close(result.values.sort().values, torch.linalg.eigvalsh(exact))
    assert bool(result.dense) and reports[-1] == (1, 1)
    loss = linear_loss()
    sizes = ragged([(x, torch.zeros(2, 1)), (x[:1], torch.zeros(1, 1))])
    assert spectrum(gauss_newton(loss, theta.expand(2, -1), sizes)).rank.tolist() == [2, 1]
    thetas = torch.stack([theta, torch.full_like(theta, torch.nan)])
    exponential = linear_loss(lambda out, y: (torch.exp(out) - y).sum())
    result = spectrum(gauss_newton(exponential, thetas, (x.expand(2, -1, -1), torch.zeros(2, 2, 1))))
    assert result.values.isnan().all(-1).tolist() == [False, True]
    assert result.rank.tolist() == [2, 0]
