"""The numbers on the pages of results, and the outcomes that they state, follow from the kept results.

What the sentences make of them is not tested, and numbers that are marked as "not from the dataset" are not either.

A paragraph or a table row of ``docs/results/README.md`` and of its further pages ends with HTML comments, which readers
do not see. Each of them names one number or several:

* ``<!-- verdict: STUDY CLAIM LEARNER BASELINE COMPARISON QUANTITY STEPS: FIELD ... -->`` names fields of one verdict.
  They have three significant digits; with ``@1`` behind the field, one decimal; with ``+`` behind it, a sign.
  ``=OUTCOME`` instead of a field says which outcome the verdict has, after the correction if it is a primary one: if a
  later seed changes it, the sentence must change too;
* ``<!-- suppression: STUDY CLAIM: LEARNER STEPS, ... -->`` names all primary learners and steps for which all
  comparisons of a claim are supported, which the plan calls suppression; with a LEARNER behind CLAIM, those of it. The
  text has to name each of them;
* ``<!-- mean: STUDY VARIABLE LEARNER CHECKPOINT -->``, with a number behind CHECKPOINT for the place on each further
  axis, names the mean of a variable over tasks and seeds;
* ``<!-- difference: STUDY VARIABLE LEARNER BASELINE CHECKPOINT -->``, with ``later`` behind CHECKPOINT for the mean
  over the later inner steps, or a number for one step or one multiple of the step size, names the mean over seeds of
  learner minus baseline and both ends of its interval (Student t, 95 %). A last word ``%`` in a mean or a difference
  asks for percent with one decimal;
* ``<!-- change: STUDY VARIABLE LEARNER CHECKPOINT STEP -->`` likewise names the means at checkpoint 0 and at
  CHECKPOINT, the change between them and both ends of its interval;
* ``<!-- paired: STUDY CLAIM LEARNER OTHER COMPARISON QUANTITY STEPS -->`` names the mean over seeds of the effect of
  LEARNER minus that of OTHER, in two verdicts that are alike otherwise, and both ends of its interval;
* ``<!-- search: STUDY LEARNER STEP_SIZE -->`` names the validation accuracy in % in ``step_sizes.csv``;
* ``<!-- accuracy: STUDY LEARNER CHECKPOINT -->`` names the mean accuracy in % on the evaluation tasks;
* ``<!-- loss: STUDY LEARNER CHECKPOINT -->`` names the mean loss on them;
* ``<!-- figure: STUDY FIGURE QUANTITY SUPPORT_LOSS LEARNER CHECKPOINT -->`` names a value in the table of a figure.

A word that does not matter is written ``*``; underscores in a word stand for blanks.

The primary verdicts of all studies are corrected together, as ``hessian-tools compare`` does. The table that it writes
to ``primary.md`` is that of ``docs/results/verdicts.md``.
"""

import csv
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.claims import holm, judge, load_plan, verdicts_from_json
from analysis.claims.sentence import number
from analysis.claims.verdict import Verdict, final_outcome
from analysis.compare import Comparison, primary_table
from analysis.folder import open_study
from analysis.paper_numbers import TRANSFER
from hessian_tools.intervals import student_t

RESULTS = Path(__file__).parents[1] / "docs" / "results"
PAGE = RESULTS / "README.md"
DETAILS = ("against", "by_data_set", "how_sure", "variants", "tuned", "geometry")
PAGES = [PAGE, *(RESULTS / f"{name}.md" for name in DETAILS)]
KEPT = sorted(path.parent.name for path in RESULTS.glob("*/verdicts.json"))
REFERENCE = re.compile(
    r"<!-- (verdict|suppression|accuracy|loss|mean|difference|change|paired|search|figure): (.*?) -->"
)
# The studies whose plan has primary claims.
MAIN = ("quickdraw", "cifar-fs", "omniglot", "regression")
STEPS = ("step 0", "later steps")
# What the pages call the learners of the references "suppression".
LEARNERS = {
    "maml": "MAML",
    "maml-shuffled": "MAML on shuffled labels",
    "fomaml": "first-order MAML",
    "anil": "ANIL",
    "boil": "BOIL",
    "meta-sgd": "Meta-SGD",
}
# The order of the words of a verdict's reference, as fields of a Verdict.
KEYS = ("claim", "learner", "baseline", "comparison", "quantity", "steps")


@cache
def all_verdicts() -> dict[str, list[Verdict]]:
    stored = [(RESULTS / name / "verdicts.json").read_text(encoding="utf-8") for name in KEPT]
    return dict(holm(list(zip(KEPT, map(verdicts_from_json, stored), strict=True))))


