"""Results in files and in notebooks: what is loaded equals what was saved, and no tensor is printed."""

from dataclasses import fields
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from cases import SPECTRA, operator, symmetric
from safetensors.torch import save_file
from torch import Tensor

import hessian_tools as ht
from hessian_tools.curvature import Extremes, Spectrum
from hessian_tools.result import Result
from hessian_tools.trajectory import Trajectory


def trajectory() -> Trajectory:
    column = torch.tensor([[2.0, 1.0, 0.5], [3.0, torch.nan, 4.0]])
    return Trajectory(column, None, column, None, column, column, column, torch.eye(2).expand(2, 2, 2), thetas=None)


H = operator(symmetric(SPECTRA["indefinite"]))
RESULTS = {
    "pairs": lambda: ht.top_eigenpairs(H, k=3),
    "extremes": lambda: ht.extremal_eigenpairs(H),
    "spectrum": lambda: ht.spectrum(H),
    "by hand": lambda: Spectrum(torch.tensor([4.0, -3.0]), torch.tensor(1e-6)),
    "estimate": lambda: ht.trace(H, num_probes=4),
    "moments": lambda: ht.moments(H, num_probes=4),
    "density": lambda: ht.spectral_density(H, num_matvecs=8),
    "check": lambda: ht.check_operator(H),
    "trajectory": trajectory,
}


def assert_equal(a: object, b: object) -> None:
    assert type(a) is type(b)
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    elif isinstance(a, Result):
        for field in fields(a):
            assert_equal(getattr(a, field.name), getattr(b, field.name))
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for pair in zip(a, b, strict=True):
            assert_equal(*pair)
    else:
        assert a == b or a != a


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_is_loaded_as_it_was_saved_and_shows_itself(name: str, tmp_path: Path) -> None:
    result = RESULTS[name]()
    assert_equal(ht.load(result.save(tmp_path / "new folder" / "result.safetensors")), result)
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == ["result.safetensors"]
    text = repr(result)
    assert text.startswith(type(result).__name__)
    assert "tensor(" not in text
    assert len(text.splitlines()) <= 12
    tree = ElementTree.fromstring(f"<div>{result._repr_html_()}</div>")
    assert (tree.find(".//svg") is not None) == (name != "check")


def test_the_words_of_a_repr_are_the_numbers_of_the_result() -> None:
    assert "support_loss=2x3 in [0.5, 4] (1 not finite), query_loss=None" in repr(trajectory())
    values = torch.tensor([4.0, -3.0])
    pairs = ht.EigenPairs(values, values, values > 0, None, torch.tensor(7), torch.tensor(True))
    assert repr(pairs).splitlines() == [
        "EigenPairs(values=2 in [-3, 4], residuals=2 in [-3, 4], converged=1 of 2 true, vectors=None, num_matvecs=7,",
        "    complete=True)",
    ]
    assert repr(Extremes(pairs, pairs, pairs)).count("EigenPairs(") == 3


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    values = torch.arange(3.0)
    loaded = ht.load(Spectrum(values, values[0], values.expand(2, 3).mT).save(tmp_path / "file"))
    torch.testing.assert_close(loaded.vectors, values.expand(2, 3).mT)


def test_the_losses_of_a_trajectory_are_its_line() -> None:
    tree = ElementTree.fromstring(trajectory()._repr_html_())
    first, second = [line.get("points").split() for line in tree.iter("polyline")]
    assert len(first) == 3 and len(second) == 2  # a loss that is not finite has no place
    heights = [float(point.split(",")[1]) for point in first]
    assert heights == sorted(heights)  # y grows downwards, and the loss falls


def test_files_that_are_no_results_are_refused(tmp_path: Path) -> None:
    save_file({"weights": torch.zeros(2)}, tmp_path / "network")
    with pytest.raises(ValueError, match="not a result of hessian-tools"):
        ht.load(tmp_path / "network")
    (tmp_path / "cut").write_bytes(RESULTS["by hand"]().save(tmp_path / "whole").read_bytes()[:-3])
    with pytest.raises(ValueError, match="is damaged"):
        ht.load(tmp_path / "cut")
    content = (tmp_path / "whole").read_bytes().replace(b"Spectrum", b"Spectrux")
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(ValueError, match="did you mean 'Spectrum'"):
        ht.load(tmp_path / "other")
    with pytest.raises(FileNotFoundError):
        ht.load(tmp_path / "nothing")
