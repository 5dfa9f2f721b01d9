"""Tests of the forest plot: what it shows of the verdicts, its numbers, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sample_verdict import VERDICT

from analysis import figures
from analysis.claims.verdict import Verdict
from analysis.drawing.forest import LOOKS, MAX_ROWS
from analysis.drawing.panels import save

NAN = float("nan")


def some_verdicts() -> list[Verdict]:
    """Verdicts of two claims: three outcomes, one that is corrected, and one without numbers."""
    later = replace(VERDICT, steps="later steps", effect=0.05, low=-0.3, high=0.4, outcome="inconclusive")
    shot = replace(
        VERDICT, claim="shot", title="SHOT raises it", learner="maml-shot", baseline="maml", predicted="positive"
    )
    return [
        replace(VERDICT, kind="primary", corrected_outcome="inconclusive", p_corrected=0.2),
        later,
        replace(shot, effect=-2.0, low=-3.0, high=-1.0, margin=0.5, outcome="not supported"),
        replace(shot, steps="later steps", effect=NAN, low=NAN, high=NAN, outcome="inconclusive"),
    ]


def test_effects_are_drawn_in_units_of_the_margin_with_the_claimed_direction_to_the_right() -> None:
    (ax,) = figures.forest(some_verdicts()).axes
    points = [line for line in ax.lines if line.get_marker() != "None"]
    assert [float(line.get_xdata()[0]) for line in points] == pytest.approx([4.0, -0.5, -4.0])
    bars = [sorted(line.get_xdata()) for line in ax.lines if line.get_marker() == "None" and len(line.get_xdata()) == 2]
    np.testing.assert_allclose(bars, [[3.0, 5.0], [-4.0, 3.0], [-6.0, -2.0]])
    low, high = ax.get_xlim()
    assert low < -6.0 and high > 5.0


def test_outcomes_after_the_correction_have_a_colour_and_a_marker_of_their_own() -> None:
    (ax,) = figures.forest(some_verdicts()).axes
    shown = [(line.get_color(), line.get_marker()) for line in ax.lines if line.get_marker() != "None"]
    assert shown == [LOOKS[outcome][:2] for outcome in ("inconclusive", "inconclusive", "not supported")]
    assert len({marker for _, marker, _ in LOOKS.values()}) == len(LOOKS)


def test_rows_are_grouped_by_claim_with_labels_that_tell_them_apart() -> None:
    mixed = [some_verdicts()[i] for i in (0, 2, 1, 3)]
    texts = [text.get_text() for text in figures.forest(mixed).texts]
    assert texts == [
        "Meta-training lowers the curvature?",
        *("MAML, step 0", "MAML, later steps"),
        "SHOT raises it?",
        *("MAML + SHOT, step 0", "MAML + SHOT, later steps"),
    ]


def test_the_table_and_the_caption_say_what_is_drawn(tmp_path: Path) -> None:
    table = figures.forest.data(some_verdicts())
    assert list(table["claim"]) == ["suppression", "suppression", "shot", "shot"]
    assert list(table["drawn"])[:3] == pytest.approx([4.0, -0.5, -4.0])
    assert list(table["effect"])[:3] == [-0.4, 0.05, -2.0]
    assert list(table["outcome"]) == ["inconclusive", "inconclusive", "not supported", "inconclusive"]
    path = figures.forest.save_data(some_verdicts(), tmp_path / "forest")
    assert path.read_text().splitlines()[1].startswith("suppression,maml,untrained,step 0,raw,alpha_rho,primary,-0.4,")
    caption = figures.forest.caption(some_verdicts())
    assert "Outcomes: 1 not supported, 3 inconclusive." in caption
    assert "after the correction for many comparisons" in caption
    assert "A dash stands" in caption


def test_of_very_many_verdicts_the_primary_ones_are_drawn_unless_others_are_chosen() -> None:
    many = [replace(VERDICT, comparison=f"kind {i}", kind="primary" if i < 3 else "exploratory") for i in range(70)]
    assert len(figures.forest.data(many)) == 3
    assert f"{70 - 3} other comparisons are in the tables" in figures.forest.caption(many)
    assert len(figures.forest.data(many, claims=["suppression"])) == 70 > MAX_ROWS
    with pytest.raises(ValueError, match="140 verdicts do not fit in one figure of at most 120; choose claims"):
        figures.forest(many * 2, learners=["maml"])


def test_claims_learners_and_width_are_those_that_are_chosen(tmp_path: Path) -> None:
    figure = figures.forest(some_verdicts(), claims=["shot"], width="icml-full")
    assert figure.get_figwidth() == 6.75
    assert figure.texts[0].get_text() == "SHOT raises it?"
    assert len(figures.forest.data(some_verdicts(), learners=["maml"])) == 2
    save(figure, tmp_path / "forest", formats=("svg", "png"))
    assert (tmp_path / "forest.svg").stat().st_size < 100_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"claims": ["shoot"]}, "claim='shoot' is not one of suppression, shot; did you mean 'shot'"),
        ({"learners": ["mamll"]}, "did you mean 'maml'"),
        ({"learners": ["maml"], "claims": ["shot"]}, "no verdict is on the claims"),
        ({"width": "twitter"}, "width 'twitter' is not known"),
        ({"claims": "shot"}, "claims='shot' must be a list"),
    ],
)
def test_what_there_is_not_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        figures.forest(some_verdicts(), **options)


def test_without_verdicts_there_is_no_figure() -> None:
    assert "there are no verdicts" in str(figures.forest.needs([]))
    assert figures.forest.needs(some_verdicts()) is None
    with pytest.raises(ValueError, match="run 'hessian-tools test'"):
        figures.forest([])
