"""Tests of the three sentences that answer a study's main questions from the numbers of its verdicts."""

from dataclasses import replace
from types import SimpleNamespace

from sample_verdict import VERDICT
from simulated_studies import simulated_study

from analysis import cli
from analysis.claims import findings, judge, load_plan, summary
from analysis.report import render

NAN = float("nan")
PRIMARY = replace(VERDICT, kind="primary", corrected_outcome="supported", num_corrected=9)
LATER = replace(PRIMARY, steps="later steps", trained_value=0.95, low=-0.1, high=0.02, corrected_outcome="inconclusive")
EIGENVALUE = replace(
    PRIMARY,
    claim="trajectory",
    comparison="against the largest eigenvalue",
    measure="the relative fall of rho",
    against="for the largest eigenvalue",
    outcome="not supported",
    corrected_outcome="not supported",
)
MATCHED = replace(
    PRIMARY, claim="shot-equal-accuracy", learner="maml-shot", baseline="maml", comparison="equal accuracy"
)


def test_the_first_sentence_says_what_falls_and_what_is_left_at_equal_loss_and_unit_norm():
    matched = replace(PRIMARY, comparison="equal support loss")
    ratio = replace(PRIMARY, claim="suppression-hg", quantity="alpha_hg_ratio", baseline_value=3.0)
    rise = replace(
        ratio, low=0.1, high=0.3, trained_value=4.0, outcome="not supported", corrected_outcome="not supported"
    )
    shuffled = replace(VERDICT, learner="maml-shuffled")
    scaled = replace(VERDICT, comparison="unit filter norm", quantity="rho_normalised")
    assert summary([PRIMARY, LATER, matched, scaled, ratio, replace(rise, steps="later steps"), shuffled]) == [
        "Does meta-training lower the curvature? Divided: alpha |Hg| / |g| of maml goes from 3 to 0.6 at step 0"
        " (supported) and from 3 to 4 at later steps (not supported: a rise); alpha rho of maml goes from 1 to 0.6"
        " at step 0 (supported) and from 1 to 0.95 at later steps (undecided); of 4 such primary comparisons, yes in 2,"
        " no in 1, undecided in 1 (all after Holm's correction for 9 comparisons); at equal support loss and at unit"
        " filter norm as well, a fall is supported for alpha |Hg| / |g| of maml at step 0 and alpha rho of maml at step"
        " 0."
    ]
    lost = replace(matched, corrected_outcome="inconclusive")
    # Only the further comparisons that were made are named.
    assert summary([PRIMARY, lost])[0].endswith("; at equal support loss as well, no fall is supported.")
    assert "; at unit filter norm as well, a fall is supported for" in summary([PRIMARY, scaled])[0]
    for others in ([], [replace(matched, claim="shot"), replace(scaled, claim="mine")]):
        assert "as well" not in summary([PRIMARY, *others])[0]
    assert summary([VERDICT])[0].endswith("; of 1 such exploratory comparison, yes in 1, no in 0, undecided in 0.")


def test_the_second_sentence_compares_with_the_largest_eigenvalue():
    rotated = replace(EIGENVALUE, comparison="against rotated gradients", against="along rotated gradients")
    assert summary([rotated, EIGENVALUE]) == [
        "Does the curvature fall more along the gradient than elsewhere? No: the relative fall of rho of maml is 0.6"
        " against 1 for the largest eigenvalue at step 0 (not supported); of 2 primary comparisons with other"
        " directions, yes in 0, no in 2, undecided in 0 (all after Holm's correction for 9 comparisons)."
    ]
    assert "0.6 against 1 along rotated gradients" in summary([rotated])[0]
    # The answer is that of all comparisons, and not only of those that are told.
    other = replace(rotated, outcome="supported", corrected_outcome="supported")
    assert "elsewhere? Yes or no: the relative fall of rho" in summary([other, EIGENVALUE])[0]
    unknown = replace(EIGENVALUE, trained_value=NAN, effect=NAN)
    assert (
        "No: the relative fall of rho of maml is 0.6 against 1 along rotated gradients"
        in summary([unknown, rotated])[0]
    )


