"""Eigenspaces: closed forms, dense projectors, the null hypothesis of random spaces, and the bound on their error."""

import pytest
import torch
from cases import SPECTRA, quadratic, randn, symmetric, without_type_checks
from scipy.linalg import subspace_angles
from torch import Tensor

from hessian_tools.curvature import (
    EigenPairs,
    Null,
    gradient_share,
    hessian,
    overlap_null,
    principal_angles,
    step_overlaps,
    subspace_error,
    subspace_overlap,
    top_eigenpairs,
    vector_error,
)


def bases(*lead: int, n: int = 12, k: int = 3, stream_name: str = "basis") -> Tensor:
    return torch.linalg.qr(randn(*lead, n, k, stream_name=stream_name)).Q


def sine(V: Tensor, exact: Tensor) -> Tensor:
    """The sine of the largest angle between spans of equal dimension."""
    return torch.linalg.matrix_norm(V @ V.mT - exact @ exact.mT, ord=2)


def exact_values(A: Tensor, k: int, which: str) -> Tensor:
    values = torch.linalg.eigvalsh(A)
    order = {"LM": values.abs(), "LA": values, "SA": -values}[which].argsort(dim=-1, descending=True)
    return values.gather(-1, order)[..., :k]


def exact_space(A: Tensor, j: int, which: str) -> Tensor:
    values, vectors = torch.linalg.eigh(A)
    order = {"LM": values.abs(), "LA": values, "SA": -values}[which].argsort(dim=-1, descending=True)
    return vectors.gather(-1, order[:, None].expand_as(vectors))[..., :j]


def test_share_against_the_projector() -> None:
    V, g = bases(4), randn(4, 12, stream_name="g")
    share = gradient_share(V, g)
    for j in (1, 2, 3):
        P = V[..., :j] @ V[..., :j].mT
        torch.testing.assert_close(share[:, j - 1], (g * (P @ g[..., None])[..., 0]).sum(-1) / (g * g).sum(-1))
    inside = (V @ randn(4, 3, 1, stream_name="inside"))[..., 0]
    torch.testing.assert_close(gradient_share(V, inside)[:, -1], torch.ones(4, dtype=V.dtype))
    torch.testing.assert_close(gradient_share(V, g - (V @ (V.mT @ g[..., None]))[..., 0]), torch.zeros_like(share))
    assert gradient_share(V[0], torch.zeros(12, dtype=V.dtype)).isnan().all()


def test_overlap_against_projectors_and_scipy_s_angles() -> None:
    U, V = bases(4), bases(4, k=5, stream_name="other")
    overlap, angles = subspace_overlap(U, V), principal_angles(U, V)
    torch.testing.assert_close(overlap, ((U @ U.mT) * (V @ V.mT)).sum((-2, -1)) / 3)
    torch.testing.assert_close(overlap, (angles.cos() ** 2).mean(-1))
    for i in range(4):
        reference = torch.from_numpy(subspace_angles(U[i].numpy(), V[i].numpy()).copy()).flip(0)
        torch.testing.assert_close(angles[i], reference)
    torch.testing.assert_close(principal_angles(V, U), angles)
    turn = torch.linalg.qr(randn(3, 3, stream_name="turn")).Q
    torch.testing.assert_close(subspace_overlap(U @ turn, U), torch.ones(4, dtype=U.dtype))


def test_small_angles_keep_their_digits() -> None:
    e = torch.eye(5, dtype=torch.float64)
    tilted = torch.linalg.qr(e[:, :2] + 1e-9 * e[:, 2:4]).Q
    torch.testing.assert_close(
        principal_angles(e[:, :2], tilted), torch.full((2,), 1e-9, dtype=e.dtype), rtol=1e-6, atol=0
    )


def test_overlaps_of_a_trajectory_are_those_of_every_pair_of_steps() -> None:
    V = bases(2, 4)
    overlaps = step_overlaps(V)
    assert overlaps.shape == (2, 4, 4)
    for i in range(4):
        for j in range(4):
            torch.testing.assert_close(overlaps[:, i, j], subspace_overlap(V[:, i], V[:, j]))
    torch.testing.assert_close(step_overlaps(V[0]), overlaps[0])


@pytest.mark.parametrize(("k", "other"), [(3, 3), (2, 5)])
def test_the_null_agrees_with_random_subspaces(k: int, other: int) -> None:
    """Its mean and standard deviation agree with those of 4 000 random pairs, within the error of such estimates."""
    count = 4000
    overlaps = subspace_overlap(bases(count, k=k, stream_name="null u"), bases(count, k=other, stream_name="null v"))
    null = overlap_null(12, k, other)
    assert abs(float(overlaps.mean()) - null.mean) < 4 * null.std / count**0.5
    assert abs(float(overlaps.std()) / null.std - 1) < 0.06
    assert null.low <= float(overlaps.min()) and float(overlaps.max()) <= null.high
    assert overlap_null(12, 12) == Null(low=1.0, high=1.0, mean=1.0, std=0.0)


