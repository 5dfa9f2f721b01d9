"""Learners of one study may have different seeds: which runs there are, and what claims and figures make of it."""

import numpy as np
import pytest
import yaml
from simulated_studies import simulated_study

from analysis.claims import judge, load_plan
from analysis.claims.points import NotMeasuredError, points
from analysis.config.learner import LearnerConfig
from analysis.drawing.summary import measured, summarise
from analysis.errors import UserError
from analysis.figures import alpha_rho
from analysis.folder import begin, refuse_occupied
from analysis.measure import units
from analysis.report.accuracy import accuracy_table
from analysis.report.learning import meta_iterations, shot_differences
from analysis.schema import LEARNER_COORDINATES, NO_SUCH_SEED, NOT_MEASURED, has_seed, stack_runs, with_seeds_of
from analysis.setup_facts import _fewer_seeds
from analysis.study import build
from analysis.study_file import overridden, study_of

LEARNERS = """
untrained: {algorithm: untrained}
maml: {}
maml-shot: {shot: {weight: 0.1}, seeds: [0, 2]}
anil: {algorithm: anil, seeds: [1]}
"""
PLAN = load_plan()


def config(learners=LEARNERS, **settings):
    return study_of({"name": "fewer", "learners": yaml.safe_load(learners), "seeds": [0, 1, 2], **settings})


@pytest.fixture(scope="module")
def whole():
    return simulated_study(learners=("untrained", "maml", "maml-shot"), seeds=(0, 1, 2, 3), tasks=4, evaluation_tasks=5)


@pytest.fixture(scope="module")
def ds(whole):
    """The study ``whole`` as it is if maml-shot has the seeds 0 and 2 only."""
    runs = {
        (name, seed): whole.sel(learner=name, seed=seed, drop=True)
        for name in whole["learner"].values
        for seed in whole["seed"].values
        if name != "maml-shot" or seed in (0, 2)
    }
    stacked = stack_runs(runs, list(whole["learner"].values), planned=list(runs))
    return stacked.assign_coords({name: whole[name] for name in LEARNER_COORDINATES})


def test_only_the_seeds_of_a_learner_are_run():
    study = build(config())
    assert study.runs == [
        *(("untrained", seed) for seed in (0, 1, 2)),
        *(("maml", seed) for seed in (0, 1, 2)),
        ("maml-shot", 0),
        ("maml-shot", 2),
        ("anil", 1),
    ]
    measured_runs = {(learner, unit.seed) for unit in units(study) for learner in unit.learners}
    assert measured_runs == set(study.runs)
    assert _fewer_seeds(study) == "; maml-shot: only 0, 2; anil: only 1"


def test_the_seeds_do_not_tell_learners_apart():
    """A learner is compared with the one that differs in SHOT alone, whichever seeds the two have."""
    assert build(config()).without_shot == {"maml-shot": "maml"}
    assert LearnerConfig(seeds=(1,)) == LearnerConfig() != LearnerConfig(first_order=True)
    assert hash(LearnerConfig(seeds=(1,))) == hash(LearnerConfig())
    # So the folder of a run begun before a learner got its list of seeds is still that run's.
    assert "seeds" not in config().model_dump(mode="json")["learners"]["maml"]


