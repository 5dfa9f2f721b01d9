"""Tests that ``verify`` names every file of a study that is damaged, lost, or rests on what is no longer there."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from damages import cut, empty, flip_a_bit, replace_by_a_folder, replace_by_a_pipe
from refused_commands import refused

from analysis.claims.plan import BUNDLED as PLAN
from analysis.cli import run
from analysis.folder import write_settings
from analysis.record import record_of, with_record
from analysis.study_file import load_study
from hessian_tools.runs.files import DamagedFileError, read_json, set_aside, write_json

RUN = "runs/maml-seed0"
STORE = ("measurements.zarr", "measurements.json", "measurements.units")  # of a run


def change_learning_rate(file: Path) -> None:
    file.write_text(file.read_text().replace("0.002", "0.003"))


def change_config(file: Path) -> None:
    write_json(file, read_json(file) | {"config": 3})


def lose_the_names(file: Path) -> None:
    write_json(file, read_json(file) | {"files": 3})


# For each damage: the file, the function that damages it, and what verify must say besides the name of the file.
FAULTS: list[tuple[str, Callable[[Path], object], str]] = [
    ("study.yaml", change_learning_rate, "was changed after .* was begun: train is not as it was; put the file back"),
    ("claims.yaml", Path.unlink, "is gone; put it back"),
    ("verdicts.json", flip_a_bit, "is damaged; run 'hessian-tools test "),
    ("figures/accuracy.png", flip_a_bit, "was changed after it was drawn; run 'hessian-tools figures "),
    ("figures/accuracy.pdf", Path.unlink, "is missing; run 'hessian-tools figures "),
    ("figures/drawn.json", empty, "is not JSON"),
    ("figures/drawn.json", lose_the_names, "is damaged; run 'hessian-tools figures "),
    ("report.html", flip_a_bit, "was changed after it was written; run 'hessian-tools report "),
    ("report.html", cut, "was changed after it was written; run 'hessian-tools report "),
    (f"{RUN}/manifest.json", Path.unlink, "is missing; put it back"),
    (f"{RUN}/metrics.jsonl", Path.unlink, "lacks lines of the 5 meta-iterations"),
    (f"{RUN}/checkpoints/0000002.safetensors", Path.unlink, "is missing; run 'hessian-tools study "),
    (f"{RUN}/checkpoints/0000005.safetensors", Path.unlink, "is missing; run 'hessian-tools study "),
    (f"{RUN}/checkpoints/state.safetensors", empty, "cannot be read as safetensors"),
    (f"{RUN}/measurements.zarr/rho/c/1/0/0", empty, "was changed after it was written"),
    (f"{RUN}/measurements.zarr/rho/c/1/0/0", replace_by_a_folder, "was changed after it was written"),
    (f"{RUN}/measurements.zarr/rho/zarr.json", empty, "was changed after it was written"),
    (f"{RUN}/measurements.zarr/done/zarr.json", cut, "was changed after it was written"),
    (f"{RUN}/measurements.zarr/zarr.json", replace_by_a_pipe, "was changed after it was written"),
    (f"{RUN}/checkpoints/0000002.safetensors", replace_by_a_pipe, "is no file but a folder, a device or a pipe; put"),
    (f"{RUN}/metrics.jsonl", replace_by_a_pipe, "is no file but a folder, a device or a pipe; put"),
    (f"{RUN}/manifest.json", replace_by_a_folder, "is no file but a folder, a device or a pipe; put"),
    (f"{RUN}/manifest.json", change_config, "is damaged: its config is no mapping; put it back"),
    ("claims.yaml", replace_by_a_pipe, "is damaged: it is no file, or far larger"),
    ("verdicts.json", replace_by_a_pipe, "is damaged; run .hessian-tools test "),
    ("report.html", replace_by_a_pipe, "is no file but a folder, a device or a pipe; put"),
    ("figures/accuracy.png", replace_by_a_pipe, "was changed after it was drawn"),
    (f"{RUN}/measurements.json", Path.unlink, "is missing; 'hessian-tools study "),
]


@pytest.fixture(scope="module")
def copied_study(tmp_path_factory, micro_study) -> Path:
    return Path(shutil.copytree(micro_study, tmp_path_factory.mktemp("verified") / "study"))


@pytest.mark.heavy
@pytest.mark.parametrize(("name", "damage", "said"), FAULTS, ids=[f"{f[1].__name__} {f[0]}" for f in FAULTS])
def test_a_fault_is_named_with_its_remedy(capsys, copied_study, name, damage, said):
    file = copied_study / name
    undamaged = file.read_bytes()
    damage(file)
    assert run(["verify", str(copied_study)]) == 1
    lines = capsys.readouterr().out.splitlines()
    if file.is_dir():
        file.rmdir()
    file.unlink(missing_ok=True)
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
    for name in STORE:
        (ours / name).rename(ours / f"{name}.before")
        (shutil.copytree if (other / name).is_dir() else shutil.copy)(other / name, ours / name)
    assert run(["verify", str(copied_study)]) == 1
    assert "maml-seed0/measurements.units/0-0.json is that of another run; 'hessian-tools" in capsys.readouterr().out
    for name in STORE:
        set_aside(ours / name)
        (ours / f"{name}.before").rename(ours / name)


def test_a_file_of_the_step_size_without_its_candidates_is_named(capsys, copied_study):
    file = copied_study / "step_size.json"
    write_json(file, {"step_size": 0.1})
    assert run(["verify", str(copied_study)]) == 1
    assert "step_size.json lacks candidates; put it back, or move it elsewhere" in capsys.readouterr().out
    file.unlink()


@pytest.mark.parametrize("content", ["{}", '{"step_size": "x"}', '{"step_size": NaN}', '{"step_size": true}'])
def test_a_file_of_the_step_size_without_a_step_size_is_refused(working_folder, capsys, content):
    write_settings(load_study("micro"), working_folder / "out", plan=PLAN.read_text(encoding="utf-8"))
    (working_folder / "out" / "step_size.json").write_text(content)
    for command in ("verify", "info", "measure", "train"):
        said = refused(capsys, [command, "out"])
        assert re.search("step_size.json (lacks step_size|holds no step size); put it back, or move it elsewhere", said)


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
