"""Eigenpairs: true residuals, known spectra, degenerate sizes, agreement with other libraries."""

from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from cases import NETWORKS, SPECTRA, Case, symmetric, without_type_checks
from eigenvalue_checks import WHICH, Matrices, check_pairs, expected, operator
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

from hessian_tools import curvature
from hessian_tools.curvature import Hessian, hessian, trace

# Options for one Lanczos run at each point. test_deflation.py tests the search for copies, test_spectrum.py the method
# "exact".
top_eigenpairs = partial(curvature.top_eigenpairs, method="lanczos", copies=False)
extremal_eigenpairs = partial(curvature.extremal_eigenpairs, method="lanczos", copies=False)


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("name", SPECTRA)
def test_pairs_of_known_spectra(name: str, which: str) -> None:
    A = symmetric(SPECTRA[name], stream_name=name)
    pairs = top_eigenpairs(operator(A), k=5, which=which, rtol=1e-6, vectors=True)
    check_pairs(A, pairs)
    assert pairs.converged.all()
    wanted = expected(SPECTRA[name].expand(3, -1), which, 5)
    torch.testing.assert_close(pairs.values, wanted, rtol=1e-6, atol=1e-12)
    overlaps = pairs.vectors.mT @ pairs.vectors
    torch.testing.assert_close(overlaps, torch.eye(5, dtype=A.dtype).expand_as(overlaps), rtol=0, atol=1e-9)


def test_with_a_loose_tolerance_the_stated_residuals_are_larger_and_right() -> None:
    A = symmetric(SPECTRA["decaying"])
    loose, tight = (top_eigenpairs(operator(A), k=3, rtol=rtol, vectors=True) for rtol in (1e-2, 1e-10))
    check_pairs(A, loose)
    assert loose.converged.all()
    assert (loose.residuals.amax(-1) > 1e-6).any()
    assert (loose.num_matvecs < tight.num_matvecs).all()


def test_points_are_independent_of_other_points() -> None:
    """Each point stops on its own residuals, so its cost and result are the same alone and together with others."""
    A = torch.stack([symmetric(SPECTRA[name], points=1, stream_name=name)[0] for name in SPECTRA])
    together = top_eigenpairs(operator(A), k=2)
    assert together.num_matvecs.unique().numel() > 1
    for i in range(len(A)):
        alone = top_eigenpairs(operator(A[i]), k=2)
        torch.testing.assert_close(together.values[i], alone.values)
        assert together.num_matvecs[i] == alone.num_matvecs


def test_a_single_point_has_no_point_axis() -> None:
    pairs = top_eigenpairs(operator(symmetric(SPECTRA["decaying"])[0]), k=3, vectors=True)
    assert (pairs.values.shape, pairs.vectors.shape, pairs.num_matvecs.shape) == ((3,), (24, 3), ())
    extremes = extremal_eigenpairs(operator(symmetric(SPECTRA["decaying"])[0]))
    assert (extremes.magnitude.values.shape, extremes.largest.converged.shape) == ((5,), (1,))


def test_extremes_are_the_pairs_of_three_selections_from_one_run() -> None:
    A = symmetric(SPECTRA["outliers"])
    H = operator(A)
    extremes = extremal_eigenpairs(H, magnitude=4, ends=2, rtol=1e-8, vectors=True)
    for pairs, which, k in (
        (extremes.magnitude, "LM", 4),
        (extremes.largest, "LA", 2),
        (extremes.smallest, "SA", 2),
    ):
        check_pairs(A, pairs)
        torch.testing.assert_close(pairs.values, expected(SPECTRA["outliers"].expand(3, -1), which, k))
        assert torch.equal(pairs.num_matvecs, extremes.magnitude.num_matvecs)
    apart = sum(top_eigenpairs(H, k=k, which=w, rtol=1e-8).num_matvecs for w, k in (("LM", 4), ("LA", 2), ("SA", 2)))
    assert (extremes.magnitude.num_matvecs < 0.6 * apart).all()


def test_extremes_without_ends_are_the_top_pairs() -> None:
    H = operator(symmetric(SPECTRA["indefinite"]))
    extremes, top = extremal_eigenpairs(H, magnitude=3, ends=0), top_eigenpairs(H, k=3)
    torch.testing.assert_close(extremes.magnitude.values, top.values)
    assert torch.equal(extremes.magnitude.num_matvecs, top.num_matvecs)
    assert extremes.largest.values.shape == extremes.smallest.residuals.shape == (3, 0)