def test_seeds_may_be_chosen_for_a_single_command():
    """A study whose seeds run one after the other names the seeds of a learner once, in its file."""
    assert [run for run in build(overridden(config(), {"seeds": (1,)})).runs if run[0] != "untrained"] == [
        ("maml", 1), ("anil", 1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("learners", "said"),
    [
        ("maml: {seeds: []}", "learners.maml.seeds"),
        ("maml: {seeds: [7]}", "no learner has any of the seeds"),
        ("{maml: {seeds: [0]}, more: {start: maml}}", "learners.more begins from maml, which has no seed 1; add it to"),
    ],
)
def test_seeds_that_do_not_fit_are_refused(learners, said):
    with pytest.raises(UserError) as error:
        config(learners)
    assert said in str(error.value)


def test_a_learner_may_get_more_seeds_later_but_not_fewer(tmp_path):
    study = build(config(), tmp_path)
    begin(study)
    refuse_occupied(build(config(LEARNERS.replace("[0, 2]", "[0, 1, 2]")), tmp_path))
    refuse_occupied(build(config(LEARNERS.replace(", seeds: [0, 2]", "")), tmp_path))
    for fewer in ("[0]", "[1]"):
        with pytest.raises(UserError, match="holds another study: its learners"):
            refuse_occupied(build(config(LEARNERS.replace("[0, 2]", fewer)), tmp_path))


def test_a_seed_that_a_learner_lacks_is_not_one_that_waits_to_be_measured(whole, ds):
    assert has_seed(ds, "maml-shot").tolist() == [True, False, True, False]
    assert has_seed(ds, "maml-shot", "maml").tolist() == [True, False, True, False]
    assert with_seeds_of(ds, "maml")["seed"].values.tolist() == [0, 1, 2, 3]
    values = points(ds, "alpha_rho", "maml-shot", checkpoint=300)
    assert np.isnan(values[[1, 3]]).all()
    np.testing.assert_array_equal(values[[0, 2]], points(whole, "alpha_rho", "maml-shot", checkpoint=300)[[0, 2]])
    status = ds["status"].copy()
    assert (status.sel(learner="maml-shot", seed=[1, 3]) == NO_SUCH_SEED).all()
    status[{"learner": 2, "seed": 0}] = NOT_MEASURED
    with pytest.raises(NotMeasuredError, match="maml-shot at checkpoint 300 lacks"):
        points(ds.assign(status=status), "alpha_rho", "maml-shot", checkpoint=300)


def test_a_comparison_uses_the_seeds_of_both_sides(whole, ds):
    """The same verdicts come from the study that never had the other seeds."""

    def answers(study):
        names = ("claim", "steps", "comparison", "quantity", "effect", "low", "high", "bootstrap_low", "num_seeds")
        verdicts = [verdict for verdict in judge(study, PLAN) if verdict.learner == "maml-shot"]
        return [str([getattr(verdict, name) for name in names]) for verdict in verdicts]

    assert answers(ds) == answers(whole.isel(seed=[0, 2]))
    assert {"shot", "suppression", "shot-equal-accuracy"} < {verdict.claim for verdict in judge(ds, PLAN)}
    maml = [verdict for verdict in judge(ds, PLAN) if verdict.claim == "suppression" and verdict.learner == "maml"]
    assert [verdict.num_seeds for verdict in maml if verdict.comparison == "raw"] == [4, 4]
    assert all(verdict.num_undefined == 0 for verdict in judge(ds, PLAN))


def test_learners_without_a_common_seed_are_not_compared(ds):
    present = (ds["learner"] != "maml") | ~ds["seed"].isin([0, 2])
    apart = ds.assign({name: ds[name].where(present) for name in ("evaluation_loss", "evaluation_accuracy")})
    apart["status"] = ds["status"].where(present, NO_SUCH_SEED)
    verdicts = judge(apart, PLAN)
    assert {"suppression", "alignment"} < {verdict.claim for verdict in verdicts}
    assert "shot" not in {verdict.claim for verdict in verdicts}
    assert {verdict.num_seeds for verdict in verdicts if verdict.claim.startswith("shot")} <= {0}


def test_captions_and_tables_count_the_seeds_of_each_learner(whole, ds):
    assert "within each of 2-4 seeds" in alpha_rho.caption(ds)
    assert "within each of 4 seeds" in alpha_rho.caption(whole)
    drawn = summarise(measured(ds, "alpha_rho")).mean.sel(learner="maml-shot")
    expected = summarise(measured(whole.isel(seed=[0, 2]), "alpha_rho")).mean.sel(learner="maml-shot")
    np.testing.assert_allclose(drawn, expected)
    rows = accuracy_table(ds).text.split("<tr")
    assert sum("MAML + SHOT" in row for row in rows) == 3  # two seeds, and all
    assert shot_differences(ds, "maml-shot", "maml").shape == (2, 5)
    assert len(meta_iterations(ds, "maml-shot", 50.0)) == 2
