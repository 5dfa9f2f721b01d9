"""Tests of the study that ``hessian-tools new`` writes: it can be built, and so can every setting that it suggests."""

import re
from pathlib import Path

import pytest
import yaml
from refused_commands import refused
from settings_document import DOCUMENT, document, rows

from analysis.cli import run
from analysis.config import LearnerConfig, StudyConfig
from analysis.study import build, check
from analysis.study_file import load_study, parse_study


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    assert run(["new", "my-study"]) == 0
    return (tmp_path / "my-study.yaml").read_text()


def test_it_can_be_built_as_it_stands(text: str, tmp_path: Path) -> None:
    study = build(load_study(tmp_path / "my-study.yaml"), tmp_path / "run")
    check(study)
    assert study.config.name == "my-study"
    assert len(study.runs) == 9
    assert "NAME" not in re.sub("py:NAME", "", text)


def test_every_suggestion_is_a_setting(text: str) -> None:
    lines = text.splitlines()
    suggestions = [i for i, line in enumerate(lines) if re.match(" *# - ", line)]
    assert len(suggestions) >= 8
    assert any("claims:" in lines[i] for i in suggestions)
    for i in suggestions:
        setting = re.sub("# - ", "", lines[i], count=1).split("     #")[0]
        key = setting.split(":")[0]
        others = [re.sub("^name: .*", "name: other", line) for line in lines if not line.startswith(f"{key}:")]
        place = sum(not line.startswith(f"{key}:") for line in lines[:i])
        mlp = ["network: {name: mlp}"] if "sine-line" in setting else []
        changed = [line for line in others if not (mlp and line.startswith("network:"))] + mlp
        position = changed.index(others[place])
        assert parse_study("\n".join([*changed[:position], setting, *changed[position + 1 :]]), source=setting)


def test_a_file_is_not_written_over_and_a_bad_name_is_refused(text: str, capsys: pytest.CaptureFixture) -> None:
    capsys.readouterr()
    assert "exists already" in refused(capsys, ["new", "my-study"])
    assert "a name has letters, digits, '.', '_' and '-'" in refused(capsys, ["new", "my study!"])
    assert not Path("my study!.yaml").exists()
    assert yaml.safe_load(text)["seeds"] == [0, 1, 2]


@pytest.mark.skipif(not DOCUMENT.exists(), reason="an installed package has no documents")
def test_the_table_of_settings_is_up_to_date_and_complete() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == document(), "run python tests/analysis/settings_document.py"
    for key in ("name", "data.path", "inner.step_size.candidates", "measure.full.probes", "learners.NAME.shot.weight"):
        assert f"\n| `{key}` |" in text
    for setting in LearnerConfig.model_fields:
        assert f"\n| `learners.NAME.{setting}` |" in text
    table = list(rows(StudyConfig))
    assert len(table) >= len({row.split("|")[1] for row in table}) >= 90
    for row in table:
        _, key, kind, default, _, meaning, _ = re.split(r"(?<!\\)\|", row)
        assert key.strip() and kind.strip() and default.strip(), row
        assert len(meaning.split()) >= 3, row
        assert "same names" not in meaning


def test_a_setting_without_a_description_is_named() -> None:
    from pydantic import BaseModel

    class Undescribed(BaseModel):
        """A model."""

        depth: int = 1

    with pytest.raises(LookupError, match="no docstring says what Undescribed.depth means"):
        list(rows(Undescribed))
