"""The HTML of results for notebooks: the pictures are well-formed, and their marks stand at the right numbers."""

from xml.etree import ElementTree

import torch
from cases import SPECTRA, operator, symmetric

import hessian_tools as ht
from hessian_tools.curvature.html import MARGIN, MAX_ROWS, WIDTH

H = operator(symmetric(SPECTRA["indefinite"]))


def parsed(result: object) -> ElementTree.Element:
    return ElementTree.fromstring(result._repr_html_())


def pictures(tree: ElementTree.Element) -> list[ElementTree.Element]:
    return list(tree.iter("svg"))


def test_eigenvalues_are_ticks_on_one_axis() -> None:
    pairs = ht.top_eigenpairs(H, k=4)
    tree = parsed(pairs)
    low, high = min(0.0, float(pairs.values.min())), float(pairs.values.max())
    assert len(pictures(tree)) == 3
    for picture, values in zip(pictures(tree), pairs.values, strict=True):
        drawn = [float(tick.get("x1")) for tick in picture.iter("line")][1:]  # the first line marks zero
        expected = MARGIN + (values - low) / (high - low) * (WIDTH - 2 * MARGIN)
        torch.testing.assert_close(torch.tensor(drawn).double(), expected, rtol=0, atol=0.06)
    assert f"{float(pairs.values[0, 0]):.4g} ± " in "".join(tree.itertext())
    assert "at 3 points" in "".join(tree.itertext())


def test_an_estimate_is_drawn_with_a_bar_as_long_as_its_error() -> None:
    estimate = ht.trace(H, num_probes=6)
    bars = [bar for picture in pictures(parsed(estimate)) for bar in picture.iter("rect")]
    widths = torch.tensor([float(bar.get("width")) for bar in bars])
    torch.testing.assert_close(widths / widths[0], (estimate.stderr / estimate.stderr[0]).float(), rtol=0.02, atol=0)
    assert "6 probes" in "".join(parsed(estimate).itertext())


def test_the_curve_of_a_density_fills_the_height_of_the_picture() -> None:
    density = ht.spectral_density(H, num_matvecs=10)
    for picture in pictures(parsed(density)):
        band, curve = picture.iter("polygon")
        heights = [60 - float(point.split(",")[1]) for point in curve.get("points").split()]
        tops = [60 - float(point.split(",")[1]) for point in band.get("points").split()]
        assert max(tops) == 60 > max(heights) > 40
        assert min(heights) == 0


def test_html_of_a_single_point_of_nonfinite_points_and_of_many_points() -> None:
    one = operator(symmetric(SPECTRA["outliers"])[0])
    for result in (ht.top_eigenpairs(one, k=2), ht.trace(one, num_probes=4), ht.spectral_density(one, num_matvecs=8)):
        (picture,) = pictures(parsed(result))
        assert picture.get("aria-hidden") == "true"  # the text beside it says the same
        assert "points" not in "".join(parsed(result).itertext())
    A = symmetric(SPECTRA["outliers"])
    A[1, 0, 0] = torch.inf
    with_nan = operator(A)
    for result in (ht.top_eigenpairs(with_nan, k=2), ht.trace(with_nan, num_probes=4)):
        assert "nan" in "".join(parsed(result).itertext()) or "inf" in "".join(parsed(result).itertext())
    assert "not finite" in "".join(parsed(ht.spectral_density(with_nan, num_matvecs=8)).itertext())
    many = ht.trace(operator(symmetric(SPECTRA["outliers"], points=MAX_ROWS + 5)), num_probes=2)
    assert len(pictures(parsed(many))) == MAX_ROWS
    assert "and 5 more" in "".join(parsed(many).itertext())
