"""The measurements for a GPU, rehearsed on the CPU, so that a session with a card loses no time on mistakes."""

import json
import time
from collections.abc import Iterator
from functools import partial
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
    monkeypatch.setattr(gpu, "STUDY_SECONDS", 3600.0)
    monkeypatch.setattr(gpu, "ROW_SECONDS", 3600.0)
    gpu.main(device="cpu", out=tmp_path / "gpu.json", minutes=60)
    stored = json.loads((tmp_path / "gpu.json").read_text())
    assert not [row for section in gpu.SECTIONS for row in stored[section] if "failed" in row] + stored["left out"]
    ways = [(row["problem"], row["convolutions"]) for row in stored["products"]]
    w3 = ("rule", "recorded", *gpu.INDUCTOR_WAYS)
    assert ways == [*(("W2", way) for way in gpu.WAYS), *(("W3", way) for way in w3)]
    assert all(row["error"] < 1e-4 for row in stored["products"])
    kept = {row["convolutions"]: row["kept, MB a point"] for row in stored["products"] if row["problem"] == "W2"}
    assert kept["matrices"] > 1.5 * kept["grouped"] == 1.5 * kept["rule"]  # on a CPU the rule says no
    assert [row["converged"] for row in stored["top5"]] == [1.0]
    assert [(row["runs"], row["way"]) for row in stored["runs"]] == [
        (number, way) for number in (1, 2) for way in ("MAML", "MAML, recorded", "MAML with SHOT")
    ]
    assert all(row["ms a step and run"] > 0 and row["validation, ms a run"] > 0 for row in stored["runs"])
    assert [row["workers"] for row in stored["demo"]] == ["default", "1"]
    assert all(row["whole, s"] > row["train, s"] > 0 for row in stored["demo"])
    training = {row["way"]: row["error"] for row in stored["training"]}
    assert list(training) == ["in turn", "grouped", "matrices", "rule", "rule, 4 runs", "rule, recorded"]
    assert all(error < 1e-4 for error in training.values())
    errors = {row["precision"]: row["error"] for row in stored["precision"]}
    assert errors["float32"] < 1e-5 < errors["bfloat16 autocast"]
    assert "us a point" in capsys.readouterr().out
    assert not convolutions.pays(device="cpu", points=2)


def test_a_row_that_fails_or_takes_too_long_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fail(**options: object) -> None:
        raise RuntimeError

    def section(device: str) -> Iterator[gpu.Row]:
        yield {"row": 1}, fail
        yield {"row": 2}, partial(time.sleep, 600)
        yield {"row": 3}, lambda: {"figure": 3.0}

    monkeypatch.setattr(gpu, "SECTIONS", {"one": section})
    monkeypatch.setattr(gpu, "ROW_SECONDS", 1.0)
    gpu.main(device="cpu", out=tmp_path / "gpu.json")
    stored = json.loads((tmp_path / "gpu.json").read_text())
    failed = ["RuntimeError: RuntimeError", "TimeoutError: it took more than 1 s", None]
    assert [row.get("failed") for row in stored["one"]] == failed
    assert stored["one"][2]["figure"] == 3.0 and stored["left out"] == []
    assert "failed: row 2, seconds" in capsys.readouterr().out
    gpu.main(device="cpu", out=tmp_path / "gpu.json", minutes=0)
    stored = json.loads((tmp_path / "gpu.json").read_text())
    assert (stored["one"], stored["left out"]) == ([], [f"one: row {row}" for row in (1, 2, 3)])
    assert "left out for want of time: one: row 1" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="rehearse with --device cpu"):
        gpu.main(out=tmp_path / "gpu.json")
