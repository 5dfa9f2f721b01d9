"""Tests of the learners that a study may name.

Each of them becomes a learner of the library, and settings that belong to another algorithm are refused.
"""

from math import isnan

import pytest
import yaml

from analysis.config import LEARNER_SETTINGS, LearnerConfig
from analysis.errors import UserError
from analysis.learner_text import learner_description
from analysis.study import Study, build, check
from analysis.study_file import parse_study
from hessian_tools.inner import learners
from hessian_tools.inner.learners import Latent, Learner
from hessian_tools.inner.penalty import CurvaturePenalty
from hessian_tools.inner.pretraining import Augmentation, ShotPretraining
from hessian_tools.inner.shot import Shot
from hessian_tools.inner.steps import Momentum, Preconditioned

STEPS, ALPHA = 4, 0.2


def study(text: str, **settings: object) -> Study:
    """A study with the learners of a YAML text, and top-level settings beside them."""
    all_settings = {"name": "few", "inner": {"steps": STEPS, "step_size": ALPHA}, "learners": yaml.safe_load(text)}
    return build(parse_study(yaml.safe_dump(all_settings | settings, sort_keys=False), source="few.yaml"))


def build_learner(settings: str) -> Learner:
    """The library's learner that a study makes of these settings."""
    return study(f"one: {settings}").learners["one"].learner


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("{}", learners.maml(STEPS, ALPHA)),
        ("{first_order: true, evaluation_steps: 9}", learners.maml(STEPS, ALPHA, first_order=True, evaluation_steps=9)),
        ("{rule: {name: momentum, decay: 0.5}}", learners.maml(STEPS, ALPHA, rule=Momentum(0.5))),
        ("{rule: {name: preconditioned, epsilon: 0.1}}", learners.maml(STEPS, ALPHA, rule=Preconditioned(epsilon=0.1))),
        ("{moves: [body.0, head]}", Learner("maml", STEPS, ALPHA, moves=("body.0", "head"))),
        ("{algorithm: anil, step_size: 0.5}", learners.anil(STEPS, 0.5)),
        ("{algorithm: anil, moves: [head.weight]}", learners.anil(STEPS, ALPHA, head=("head.weight",))),
        ("{algorithm: boil, first_order: true}", learners.boil(STEPS, ALPHA, first_order=True)),
        ("{algorithm: meta-sgd}", learners.meta_sgd(STEPS, ALPHA)),
        ("{algorithm: meta-sgd, logarithmic: true}", learners.meta_sgd(STEPS, ALPHA, logarithmic=True)),
        (
            "{algorithm: reptile, minibatches: 2, learning_rate: 0.5}",
            learners.reptile(STEPS, ALPHA, minibatches=2),
        ),
        # LEO has 2 steps on codes with step size 1.0, its default, because 2 of the 4 inner steps are fine-tuning.
        ("{algorithm: leo}", learners.leo(2, 1.0, latent=Latent(fine_tuning_steps=2))),
        (
            "{algorithm: leo, step_size: 0.5, latent: {size: 3, fine_tuning_steps: 1, kl_weight: 0.0}}",
            learners.leo(3, 0.5, latent=Latent(size=3, fine_tuning_steps=1, kl_weight=0.0)),
        ),
        ("{algorithm: supervised}", learners.supervised(STEPS, ALPHA)),
        ("{algorithm: untrained}", learners.untrained(STEPS, ALPHA)),
    ],
)
def test_the_settings_of_a_learner_become_the_librarys_learner(settings, expected):
    assert build_learner(settings) == expected


def test_shot_and_pretraining_accept_every_setting_of_the_library():
    text = """
    long: {shot: {weight: -0.1, target_steps: null, reference_steps: 8, distance: js, detach_reference: false,
                  schedule: cosine, schedule_steps: 7}}
    apart: {shot: {distance: l2_parameters}, pretraining: {projector: absent, augmentation: null}}
    usual: {shot: {weight: 1}, pretraining: {hidden: 5, augmentation: {flip: false}}}
    """
    few = study(text)
    long, apart, usual = (few.training(name, 0) for name in ("long", "apart", "usual"))
    assert long.shot == Shot(
        weight=-0.1,
        target_steps=None,
        reference_steps=8,
        distance="js",
        detach_reference=False,
        schedule="cosine",
        schedule_steps=7,
    )
    assert long.pretraining is None
    assert apart.pretraining == ShotPretraining(projector="absent", hidden=64, augmentation=None)
    assert usual.pretraining == ShotPretraining(projector="trained", hidden=5, augmentation=Augmentation(flip=False))