def test_the_third_sentence_is_on_shot_and_on_accuracy():
    accuracy = replace(
        MATCHED, claim="shot-accuracy", comparison="accuracy", quantity="evaluation_accuracy", measure="the accuracy"
    )
    accuracy = replace(accuracy, kind="exploratory", corrected_outcome=None, steps="", predicted="positive")
    accuracy = replace(accuracy, outcome="not supported")
    fomaml = replace(accuracy, learner="fomaml-shot", baseline="fomaml")
    assert summary([MATCHED, accuracy, fomaml]) == [
        "Does SHOT lower the curvature further, and does it help? Yes: at equal accuracy alpha rho of maml-shot is"
        " 0.6 against 1 for maml at step 0 (supported); of 1 such primary comparison, yes in 1, no in 0, undecided in 0"
        " (all after Holm's correction for 9 comparisons); in an exploratory comparison the accuracy of maml-shot is"
        " 0.6 against 1 for maml (not supported: lower)."
    ]
    uncorrected = replace(MATCHED, kind="exploratory", corrected_outcome=None)
    assert "undecided in 0; the accuracy of maml-shot is" in summary([uncorrected, accuracy])[0]
    # A regression has no accuracy, so that whether SHOT helps is not asked.
    for others in ([], [fomaml], [replace(accuracy, trained_value=NAN, effect=NAN)]):
        (answer,) = summary([MATCHED, *others])
        assert answer.startswith("Does SHOT lower the curvature further? Yes: at equal")
        assert "the accuracy" not in answer
    # Where nothing was matched at equal accuracy, the claim without it is told.
    unmatched = replace(MATCHED, claim="shot", comparison="raw")
    empty = replace(MATCHED, trained_value=NAN, effect=NAN)
    assert "further? Yes: alpha rho of maml-shot is 0.6 against 1" in summary([empty, unmatched])[0]
    assert summary([empty]) == findings([empty])
    assert "Yes: at equal accuracy alpha rho" in summary([unmatched, MATCHED])[0]
    # Of several measures the first is shown, and the others are counted.
    ratio = replace(MATCHED, quantity="alpha_hg_ratio", trained_value=0.3)
    assert "0.3" not in summary([MATCHED, ratio])[0]
    assert "of 2 such primary comparisons" in summary([MATCHED, ratio])[0]


def test_comparisons_without_numbers_are_counted_and_not_shown():
    empty = replace(MATCHED, trained_value=NAN, baseline_value=NAN, effect=NAN, corrected_outcome="inconclusive")
    (answer,) = summary([empty, replace(MATCHED, steps="later steps")])
    assert "is 0.6 against 1 for maml at later steps (supported); of 2 such primary" in answer
    assert "yes in 1, no in 0, undecided in 1 (all" in answer
    assert "nan" not in answer
    # Where no primary comparison has numbers, the exploratory ones answer, and they alone are counted.
    exploratory = replace(MATCHED, kind="exploratory", corrected_outcome=None)
    assert summary([empty, exploratory])[0].endswith(
        "; of 1 such exploratory comparison, yes in 1, no in 0, undecided in 0."
    )


def test_a_fall_is_answered_where_only_a_further_comparison_is_primary():
    """A plan may correct the comparison at equal support loss alone."""
    (answer,) = summary([VERDICT, replace(PRIMARY, comparison="equal support loss")])
    assert "goes from 1 to 0.6 at step 0 (supported); of 1 such exploratory comparison" in answer


def test_the_numbers_are_those_of_the_learner_that_shot_is_added_to():
    """The first learner of an exploratory study may be a control."""
    control = replace(VERDICT, learner="maml-shuffled", trained_value=0.1)
    shot = replace(VERDICT, claim="shot", learner="maml-shot", baseline="maml")
    with_shot = replace(VERDICT, learner="maml-shot", trained_value=0.2)
    assert "Yes: alpha rho of maml goes from 1 to 0.6" in summary([control, with_shot, VERDICT, shot])[0]
    assert "alpha rho of maml-shot goes from 1 to 0.2" in summary([control, with_shot, shot])[0]
    assert "alpha rho of maml-shuffled goes from 1 to 0.1" in summary([control, VERDICT])[0]


def test_controls_and_learners_with_shot_do_not_answer_what_meta_training_does():
    control = replace(VERDICT, learner="maml-shuffled", trained_value=0.1, outcome="not supported")
    elsewhere = replace(EIGENVALUE, kind="exploratory", corrected_outcome=None)
    verdicts = [control, VERDICT, replace(elsewhere, learner="maml-shuffled"), elsewhere, MATCHED]
    answers = summary(verdicts, ["maml"])
    assert "Yes: alpha rho of maml goes from 1 to 0.6 at step 0 (supported); of 1 such exploratory" in answers[0]
    assert "of 1 exploratory comparison with other directions, yes in 0, no in 1" in answers[1]
    assert "alpha rho of maml-shot is 0.6" in answers[2]
    assert "of 2 such exploratory comparisons" in summary(verdicts)[0]
    # A study of controls alone has answers of none.
    assert summary([control], []) == findings([control])


def test_the_report_and_the_command_count_the_learners_without_shot_alone():
    ds = simulated_study(seeds=range(2), tasks=2, evaluation_tasks=2)
    verdicts = [replace(VERDICT, learner=name) for name in ("maml-shot", "maml", "fomaml")]
    lines: list[str] = []
    cli._say_verdicts(verdicts, ds, SimpleNamespace(say=lines.append))
    counted = "of 2 such exploratory comparisons, yes in 2"
    assert counted in lines[-1]
    assert counted in render(ds=ds, verdicts=verdicts, figures={}, setup={}, command="")


def test_a_study_has_a_sentence_for_each_question_and_one_without_them_has_its_findings():
    verdicts = judge(simulated_study(seeds=range(4), tasks=4, evaluation_tasks=4), load_plan())
    assert [sentence.split(" ")[1] for sentence in summary(verdicts)] == ["meta-training", "the", "SHOT"]
    others = [v for v in verdicts if v.claim in ("alignment", "stability", "association", "manipulation", "shot-speed")]
    assert len(findings(others)) > 3
    assert summary(others) == findings(others)[:3]
    assert summary([]) == []
