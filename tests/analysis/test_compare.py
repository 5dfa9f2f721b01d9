"""Studies side by side: verdicts that are corrected together, figures over each other, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from simulated_studies import simulated_study

from analysis import compare as comparing
from analysis.claims import judge, load_plan
from analysis.claims.plan import BUNDLED
from analysis.compare import Comparison, compare, lines, primary_table, write
from analysis.drawing import overlay
from analysis.errors import UserError
from analysis.folder import begin
from analysis.study import build
from analysis.study_file import study_of

PLAN = load_plan()


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    studies = {
        "one": simulated_study(tasks=4, evaluation_tasks=5, learners=("untrained", "maml", "fomaml")),
        "other": simulated_study(tasks=4, evaluation_tasks=5, learners=("maml", "maml-shot"), seed=1, effects={}),
    }
    verdicts = comparing.holm([(name, judge(ds, PLAN)) for name, ds in studies.items()])
    return Comparison(studies, dict(verdicts), PLAN.confidence)


def test_each_question_has_the_answer_of_every_study(comparison):
    both = {key: found for key, found in comparison.rows.items() if len(found) == 2}
    assert {key[1] for key in both} == {"maml"}
    assert comparison.learners == ["maml"]
    for key, found in both.items():
        for name, verdict in found.items():
            assert verdict in comparison.verdicts[name]
            assert (verdict.claim, verdict.learner) == key[:2]
    text = "\n".join(lines(comparison))
    assert "Meta-training lowers the curvature along the inner gradient?" in text
    row = next(line for line in text.splitlines() if line.strip().startswith("fomaml against untrained, step 0, raw"))
    assert row.endswith("  -")  # the other study has no such learner


def test_the_primary_verdicts_of_all_studies_are_corrected_together(comparison):
    primary = [v for verdicts in comparison.verdicts.values() for v in verdicts if v.kind == "primary"]
    counted = sum(np.isfinite(v.p) for v in primary)
    assert {v.num_corrected for v in primary} == {counted}
    alone = [v for v in judge(comparison.studies["one"], PLAN) if v.kind == "primary"]
    assert alone[0].num_corrected < counted


def test_the_page_holds_everything(comparison, tmp_path):
    page = write(comparison, tmp_path).read_text(encoding="utf-8")
    assert page.count("<img ") == 1
    assert 'src="data:image/png;base64,' in page
    assert "http" not in page.replace("http-equiv", "")
    stored = json.loads((tmp_path / "comparison.json").read_text())
    assert {name: len(rows) for name, rows in stored["studies"].items()} == {
        name: len(rows) for name, rows in comparison.verdicts.items()
    }
    assert (tmp_path / "figures" / "comparison-maml.pdf").exists()


def test_the_table_of_primary_verdicts_has_each_of_them_once(comparison, tmp_path):
    write(comparison, tmp_path)
    header, rule, *rows = (tmp_path / "primary.md").read_text(encoding="utf-8").splitlines()
    assert header == "| Learner, baseline, comparison | one | other |" and rule == "| --- | --- | --- |"
    assert all(line.count("|") == 4 for line in rows)
    titles = [line for line in rows if "**" in line]
    assert len(titles) == len(set(titles)) > 1
    for column, (_, verdicts) in enumerate(comparison.verdicts.items(), start=2):
        outcomes = [v.corrected_outcome.split()[0] for v in verdicts if v.kind == "primary"]
        cells = [line.split("|")[column].strip() for line in rows]
        answers = [cell for cell in cells if cell not in ("", "-")]
        assert sorted(cell.split()[0] for cell in answers) == sorted(outcomes)
    asked = ("suppression", "maml", "step 0", "raw")
    effect = next(v.effect for v in comparison.verdicts["one"] if (v.claim, v.learner, v.steps, v.comparison) == asked)
    row = next(line for line in rows if line.startswith("| maml against untrained, step 0, raw, alpha rho |"))
    assert f" {effect:+.3g} [" in row.split("|")[2]


def test_an_obstacle_stands_beside_the_numbers_that_it_makes_inconclusive(comparison):
    """By the package's plan the comparison with orthogonal gradients is exploratory; by one's own it may be primary."""
    primary = {
        name: [replace(v, kind="primary") if v.claim == "alignment" else v for v in rows]
        for name, rows in comparison.verdicts.items()
    }
    other = Comparison(comparison.studies, primary, comparison.confidence)
    obstacle = "; the untrained network passes as well"  # the simulated one has an alignment of 0.25
    expected = sum(v.comparison == "against orthogonal" for rows in primary.values() for v in rows)
    assert expected == 4
    for text in (primary_table(other), "\n".join(lines(other))):
        assert text.count(obstacle) == expected
        marked = [line for line in text.splitlines() if obstacle in line]
        assert all("against orthogonal" in line and "supported" not in line for line in marked)
    for rows in primary.values():
        for v in rows:
            assert (obstacle in comparing._cell(v).text) == (v.comparison == "against orthogonal")
            assert "says nothing of training" not in comparing._cell(v).text  # the verdict's sentence says it
    without_numbers = replace(primary["one"][0], obstacle="too few points; more seeds would not help", effect=np.nan)
    assert "too few points" not in comparing._text(without_numbers)
    assert "; too few points" in comparing._text(replace(without_numbers, effect=1.0))


def test_a_figure_has_one_panel_a_quantity_and_one_colour_a_study(comparison):
    studies = {
        name: ds.assign(alpha_hg_ratio=ds["step_size"] * ds["hg_ratio"]) for name, ds in comparison.studies.items()
    }
    figure = overlay.draw(studies, "maml")
    panels = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title(loc="left") for ax in panels] == list(overlay.QUANTITIES)
    for ax in panels:
        means = {line.get_gid(): line for line in ax.get_lines() if str(line.get_gid()).startswith("mean:")}
        assert set(means) == {"mean:one", "mean:other"}
        assert len({line.get_color() for line in means.values()}) == 2
        assert len({line.get_marker() for line in means.values()}) == 2
    ds = comparison.studies["other"]
    expected = ds["alpha_rho"].sel(learner="maml").isel(inner_step=0).mean(["task", "seed"])
    line = next(line for line in panels[0].get_lines() if line.get_gid() == "mean:other")
    np.testing.assert_allclose(line.get_ydata(), expected)
    expected = ds["hg_ratio"].sel(learner="maml").isel(inner_step=slice(1, None)).mean(["task", "seed", "inner_step"])
    line = next(line for line in panels[3].get_lines() if line.get_gid() == "mean:other")
    np.testing.assert_allclose(line.get_ydata(), float(ds["step_size"].mean()) * expected)
    # A study that did not measure a quantity has no line in its panel, and one that no study measured has no panel.
    without = ds.drop_vars("alpha_hg_ratio")
    assert len([ax for ax in overlay.draw({"other": without}, "maml").axes if ax.get_visible()]) == 3
    mixed = overlay.draw(studies | {"other": without}, "maml")
    drawn = [line.get_gid() for line in mixed.axes[3].get_lines() if np.isfinite(line.get_ydata()).any()]
    assert "mean:one" in drawn and "mean:other" not in drawn


def folder(path, name, **plan):
    begin(build(study_of({"name": name, "learners": {"maml": {}}}), path), claims=None)
    if plan:
        (path / "claims.yaml").write_text(yaml.safe_dump(yaml.safe_load(BUNDLED.read_text()) | plan))
    return path


def test_what_cannot_be_compared_is_refused(tmp_path, comparison, monkeypatch):
    a, b = folder(tmp_path / "a", "same"), folder(tmp_path / "b", "other", confidence=0.9)
    with pytest.raises(UserError, match="at least two studies"):
        compare([a])
    with pytest.raises(UserError, match="two of the studies are both called a"):
        compare([a, a])
    with pytest.raises(UserError, match=r"same judges at a confidence of 0.95 and other at 0.9;"):
        compare([a, b])
    with pytest.raises(UserError, match="nothing is measured yet"):
        compare([a, folder(tmp_path / "c", "third")])
    apart = {
        name: [replace(v, learner=f"{name}-{v.learner}") for v in rows] for name, rows in comparison.verdicts.items()
    }
    monkeypatch.setattr(comparing, "measurements", lambda study: comparison.studies["one"])
    monkeypatch.setattr(comparing, "stale_parts", lambda study, ds: [])
    monkeypatch.setattr(comparing, "open_verdicts", lambda path: apart["one" if path.name == "a" else "other"])
    with pytest.raises(UserError, match="no two of same, third answer one question"):
        compare([a, tmp_path / "c"])