def test_a_learner_may_replace_the_studys_optimiser_and_learning_rate():
    text = "maml: {}\nmine: {optimiser: sgd, learning_rate: 0.3}\nreptile: {algorithm: reptile, learning_rate: 0.5}"
    learners = study(text, train={"learning_rate": 0.002}).learners
    rates = {name: (one.optimiser, one.learning_rate) for name, one in learners.items()}
    assert rates == {"maml": ("adam", 0.002), "mine": ("sgd", 0.3), "reptile": ("sgd", 0.5)}


def test_one_switch_says_whether_evaluation_is_transductive():
    assert not study("maml: {}", measure={"transductive": False}).training("maml", 0).transductive
    assert study("maml: {}").training("maml", 0).transductive


REFUSED = [
    ("{algorithm: reptile, learning_rate: 1, first_order: true}", "first_order is a setting of maml, anil, "),
    ("{algorithm: maml, logarithmic: true}", "logarithmic is a setting of meta-sgd, not of maml; leave it out"),
    ("{algorithm: maml, minibatches: 2}", "minibatches is a setting of reptile, not of maml"),
    ("{algorithm: anil, latent: {size: 3}}", "latent is a setting of leo, not of anil"),
    ("{algorithm: leo, rule: {name: momentum}}", "not of leo"),
    ("{algorithm: supervised, shot: {}}", "shot is a setting of maml, anil, boil, meta-sgd, reptile and leo, not of"),
    ("{algorithm: untrained, learning_rate: 1.0}", "learning_rate is a setting of"),
    ("{algorithm: leo, pretraining: {}, shot: {}}", "pretraining is a setting of maml"),
    ("{pretraining: {}}", "it needs shot, such as shot: {weight: 1}"),
    ("{algorithm: untrained, shuffle_labels: true}", "shuffle_labels is a setting of maml, anil, boil, "),
    ("{algorithm: leo, penalty: {}}", "penalty is a setting of maml, anil and boil, not of leo; leave it out"),
    ("{algorithm: meta-sgd, penalty: {}}", "penalty is a setting of maml, anil and boil, not of meta-sgd"),
    ("{penalty: {weight: .inf}}", "learners.one.penalty"),
    ("{penalty: {wait: 1}}", "unknown key 'learners.one.penalty.wait'"),
    ("{algorithm: reptile}", "give that fraction, such as learning_rate: 0.5, or optimiser: adam"),
    ("{rule: {decay: 0.5}}", "decay is a setting of momentum and preconditioned, not of plain"),
    ("{rule: {name: momentum, epsilon: 0.5}}", "epsilon is a setting of preconditioned, not of momentum"),
    ("{shot: {distance: kl}}", "learners.one.shot: distance='kl' is not one of kl_reference_target"),
    ("{shot: {schedule: linear}}", "learners.one.shot: schedule_steps=None with schedule='linear'"),
    ("{start: two}", "learners.one.start='two' must name a trained learner of this study"),
    ("{start: one}", "learners.one.start: one begins from one, in a circle"),
    ("{algorithm: leo, latent: {sise: 4}}", "unknown key 'learners.one.latent.sise'; did you mean 'size'?"),
    ("{moves: []}", "learners.one.moves"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "said"), REFUSED)
def test_wrong_settings_of_a_learner_are_refused_by_name(settings, said):
    with pytest.raises(UserError) as error:
        study(f"one: {settings}")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_minibatches_that_do_not_fit_the_tasks_are_refused_before_anything_is_written():
    with pytest.raises(UserError, match=r"learners.one: minibatches=2000 of \d+ examples leave some empty"):
        check(study("one: {algorithm: reptile, minibatches: 2000, learning_rate: 0.5}"))


def test_fine_tuning_steps_of_leo_must_leave_inner_steps_for_the_codes():
    with pytest.raises(
        UserError, match=r"learners.one: latent.fine_tuning_steps=4 leaves none of inner.steps=4 for the codes"
    ):
        build_learner("{algorithm: leo, latent: {fine_tuning_steps: 4}}")


def test_every_setting_belongs_to_some_algorithm():
    always = {"algorithm", "step_size", "seeds"}
    assert set(LEARNER_SETTINGS) | always == set(LearnerConfig.model_fields)