def verdicts(study: str) -> list[Verdict]:
    return all_verdicts()[study]


@cache
def dataset(study: str) -> Any:
    return open_study(RESULTS / study)


def quoted(kind: str, words: str) -> list[str]:
    """The numbers that a reference names, as the page has to write them."""
    words, percent, _ = words.partition(" %")
    written = _percent if percent else number
    if kind == "suppression":
        where, found = words.split(":")
        pairs = {pair.strip() for pair in found.split(",") if pair.strip()}
        assert suppressed(*where.split()) == pairs
        return sorted({word for pair in pairs for word in in_words(*pair.split())})
    if kind in ("accuracy", "loss"):
        study, learner, checkpoint = words.split()
        values = dataset(study)[f"evaluation_{kind}"].sel(learner=learner, checkpoint=int(checkpoint))
        mean = float(values.mean("evaluation_task").mean("seed"))
        return [f"{100 * mean:.1f}" if kind == "accuracy" else number(mean)]
    if kind == "mean":
        study, variable, learner, checkpoint, *places = words.split()
        values = dataset(study)[variable].sel(learner=learner, checkpoint=int(checkpoint))
        further = [dim for dim in values.dims if dim not in ("seed", "task")]
        values = values.isel(dict(zip(further, map(int, places), strict=True)))
        return [written(float(values.mean("task").mean("seed")))]
    if kind == "difference":
        study, variable, learner, baseline, checkpoint, *step = words.split()
        sides = [{"learner": name, "checkpoint": int(checkpoint)} for name in (learner, baseline)]
        of_learner, of_baseline = (of_seeds(study, variable, side, *step) for side in sides)
        return [written(value, signed=True) for value in with_interval(of_learner - of_baseline)]
    if kind == "change":
        study, variable, learner, checkpoint, *step = words.split()
        sides = [{"learner": learner, "checkpoint": at} for at in (0, int(checkpoint))]
        before, after = (of_seeds(study, variable, side, *step) for side in sides)
        levels = [number(before.mean()), number(after.mean())]
        return levels + [number(value, signed=True) for value in with_interval(after - before)]
    if kind == "paired":
        study, claim, learner, other, *comparison = words.split()
        keys = [(claim, name, "*", *comparison) for name in (learner, other)]
        effects = [np.array(verdict_of(study, names).effects) for names in keys]
        return [number(value, signed=True) for value in with_interval(effects[0] - effects[1])]
    if kind == "search":
        return [f"{100 * float(row['validation_accuracy']):.1f}" for row in searches() if _row_of(row) == words]
    if kind == "figure":
        study, figure, *first = words.split()
        with (RESULTS / study / "figures" / f"{figure}.csv").open(encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if all(map(_matches, first, row[: len(first)]))]
        assert len(rows) == 1, f"{words}: {len(rows)} rows"
        return [number(float(rows[0][len(first)]))]
    where, fields = words.split(": ")
    study, *names = where.split()
    verdict = verdict_of(study, names)
    outcome = "=" + final_outcome(verdict).replace(" ", "_")
    assert all(field == outcome for field in fields.split() if field.startswith("=")), f"{words}: it is {outcome}"
    return [_written(verdict, field) for field in fields.split() if not field.startswith("=")]


def verdict_of(study: str, names: Sequence[str]) -> Verdict:
    rows = [v for v in verdicts(study) if all(map(_matches, names, (getattr(v, key) for key in KEYS)))]
    assert len(rows) == 1, f"{study} {names}: {len(rows)} verdicts"
    return rows[0]


def _percent(value: float, signed: bool = False) -> str:
    return f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"


def suppressed(study: str, claim: str, learner: str = "") -> set[str]:
    """Each learner with its steps, as "maml step_0", where every comparison of a claim supports a fall."""
    outcomes: dict[str, list[str]] = {}
    for v in verdicts(study):
        if v.claim == claim and (v.learner == learner if learner else primary_learner(study, v.learner)):
            outcomes.setdefault(f"{v.learner} {v.steps.replace(' ', '_')}", []).append(final_outcome(v))
    return {pair for pair, all_of_it in outcomes.items() if set(all_of_it) == {"supported"}}


def in_words(learner: str, steps: str) -> tuple[str, str]:
    return LEARNERS[learner], steps.replace("_", " ")


def primary_learner(study: str, learner: str) -> bool:
    return any(v.kind == "primary" for v in verdicts(study) if v.claim == "suppression" and v.learner == learner)