def test_ends_have_their_own_tolerance() -> None:
    H = operator(symmetric(SPECTRA["clustered"]))
    cheap = extremal_eigenpairs(H, magnitude=1, rtol=1e-2, ends_rtol=1e-1)
    dear = extremal_eigenpairs(H, magnitude=1, rtol=1e-2, ends_rtol=1e-9)
    assert (cheap.magnitude.num_matvecs < dear.magnitude.num_matvecs).all()
    assert (dear.smallest.residuals <= 1e-9).all()


@pytest.mark.parametrize("spectrum", [[0.0] * 6, [2.0] * 6, [3.0, 0.0, 0.0, 0.0, 0.0, 0.0], [2.0, 2.0, 2.0, -1.0]])
def test_exhausted_krylov_spaces_still_give_k_pairs(spectrum: list[float]) -> None:
    values = torch.tensor(spectrum, dtype=torch.float64)
    A = symmetric(values)
    for k in (1, len(spectrum)):
        pairs = top_eigenpairs(operator(A), k=k, vectors=True)
        check_pairs(A, pairs)
        assert pairs.converged.all()
        torch.testing.assert_close(pairs.values, expected(values.expand(3, -1), "LM", k), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("which", WHICH)
def test_copies_of_multiple_eigenvalues_are_found_where_the_space_is_exhausted(which: str, dtype: torch.dtype) -> None:
    spectrum = torch.tensor([5.0, 5.0, 5.0, 1.0, 1.0, *([0.0] * 20), -3.0, -3.0], dtype=torch.float64)
    A = symmetric(spectrum).to(dtype)
    pairs = top_eigenpairs(operator(A), k=4, which=which, vectors=True)
    check_pairs(A, pairs)
    assert pairs.converged.all()
    wanted = expected(spectrum.expand(3, -1), which, 4).to(dtype)
    torch.testing.assert_close(pairs.values, wanted, rtol=0, atol=1e3 * torch.finfo(dtype).eps)
    assert (pairs.num_matvecs <= 27 + 4).all()


def test_a_matrix_with_one_row() -> None:
    pairs = top_eigenpairs(operator(torch.tensor([[[-2.0]], [[3.0]]])), k=1, vectors=True)
    assert pairs.values.tolist() == [[-2.0], [3.0]]
    assert pairs.converged.all()


def test_too_few_products_are_reported_as_not_converged() -> None:
    A = symmetric(torch.linspace(1.0, 2.0, 300, dtype=torch.float64))
    short = top_eigenpairs(operator(A), k=3, rtol=1e-6, max_matvecs=20, vectors=True)
    check_pairs(A, short)
    assert not short.converged.any()
    assert (short.num_matvecs == 20).all()


def test_nan_at_one_point_changes_no_other_point() -> None:
    A = symmetric(SPECTRA["indefinite"])
    clean = extremal_eigenpairs(operator(A), magnitude=2, vectors=True)
    for poison in (torch.nan, torch.inf):
        with_nan = A.clone()
        with_nan[1, 3, 3] = poison
        pairs = extremal_eigenpairs(operator(with_nan), magnitude=2, vectors=True)
        for now, then in ((pairs.magnitude, clean.magnitude), (pairs.smallest, clean.smallest)):
            assert now.values[1].isnan().all()
            assert now.residuals[1].isnan().all()
            assert not now.converged[1].any()
            torch.testing.assert_close(now.values[[0, 2]], then.values[[0, 2]])
            assert now.converged[[0, 2]].all()
        # The solver has fewer pairs at the point with NaN than are wanted.
        both = top_eigenpairs(operator(with_nan), k=5, which="BE", rtol=1e-8)
        assert both.values[1].isnan().all()
        torch.testing.assert_close(both.values[[0, 2]], expected(SPECTRA["indefinite"].expand(2, -1), "BE", 5))


def test_float32_converges_at_its_rounding_level() -> None:
    """No residual reaches rtol=0 in float32, so ``converged`` means that only rounding at the scale of |H| is left."""
    spectrum = torch.cat([torch.tensor([1e3, -5e2], dtype=torch.float64), torch.linspace(1e-3, 1.0, 198)])
    A = symmetric(spectrum).float()
    pairs = top_eigenpairs(operator(A), k=2, rtol=0.0, vectors=True)
    check_pairs(A, pairs)
    assert pairs.converged.all()
    assert (pairs.residuals <= 64 * torch.finfo(torch.float32).eps * 1e3).all()
    assert (pairs.values - torch.tensor([1e3, -5e2])).abs().max() < 1e-2
    # The same holds for a small eigenvalue. Its residual cannot reach 1e-9 of its value, but rounding at the scale of
    # |H|.
    small = top_eigenpairs(operator(A), k=3, rtol=1e-9, max_matvecs=203)
    assert small.converged.all()
    assert (small.residuals[:, 2] > 1e-9 * small.values[:, 2].abs()).all()


def test_converged_is_decided_by_the_true_residual() -> None:
    """The products of this operator change after the Lanczos run, which the final check must notice."""

    class Drifting(Hessian):
        def products(self, V: Tensor) -> Tensor:
            return super().products(V) + (0.5 * V if V.shape[-1] > 1 else 0.0) * torch.arange(24.0)[:, None]

    H = operator(symmetric(SPECTRA["decaying"]))
    assert not top_eigenpairs(Drifting(H.prepared, H.single), k=2).converged.any()


@pytest.mark.slow
@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.name)
def test_networks_against_dense_and_scipy(case: Case) -> None:
    H = hessian(case.loss, case.thetas, case.batch)
    pairs = top_eigenpairs(H, k=5, rtol=1e-7, vectors=True)
    check_pairs(case.dense, pairs)
    wanted = expected(torch.linalg.eigvalsh(case.dense), "LM", 5)
    torch.testing.assert_close(pairs.values, wanted, rtol=1e-8, atol=1e-8)
    values = eigsh(H.to_scipy(point=1), k=5, return_eigenvectors=False, v0=np.ones(H.num_params))
    np.testing.assert_allclose(np.sort(pairs.values[1].numpy()), np.sort(values), rtol=1e-7)


