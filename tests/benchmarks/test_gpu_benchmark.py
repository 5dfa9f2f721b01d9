"""The measurements for a GPU, rehearsed on the CPU, so that a session with a card loses no time on mistakes."""

import json
from math import isnan
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from hessian_tools.torch_fixes import convolutions

pytestmark = pytest.mark.heavy


def test_every_section_has_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(gpu.PRODUCTS, "cpu", {"W2": (2,), "W3": (2,)})
    monkeypatch.setitem(gpu.INDUCTOR, "cpu", {"W3": (2,)})
    monkeypatch.setattr(gpu, "MIN_CALLS", 1)
    monkeypatch.setattr(gpu, "MIN_SECONDS", 0)
    gpu.main(device="cpu", out=tmp_path / "gpu.json")
    stored = json.loads((tmp_path / "gpu.json").read_text())
    ways = [(row["problem"], row["convolutions"]) for row in stored["products"]]
    w3 = ("rule", "recorded", *gpu.INDUCTOR_WAYS)
    assert ways == [*(("W2", way) for way in gpu.WAYS), *(("W3", way) for way in w3)]
    assert all(row["error"] < 1e-4 for row in stored["products"])
    kept = {row["convolutions"]: row["kept, MB a point"] for row in stored["products"] if row["problem"] == "W2"}
    assert kept["matrices"] > 1.5 * kept["grouped"] == 1.5 * kept["rule"]  # on a CPU the rule says no
    assert [row["converged"] for row in stored["top5"]] == [1.0]
    training = {row["way"]: row["error"] for row in stored["training"]}
    assert list(training) == ["in turn", "grouped", "matrices", "rule", "rule, 4 runs", "rule, recorded"]
    assert all(error < 1e-4 for error in training.values())
    errors = {row["precision"]: row["error"] for row in stored["precision"]}
    assert errors["float32"] < 1e-5 < errors["bfloat16 autocast"]
    assert "us a point" in capsys.readouterr().out
    assert not convolutions.pays(device="cpu", points=2)


def test_an_error_without_words_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(gpu.ht, "hessian", fail)
    row = gpu.measured(gpu.at_points("W3", 2, "cpu"), "rule", torch.zeros(2), None)
    assert row["peak, MiB"] == "RuntimeError" and isnan(row["us a point"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="rehearse with --device cpu"):
        gpu.main(out=tmp_path / "gpu.json")
