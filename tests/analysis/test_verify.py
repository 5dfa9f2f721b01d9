"""Tests that ``verify`` names every file of a study that is damaged, lost, or rests on what is no longer there."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.cli import run
from analysis.record import record_of, with_record
from hessian_tools.runs.files import DamagedFileError, read_json, set_aside, write_json

RUN = "runs/maml-seed0"


def flip_a_bit(file: Path) -> None:
    """Change the lowest bit of the byte in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    """Leave only the first half of a file."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def change_learning_rate(file: Path) -> None:
    file.write_text(file.read_text().replace("0.002", "0.003"))


# For each damage: the file, the function that damages it, and what verify must say besides the name of the file.
FAULTS: list[tuple[str, Callable[[Path], object], str]] = [
    ("study.yaml", change_learning_rate, "was changed after .* was begun: train is not as it was; put the file back"),
    ("claims.yaml", Path.unlink, "is gone; put it back"),
    ("verdicts.json", flip_a_bit, "is damaged; run 'hessian-tools test "),
    ("figures/accuracy.png", flip_a_bit, "was changed after it was drawn; run 'hessian-tools figures "),
    ("figures/accuracy.pdf", Path.unlink, "is missing; run 'hessian-tools figures "),
    ("figures/drawn.json", empty, "is not JSON"),
    ("report.html", flip_a_bit, "was changed after it was written; run 'hessian-tools report "),
    ("report.html", cut, "was changed after it was written; run 'hessian-tools report "),
    (f"{RUN}/manifest.json", Path.unlink, "is missing; put it back"),
    (f"{RUN}/metrics.jsonl", Path.unlink, "lacks lines of the 5 meta-iterations"),
    (f"{RUN}/checkpoints/0000002.safetensors", Path.unlink, "is missing; run 'hessian-tools study "),
    (f"{RUN}/checkpoints/state.safetensors", empty, "cannot be read as safetensors"),
    (f"{RUN}/measurements.zarr/rho/c/1/0/0", empty, "was changed after it was written"),
    (f"{RUN}/measurements.json", Path.unlink, "is missing; 'hessian-tools study "),
]


@pytest.fixture(scope="module")
def copied_study(tmp_path_factory, micro_study) -> Path:
    return Path(shutil.copytree(micro_study, tmp_path_factory.mktemp("verified") / "study"))


@pytest.mark.parametrize(("name", "damage", "said"), FAULTS, ids=[f"{f[1].__name__} {f[0]}" for f in FAULTS])
def test_a_fault_is_named_with_its_remedy(capsys, copied_study, name, damage, said):
    file = copied_study / name
    undamaged = file.read_bytes()
    damage(file)
    assert run(["verify", str(copied_study)]) == 1
    lines = capsys.readouterr().out.splitlines()
    file.write_bytes(undamaged)
    assert any(re.search(rf"{re.escape(name)} {said}", line) for line in lines), lines
    assert not any("remove" in line or "delete" in line for line in lines)


def test_a_report_of_other_verdicts_and_a_store_of_another_run_are_named(capsys, copied_study):
    verdicts = copied_study / "verdicts.json"
    before = verdicts.read_bytes()
    write_json(verdicts, read_json(verdicts) | {"note": "another file"})
    assert run(["verify", str(copied_study)]) == 1
    said = capsys.readouterr().out
    assert said == (
        f"the report of {copied_study} rests on other measurements, verdicts or figures than the present ones; run"
        f" 'hessian-tools report {copied_study}'\n"
    )
    verdicts.write_bytes(before)
    ours, other = copied_study / RUN, copied_study / "runs" / "maml-seed1"
    for name in ("measurements.zarr", "measurements.json"):
        (ours / name).rename(ours / f"{name}.before")
        (shutil.copytree if (other / name).is_dir() else shutil.copy)(other / name, ours / name)
    assert run(["verify", str(copied_study)]) == 1
    assert "maml-seed0/measurements.zarr is that of maml seed 1" in capsys.readouterr().out
    for name in ("measurements.zarr", "measurements.json"):
        set_aside(ours / name)
        (ours / f"{name}.before").rename(ours / name)


def test_a_page_records_what_it_rests_on(tmp_path):
    page = tmp_path / "report.html"
    text = with_record("<!DOCTYPE html>\n<p>one</p></html>\n", measurements="abc")
    page.write_text(text)
    assert record_of(page) == {"measurements": "abc"}
    page.write_text("<!DOCTYPE html>\n<p>of version 0.1</p></html>\n")
    assert record_of(page) == {}
    for damaged in ("", text[:-20], text[: len(text) // 3], text.replace("one", "two"), text.replace("rests", "rest5")):
        page.write_text(damaged)
        with pytest.raises(
            DamagedFileError, match=r"report\.html was changed after it was written; run 'hessian-tools"
        ):
            record_of(page)


def test_what_is_set_aside_is_kept(tmp_path):
    file = tmp_path / "a.json"
    for number, text in enumerate(("first", "second"), start=1):
        file.write_text(text)
        assert set_aside(file) == tmp_path / f"a.json.damaged-{number}"
        assert not file.exists()
        assert (tmp_path / f"a.json.damaged-{number}").read_text() == text