@pytest.mark.filterwarnings("ignore")
def test_network_against_pyhessian() -> None:
    """PyHessian's eigenvalues at a tight tolerance agree, and its trace agrees within both standard errors."""
    peer = pytest.importorskip("pyhessian")
    case = next(case for case in NETWORKS if case.name == "conv-batchnorm")
    theta, batch, _ = case.at(0)
    model = deepcopy(case.loss.model).double()
    nn.utils.vector_to_parameters(theta, model.parameters())
    H = hessian(case.loss, theta, batch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = peer.hessian(model, nn.functional.cross_entropy, data=batch, cuda=False)
        values = theirs.eigenvalues(maxIter=1000, tol=1e-9, top_n=2)[0]
        samples = theirs.trace(maxIter=200, tol=0.0)
    assert top_eigenpairs(H, k=2).values.tolist() == pytest.approx(values, rel=1e-3)
    ours = trace(H, num_probes=200)
    error = (float(ours.stderr) ** 2 + np.var(samples, ddof=1) / len(samples)) ** 0.5
    assert abs(float(ours.value) - np.mean(samples)) < 4 * error


def test_the_result_depends_only_on_the_seed() -> None:
    H = operator(symmetric(SPECTRA["clustered"]))
    first, again, other = (top_eigenpairs(H, rtol=1e-2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.residuals, again.residuals)
    assert not torch.equal(first.residuals, other.residuals)


def test_a_run_does_not_stop_before_a_wanted_eigenvalue_has_appeared() -> None:
    """At a third of these points five values once converged before the true fifth, 14.7, had overtaken -14.5."""
    outliers = torch.tensor([42.0, 29.0, 23.0, 17.0, 14.7, -14.5, -13.0, 13.0])
    spectrum = torch.cat([outliers, torch.linspace(-12.0, 12.0, 192)]).double()
    A = symmetric(spectrum, points=64, stream_name="overtaken12")
    pairs = top_eigenpairs(Matrices(A), k=5, rtol=1e-2)
    assert pairs.converged.all()
    assert (pairs.values[:, 4] > 14.0).all()
    assert float(pairs.num_matvecs.double().mean()) < 36


def test_a_keyboard_interrupt_is_passed_on_at_once() -> None:
    class Interrupted(Hessian):
        def products(self, V: Tensor) -> Tensor:
            raise KeyboardInterrupt

    H = operator(symmetric(SPECTRA["decaying"]))
    with pytest.raises(KeyboardInterrupt):
        top_eigenpairs(Interrupted(H.prepared, H.single), k=2)


def test_bad_options_are_refused_in_plain_words() -> None:
    H = operator(symmetric(SPECTRA["decaying"]))
    for options, words in (
        ({"k": 25}, "24 rows; give 1 to 24"),
        ({"k": 0}, "k=0 must be at least 1"),
        ({"which": "LR"}, "LM, LA, SA, BE"),
        ({"rtol": -1.0}, "0 or more"),
        ({"max_matvecs": 9}, "give 10 or more"),
        ({"max_basis": 11}, "give 12 or more"),
        ({"method": "dense"}, "auto, lanczos, exact"),
    ):
        with without_type_checks(), pytest.raises(ValueError, match=words):
            curvature.top_eigenpairs(H, **options)
    with pytest.raises(ValueError, match="give 0 to 24"):
        extremal_eigenpairs(H, ends=25)