def test_the_lower_end_of_the_null_for_subspaces_that_must_intersect() -> None:
    """In 5 dimensions, subspaces of 3 and 4 share at least 2, and spans of coordinate axes share no more."""
    e = torch.eye(5)
    assert overlap_null(5, 3, 4).low == pytest.approx(float(subspace_overlap(e[:, :3], e[:, 1:])))


@pytest.mark.parametrize("which", ["LM", "LA", "SA"])
@pytest.mark.parametrize("rtol", [1e-1, 1e-2])
def test_the_error_bounds_the_angle_to_the_exact_space(which: str, rtol: float) -> None:
    A = symmetric(SPECTRA["indefinite"], points=20)
    H = hessian(quadratic, torch.zeros(20, 24, dtype=A.dtype), A)
    pairs = top_eigenpairs(H, k=6, which=which, rtol=rtol, vectors=True, method="lanczos", copies=False)
    bound, alone = subspace_error(pairs, which=which), vector_error(pairs, which=which)
    assert pairs.vectors is not None
    g, other = randn(20, 24, stream_name="g"), bases(20, n=24, k=5, stream_name="fixed")
    # At the loose tolerance Lanczos misses an eigenvalue at some points, which the bound cannot know.
    none_missed = ((pairs.values - exact_values(A, 6, which)).abs() <= pairs.residuals + 1e-12).all(-1)
    assert none_missed.sum() >= 15
    for j in range(1, 6):
        V, exact, allowed = pairs.vectors[..., :j], exact_space(A, j, which), bound[:, j - 1] + 1e-12
        within = sine(V, exact) <= allowed
        within &= sine(V[..., -1:], exact[..., -1:]) <= alone[:, j - 1] + 1e-12
        within &= (gradient_share(V, g)[:, -1] - gradient_share(exact, g)[:, -1]).abs() <= allowed
        W = other[..., :j]
        within &= (subspace_overlap(V, W) - subspace_overlap(exact, W)).abs() <= allowed
        assert within[none_missed].all()
    assert (bound[:, -1] == 1).all()
    assert (bound[:, :3] < 0.9).any()  # a bound of 1 would say nothing


def test_equal_values_leave_the_eigenspace_undetermined() -> None:
    yes, count = torch.ones(3, dtype=torch.bool), torch.tensor(9)
    pairs = EigenPairs(torch.tensor([2.0, 2.0, 1.0]), torch.full((3,), 0.01), yes, None, count, yes[0])
    assert subspace_error(pairs)[0] == vector_error(pairs)[0] == vector_error(pairs)[1] == 1
    assert subspace_error(pairs)[1] < 0.02
    with_nan = EigenPairs(torch.tensor([torch.nan] * 3), torch.tensor([torch.nan] * 3), ~yes, None, count, ~yes[0])
    assert subspace_error(with_nan).isnan().all()
    assert vector_error(with_nan).isnan().all()


def test_wrong_arguments_are_refused_in_plain_words() -> None:
    V, g = bases(), randn(12, stream_name="g")
    with pytest.raises(ValueError, match="not orthonormal"):
        gradient_share(2 * V, g)
    with pytest.raises(ValueError, match="not orthonormal"):
        subspace_overlap(V, V + 0.1)
    with without_type_checks(), pytest.raises(ValueError, match="g has shape .5,., .* vectors has 12 there"):
        gradient_share(V, g[:5])
    with pytest.raises(ValueError, match="k=0 must be at least 1"):
        overlap_null(12, 0)
    pairs = top_eigenpairs(hessian(quadratic, torch.zeros(24), symmetric(SPECTRA["decaying"])[0].float()), which="BE")
    with pytest.raises(ValueError, match="LM, LA or SA"):
        subspace_error(pairs, which="BE")


def test_angles_at_a_point_that_is_not_finite_change_no_other() -> None:
    """The other points agree to rounding: linear algebra on a batch and on one matrix may differ in the last bit."""
    U, V = bases(2), bases(2, stream_name="other")
    expected = principal_angles(U[0], V[0])
    U[1] = torch.nan
    result = principal_angles(U, V)
    torch.testing.assert_close(result[0], expected)
    assert bool(result[1].isnan().all())


def test_the_share_of_a_small_gradient_in_single_precision() -> None:
    V, g = bases(), randn(12, stream_name="g")
    result = gradient_share(V.float(), (1e-25 * g).float())
    torch.testing.assert_close(result.double(), gradient_share(V, g), rtol=1e-5, atol=1e-6)


def test_one_vector_without_a_column_axis_is_refused() -> None:
    with without_type_checks(), pytest.raises(ValueError, match="give a tensor .point ..., param, k"):
        gradient_share(torch.ones(4), torch.ones(4))
