"""Tests of the sentences that say what a study found, which are made from the numbers of its verdicts."""

from dataclasses import replace

from sample_verdict import VERDICT

from analysis.claims import findings
from analysis.claims.verdict import counted, final_outcome

NAN = float("nan")


def test_a_claim_is_summed_up_with_the_numbers_of_a_typical_comparison():
    later = replace(VERDICT, steps="later steps", outcome="not supported", trained_value=0.95)
    matched = replace(VERDICT, comparison="equal support loss", outcome="inconclusive", trained_value=0.1)
    assert findings([later, VERDICT, VERDICT, matched]) == [
        "Meta-training lowers the curvature? Divided: of 4 exploratory comparisons, it is supported in 2, not supported"
        " in 1 and undecided in 1; for no learner do all comparisons support it; for instance, alpha rho of maml at"
        " step 0 is 0.6 against 1 for the untrained network (supported)."
    ]
    assert "maml at later steps is 0.95 against 1" in findings([later, later, VERDICT])[0]
    control = replace(VERDICT, learner="maml-shuffled", trained_value=0.3)
    assert "alpha rho of maml at step 0 is 0.6" in findings([control, replace(VERDICT, kind="primary")])[0]
    lost = replace(VERDICT, kind="primary", corrected_outcome="inconclusive", num_corrected=9)
    assert "? Mostly yes: of 3 exploratory comparisons, it is supported in 2" in findings([VERDICT, VERDICT, later])[0]
    kept = replace(lost, corrected_outcome="supported")
    assert (
        "? Yes or undecided: of 2 primary comparisons, it is supported in 1 and undecided in 1 (after Holm's correction"
        " for 9 comparisons; without it, supported in 2); of 1 exploratory comparison, it is not supported in 1;"
    ) in findings([lost, kept, later])[0]
    assert findings([lost])[0].endswith("(supported, but inconclusive after the correction).")


def test_the_comparison_with_orthogonal_gradients_is_counted_only_where_there_is_no_other():
    start = replace(VERDICT, comparison="against untrained", outcome="not supported")
    for outcome in ("supported", "inconclusive"):
        weak = replace(VERDICT, comparison="against orthogonal", outcome=outcome)
        assert findings([weak, start]) == findings([start])
        assert "of 1 exploratory comparison" in findings([weak])[0]


def test_the_correction_counts_for_all_comparisons_and_for_the_example():
    """Two comparisons of "maml" are lost with the correction, and the learner that keeps its own is named alone."""
    kept = replace(VERDICT, kind="primary", corrected_outcome="supported", num_corrected=4)
    lost = replace(kept, corrected_outcome="inconclusive")
    both = [replace(verdict, comparison=c) for verdict in (lost, kept) for c in ("raw", "equal support loss")]
    both[2:] = [replace(verdict, learner="fomaml") for verdict in both[2:]]
    control = replace(VERDICT, learner="maml-shuffled")
    (sentence,) = findings([*both, control, control])
    assert "; all comparisons support it for fomaml at step 0 and maml-shuffled at step 0; for instance" in sentence
    # The outcome of most primary comparisons decides, and not that of most comparisons.
    third = replace(lost, learner="anil")
    assert (
        "of maml at step 0 is 0.6 against 1 for the untrained network (supported, but inconclusive after"
        in (findings([*both, third, control, control])[0])
    )


def test_a_sentence_names_few_of_many_learners():
    many = [replace(VERDICT, learner=f"m{i}", comparison=c) for i in range(6) for c in ("raw", "equal support loss")]
    assert "support it for m0 at step 0, m1 at step 0, m2 at step 0 and 3 more; for instance" in findings(many)[0]


def test_each_claim_has_a_sentence_and_shot_is_compared_with_the_learner_without_it():
    shot = replace(VERDICT, claim="shot", title="SHOT lowers it further", learner="maml-shot", baseline="maml")
    first, second = findings([VERDICT, shot])
    assert "Yes: of 1 exploratory comparison, it is supported in 1; for instance" in first
    assert "maml-shot at step 0 is 0.6 against 1 for maml (supported)" in second


def test_where_nothing_could_be_compared_no_numbers_are_named():
    empty = replace(VERDICT, effect=NAN, trained_value=NAN, baseline_value=NAN, outcome="inconclusive")
    assert findings([empty]) == [
        "Meta-training lowers the curvature? Undecided: of 1 exploratory comparison, it is undecided in 1."
    ]
    assert findings([]) == []


def test_the_outcome_that_counts_is_that_after_the_correction():
    lost = replace(VERDICT, kind="primary", corrected_outcome="inconclusive")
    verdicts = [lost, VERDICT, replace(VERDICT, outcome="not supported")]
    assert [final_outcome(verdict) for verdict in verdicts] == ["inconclusive", "supported", "not supported"]
    assert counted(verdicts) == "1 supported, 1 not supported, 1 inconclusive"
    assert counted([]) == ""


def test_the_html_of_a_verdict_says_its_outcome_once_and_what_the_correction_made_of_it():
    assert VERDICT._repr_html_().lower().count("supported") == 1
    corrected = replace(VERDICT, corrected_outcome="inconclusive", num_corrected=42)
    assert "After the correction for 42 comparisons it is inconclusive." in corrected._repr_html_()
    assert "inconclusive: nothing" in replace(VERDICT, outcome="inconclusive", sentence="nothing")._repr_html_()