# Learners of all kinds: with and without SHOT, with a step size of their own, and with another learner as their start.
MANY = """
control: {algorithm: untrained}
maml: {}
maml-shot: {shot: {weight: 0.1}}
first: {first_order: true}
reptile: {algorithm: reptile, learning_rate: 0.5}
supervised: {algorithm: supervised}
anil: {algorithm: anil}
anil-shot: {algorithm: anil, shot: {weight: 1.0e-6}}
same-as-anil: {moves: [head]}
meta-sgd: {algorithm: meta-sgd}
momentum: {rule: {name: momentum}}
other-alpha: {step_size: 0.5}
other-alpha-shot: {step_size: 0.7, shot: {}}
leo: {algorithm: leo}
leo-shot: {algorithm: leo, shot: {distance: l2_parameters}}
shot-p: {shot: {weight: 1}, pretraining: {}}
maml-p: {start: shot-p}
maml-p-shot: {start: shot-p, shot: {weight: 0.1}}
boil-p: {algorithm: boil, start: maml-p}
shuffled-shot: {shuffle_labels: true, shot: {weight: 0.1}}
leo-shuffled: {algorithm: leo, shuffle_labels: true}
penalised: {penalty: {weight: -0.5}}
penalised-shot: {penalty: {weight: -0.5}, shot: {weight: 0.1}}
other-penalty-shot: {penalty: {weight: 0.5}, shot: {weight: 0.1}}
"""


def test_pairs_with_and_without_shot_are_found_by_their_settings():
    assert study(MANY).without_shot == {
        "maml-shot": "maml",
        "anil-shot": "anil",
        "leo-shot": "leo",
        "maml-p": "maml",  # a start from the pre-training by SHOT counts as SHOT
        "maml-p-shot": "maml",
        "penalised-shot": "penalised",
    }


def test_the_control_of_shuffled_labels_is_trained_with_them_and_paired_only_with_its_like():
    several = study(MANY + "shuffled: {shuffle_labels: true}")
    assert several.training("shuffled", 0).shuffle_labels
    assert not several.training("maml", 0).shuffle_labels
    assert several.without_shot["shuffled-shot"] == "shuffled"
    assert several.without_shot["maml-shot"] == "maml"
    with pytest.raises(UserError, match=r"learners.one: shuffle_labels=True permutes .* regression does not have"):
        check(study("one: {shuffle_labels: true}", data={"name": "sine-line"}, network={"name": "mlp"}))


def test_settings_of_later_versions_are_written_only_where_they_are_used():
    """A run that began before these settings existed has stored none of them, and can still be resumed."""
    written = study(MANY).config.model_dump(mode="json")["learners"]
    assert {name for name, settings in written.items() if "shuffle_labels" in settings} == {
        "shuffled-shot", "leo-shuffled"
    }  # fmt: skip
    assert {name for name, settings in written.items() if "penalty" in settings} == {
        "penalised", "penalised-shot", "other-penalty-shot"
    }  # fmt: skip
    assert written["penalised"]["penalty"] == {"weight": -0.5}
    assert {"first_order", "pretraining", "learning_rate"} < set(written["maml"])
    assert LearnerConfig.model_validate(written["leo-shuffled"]).shuffle_labels


def test_the_curvature_penalty_reaches_training_and_is_refused_for_steps_of_another_rule():
    assert study(MANY).training("penalised", 0).penalty == CurvaturePenalty(-0.5)
    with pytest.raises(UserError, match=r"learners.one: penalty needs inner .*: its steps follow the momentum rule"):
        check(study("one: {rule: {name: momentum}, penalty: {}}"))


def test_learners_that_differ_only_in_an_intervention_or_first_order_are_a_family():
    """An intervention is SHOT, its pre-training or the penalty; the dose is SHOT's weight beside the query loss."""
    many = study(MANY)
    relations = many.relations
    penalised = ["penalised", "penalised-shot", "other-penalty-shot"]
    assert relations["without_intervention"] == many.without_shot | dict.fromkeys(["shot-p", *penalised], "maml")
    assert [relations["penalty"][name] for name in penalised] == [-0.5, -0.5, 0.5]
    doses = {name: dose for name, dose in relations["dose"].items() if dose}
    with_shot = ["maml-shot", "anil-shot", "other-alpha-shot", "leo-shot", "maml-p-shot", "shuffled-shot"]
    assert list(doses) == [*with_shot, *penalised[1:]]
    assert doses["maml-shot"] == 0.1
    assert relations["dose"]["shot-p"] == 0
    family = [name for name, label in relations["family"].items() if label == "maml"]
    assert family == ["maml", "maml-shot", "first", "shot-p", "maml-p", "maml-p-shot", *penalised]
    assert [name for name, first in relations["first_order"].items() if first and name in family] == ["first"]
    assert {kind for kind in relations["control"].values() if kind} == {"untrained", "supervised", "shuffled"}
    assert relations["algorithm"]["anil-shot"] == "anil"