def of_seeds(study: str, variable: str, where: dict[str, Any], step: str = "") -> np.ndarray:
    """The means of a variable over all but the seeds.

    step: "later", or the position of one inner step, or of one multiple of the step size.
    """
    values = dataset(study)[variable].sel(where)
    if step == "later":
        values = values.isel(inner_step=slice(1, None)).mean("inner_step")
    elif step:
        values = values.isel({"alpha_factor" if "alpha_factor" in values.dims else "inner_step": int(step)})
    return values.mean([dim for dim in values.dims if dim != "seed"]).values


def with_interval(samples: np.ndarray) -> tuple[float, float, float]:
    """The mean of the samples of all seeds, and the ends of its 95 % interval."""
    half = student_t(len(samples), 0.95) * samples.std(ddof=1) / len(samples) ** 0.5
    return samples.mean(), samples.mean() - half, samples.mean() + half


def searches() -> list[dict[str, str]]:
    """The rows of the searches for a step size."""
    with (RESULTS / "step_sizes.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _row_of(row: dict[str, str]) -> str:
    return f"{row['study']} {row['learner']} {row['step_size']}"


def _matches(word: str, value: str) -> bool:
    return word == "*" or word.replace("_", " ") == value.replace("_", " ")


def _written(verdict: Verdict, field: str) -> str:
    name, digits, _ = field.partition("@1")
    value = getattr(verdict, name.rstrip("+"))
    return f"{value:.1f}" if digits else number(value, signed=name.endswith("+"))


def paragraphs() -> list[str]:
    return [block for page in PAGES for block in blocks(page) if REFERENCE.search(block)]


def blocks(page: Path) -> list[str]:
    """The paragraphs, table rows and list entries of a page."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    return re.split(r"\n\n|\n(?=[|*-] )", text)


@pytest.mark.heavy
@pytest.mark.parametrize("block", paragraphs(), ids=lambda block: block[:40])
def test_every_quoted_number_follows_from_the_kept_results(block: str):
    text = REFERENCE.sub("", block).replace("-", "\N{MINUS SIGN}")
    all_quoted = set()
    for kind, words in REFERENCE.findall(block):
        for value in quoted(kind, words):
            wanted = value.replace("-", "\N{MINUS SIGN}")
            all_quoted.add(wanted)
            assert re.search(rf"(?<![\d.]){re.escape(wanted)}(?![\d]|\.\d)", text), (
                f"{value} ({words}) is not in: {block}"
            )
    # Numbers with one decimal may be settings, such as a step size.
    if "not from the dataset" not in block:
        written = set(re.findall(r"(?<![\w.])[+\N{MINUS SIGN}]?\d+\.\d{2,}(?:e[+\N{MINUS SIGN}]\d+)?", text))
        assert written <= all_quoted, f"no reference for {written - all_quoted} in: {block}"


@pytest.mark.parametrize("study", [name for name in KEPT if not name.endswith("-surfaces")])
def test_no_curvature_along_a_gradient_exceeds_the_largest_eigenvalue(study: str):
    rho, largest, residual = (
        dataset(study)[name].values for name in ("rho", "eigenvalue_max", "eigenvalue_max_residual")
    )
    both = np.isfinite(rho) & np.isfinite(largest)
    assert both.sum() > 1000
    excess = rho - largest - residual - 0.01 * abs(largest)
    assert excess[both].max() <= 0


def test_in_the_regression_curvature_rises_in_first_order_maml_while_the_error_falls():
    """By the recipe of Lee, Yoo and Kwak (2023), whose learners are first-order, the hypothesis fails in every seed."""
    ds = dataset("regression").sel(learner="fomaml")
    first, last = (ds["alpha_rho"].isel(checkpoint=at, inner_step=0).mean("task").values for at in (0, -1))
    assert (last > first).all()  # for each seed
    errors = ds["evaluation_loss"].mean("evaluation_task").isel(checkpoint=[0, -1])
    assert (errors.isel(checkpoint=1) < errors.isel(checkpoint=0)).all()


def primary() -> str:
    return primary_table(Comparison(dict.fromkeys(KEPT), all_verdicts(), 0.95))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_number_with_decimals_is_checked(page: Path):
    for block in blocks(page):
        visible = re.sub(r"`[^`]*`|\([^)]*\.(?:md|png|json|html|yaml)\)", "", REFERENCE.sub("", block))
        if re.search(r"\d\.\d", visible) and "not from the dataset" not in block:
            assert REFERENCE.search(block), f"no reference for the numbers in: {block}"


def test_the_table_is_that_of_the_kept_verdicts():
    assert primary() in (RESULTS / "verdicts.md").read_text(encoding="utf-8")


def test_the_counts_on_the_first_page_are_those_of_the_verdicts():
    text = " ".join(REFERENCE.sub("", PAGE.read_text(encoding="utf-8")).split())
    compared = {
        against: [
            final_outcome(v)
            for study in ("quickdraw", "cifar-fs", "omniglot")
            for v in verdicts(study)
            if (v.claim, v.kind, v.comparison) == ("trajectory", "primary", f"against {against}")
        ]
        for against in ("the largest eigenvalue", "random directions", "rotated gradients")
    }
    assert {len(outcomes) for outcomes in compared.values()} == {24}
    supported, not_supported = (
        [outcomes.count(outcome) for outcomes in compared.values()] for outcome in ("supported", "not supported")
    )
    falls = (
        "than the largest eigenvalue in {}, than along random directions in {}, and than along rotated gradients in {}."
    )
    assert falls.format(*supported) in text
    assert (
        "The excess falls short of a tenth in {}, {} and {}; the others are undecided.".format(*not_supported) in text
    )
    below = f"in {sum(not_supported)} of 72 planned comparisons on images the excess of the fall along the gradient"
    assert f"{below} over that elsewhere is below a tenth; in {sum(supported)} it is supported." in text
    gains = [v.outcome for study in KEPT for v in verdicts(study) if v.claim == "shot-accuracy" and study in MAIN]
    assert f"raises the accuracy in {gains.count('supported')} of {len(gains)} comparisons on images" in text


def test_no_other_comparison_at_equal_accuracy_survives():
    survives = {
        f"{study} {v.learner} {v.steps}"
        for study in MAIN
        for v in verdicts(study)
        if v.claim == "shot-equal-accuracy" and v.kind == "primary" and v.corrected_outcome == "supported"
    }
    regression = {f"regression {name} {steps}" for name in ("maml-shot", "fomaml-shot") for steps in STEPS}
    drawings = {"quickdraw fomaml-shot later steps", *(f"quickdraw maml-shot-1 {steps}" for steps in STEPS)}
    assert survives == regression | drawings


def test_every_planned_claim_has_an_answer_on_the_pages():
    """A claim of the plan that no page mentions is measured but told to nobody."""
    told = {
        words.split()[1]
        for page in PAGES
        for kind, words in REFERENCE.findall(page.read_text(encoding="utf-8"))
        if kind == "verdict"
    }
    planned = {verdict.claim for study in MAIN for verdict in verdicts(study)}
    assert planned <= told


def test_the_table_of_transfer_follows_from_the_accuracies_of_each_seed():
    with (RESULTS / "transfer" / "accuracy.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    table = [line for line in (RESULTS / "transfer.md").read_text("utf-8").splitlines() if line.count("→") == 1]
    header, *lines = table
    assert "untrained | MAML | MAML + SHOT" in header and len(lines) == 6
    for line in lines:
        direction, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        pair = direction.lower().split(" → ")
        untrained, plain, shot = (
            np.array(
                [
                    float(row["accuracy"])
                    for row in rows
                    if [row["trained_on"], row["tested_on"], row["learner"]] == [*pair, name]
                ]
            )
            for name in ("untrained", "maml", "maml-shot")
        )
        mean, low, high = with_interval(shot - plain)
        interval = f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
        assert cells == [f"{untrained.mean():.1f}", f"{plain.mean():.1f}", f"{shot.mean():.1f}", interval]


def test_the_papers_numbers_beside_the_table_of_transfer_are_those_of_the_reports():
    text = (RESULTS / "transfer.md").read_text("utf-8")
    for (trained, tested), (plain, shot) in TRANSFER.items():
        assert f"| {trained}, {tested} | {plain:.2f} | {shot:.2f} | {shot - plain:+.2f} |" in text


@pytest.mark.heavy
@pytest.mark.parametrize("study", KEPT)
def test_the_kept_verdicts_follow_from_the_kept_numbers(study: str):
    judged = judge(dataset(study), load_plan(RESULTS / study / "claims.yaml"))
    stored = json.loads((RESULTS / study / "verdicts.json").read_text(encoding="utf-8"))["verdicts"]
    assert [(v.claim, v.learner, v.outcome) for v in judged] == [
        (v["claim"], v["learner"], v["outcome"]) for v in stored
    ]
    # JSON has no NaN, so a verdict without an effect is stored with null. One machine's sums differ from another's by
    # rounding.
    effects = [float("nan") if v["effect"] is None else v["effect"] for v in stored]
    assert [v.effect for v in judged] == pytest.approx(effects, rel=1e-4, abs=1e-6, nan_ok=True)