def test_learners_are_trained_after_those_they_begin_from():
    first, *later = study(MANY).training_order
    assert later == [["maml-p", "maml-p-shot"], ["boil-p"]]
    assert len(first) == 21


def test_circles_and_starts_without_validation_are_refused():
    with pytest.raises(UserError, match="a begins from b begins from a, in a circle"):
        study("a: {start: b}\nb: {start: a}")
    with pytest.raises(UserError, match="takes the best checkpoint by validation; give train.validation_tasks"):
        study("a: {start: b}\nb: {}", train={"validation_tasks": 0})
    with pytest.raises(UserError, match="must name a trained learner"):
        study("a: {start: b}\nb: {algorithm: untrained}")


def test_learners_with_the_same_inner_loop_are_grouped():
    groups = study(MANY).alike_before_training
    assert [names for names in groups if len(names) > 1] == [
        (
            "control",
            "maml",
            "maml-shot",
            "first",
            "reptile",
            "supervised",
            "shot-p",
            "shuffled-shot",
            "penalised",
            "penalised-shot",
            "other-penalty-shot",
        ),
        ("anil", "anil-shot", "same-as-anil"),
        ("leo", "leo-shot", "leo-shuffled"),
        ("maml-p", "maml-p-shot"),
    ]
    # A learner with a step size of its own is never grouped with learners that take the study's, even at equal values.
    assert len(study(f"a: {{}}\nb: {{step_size: {ALPHA}}}\nc: {{step_size: 1.0}}").alike_before_training) == 3


def test_untrained_start_names_an_untrained_learner_with_the_same_inner_loop():
    starts = study(MANY).untrained_start
    assert {name: at for name, at in starts.items() if at != name} == {"maml-p": "control", "maml-p-shot": "control"}
    assert "boil-p" not in starts  # no learner of the study is the untrained network under BOIL's loop


def test_alpha_is_a_number_only_for_steps_along_the_gradient():
    learners = study(MANY).learners
    alphas = {name: one.alpha for name, one in learners.items()}
    without = {name for name, alpha in alphas.items() if isnan(alpha)}
    assert without == {"meta-sgd", "momentum", "leo", "leo-shot", "leo-shuffled"}
    assert {alphas[name] for name in set(alphas) - without} == {ALPHA, 0.5, 0.7}
    assert learners["momentum"].learner.why_no_alpha == "its steps follow the momentum rule"


def test_a_report_names_the_settings_in_which_a_learner_differs():
    many = study(MANY)
    assert learner_description(many, "reptile") == "Reptile, SGD 0.5"
    assert learner_description(many, "leo") == "second-order LEO, 2 of the steps on codes of 64, then 2 on weights"
    assert learner_description(many, "same-as-anil") == "second-order MAML, moving head"
    assert learner_description(many, "maml-p") == "second-order MAML, from the best checkpoint of shot-p"
    assert learner_description(many, "leo-shuffled").endswith("2 on weights, trained with shuffled labels")
    said = learner_description(many, "penalised-shot")
    assert said.endswith("reference detached) + curvature penalty (weight -0.5)")
    said = learner_description(many, "shot-p")
    assert "SHOT (weight 1, kl_reference_target, T = 1, R = K, reference detached), SHOT's distance alone" in said


def test_a_search_for_the_step_size_needs_a_learner_that_takes_it():
    search = {"steps": STEPS, "step_size": {"candidates": [0.1, 0.2], "learner": "one"}}
    for settings in ("{step_size: 0.3}", "{algorithm: leo}", "{start: two}"):
        with pytest.raises(UserError, match="must use the study's step size and begin from the untrained network"):
            study(f"one: {settings}\ntwo: {{}}", inner=search)
    for settings in ("{shuffle_labels: true}", "{penalty: {}}"):
        with pytest.raises(UserError, match="trained learner of this study without penalty and shuffle_labels"):
            study(f"one: {settings}", inner=search)
    for settings in ("{algorithm: anil}", "{shot: {weight: 0.1}}"):
        assert study(f"one: {settings}", inner=search).config.inner.step_size.learner == "one"
