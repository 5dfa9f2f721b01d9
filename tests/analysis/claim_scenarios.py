"""For each claim, a study without its effect and one with it, and how often thousands of such studies support it.

``Plant`` is one learner of such a study: its numbers say how much meta-training changes the learner's quantities.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
from planted_studies import Plant, planted_study
from quick_plan import quick_plan

from analysis.claims import CLAIMS, Verdict
from analysis.claims.comparison import Comparison, compare_task_by_task
from analysis.statistics import student_half_width

MANY_CHECKPOINTS = {"checkpoints": (0, 10, 20, 40, 70, 100)}
# A learner with SHOT: the learner without SHOT that it is compared with, and the weight of SHOT. SHOT is the penalty on
# the distance between the ends of few large and of many small inner steps (Lee, Yoo, Kwak 2023).
WITH_SHOT = {"without": "maml", "shot": 0.1}


def _doses(gain: float = 0.0, **falls: float) -> dict[str, Plant]:
    """Four learners with the weights -0.1, 0, 0.1 and 1 of the penalty on the curvature, and given falls in curvature.

    falls: by the names of the learners, in the order of the weights. The second learner, whose weight is 0, must have
        the name "b": the others are compared with it.
    gain: the gain in accuracy is 0.1 plus this factor times the fall.
    """
    weights = dict(zip(falls, (-0.1, 0.0, 0.1, 1.0), strict=True))
    return {
        name: Plant(along=fall, accuracy=0.1 + gain * fall, penalty=weights[name], without="b" if name != "b" else "")
        for name, fall in falls.items()
    }


MAML = Plant(along=0.5)


def _pair(second: Plant, first: Plant = MAML) -> dict[str, Plant]:
    """A study of two learners, the first of which is called maml."""
    return {"maml": first, "other": second}


SHOT = Plant(along=0.5, **WITH_SHOT)
ANIL = Plant(part=0.5, algorithm="anil", family="anil")
# The learners of a study in which the claim is false, those of one in which it is true, and options of the study.
SCENARIOS: Mapping[str, tuple[dict[str, Plant], dict[str, Plant], dict[str, Any]]] = {
    "suppression": ({"maml": Plant()}, {"maml": Plant(along=0.2)}, {}),
    "suppression-hg": ({"maml": Plant()}, {"maml": Plant(along=0.2)}, {}),
    "trajectory": ({"maml": Plant(along=0.5, elsewhere=0.5)}, {"maml": Plant(along=0.8, elsewhere=0.4)}, {}),
    "shot": (_pair(SHOT), _pair(replace(SHOT, along=0.8)), {}),
    "shot-hg": (_pair(SHOT), _pair(replace(SHOT, along=0.8)), {}),
    # Without the effect, the curvature is the same function of the accuracy for both, and SHOT is further ahead.
    "shot-equal-accuracy": (
        _pair(replace(SHOT, along=0.7, accuracy=0.28)),
        _pair(replace(SHOT, along=0.9, accuracy=0.2)),
        MANY_CHECKPOINTS,
    ),
    "intervention": (_doses(a=0.1, b=0.3, c=0.5, d=0.9), _doses(0.06, a=0.1, b=0.3, c=0.5, d=0.9), {}),
    "alignment": ({"maml": Plant()}, {"maml": Plant(meta=0.1)}, {}),
    "manipulation": (_doses(a=0.3, b=0.3, c=0.3, d=0.3), _doses(a=0.2, b=0.3, c=0.3, d=0.4), {}),
    "weight-growth": ({"maml": Plant(along=0.4, growth=0.2)}, {"maml": Plant(along=0.4, growth=0.05)}, {}),
    "stability": ({"maml": Plant(level=2.0)}, {"maml": Plant(level=2.0, along=0.2)}, {"tasks": 16}),
    "supervised": (
        _pair(Plant(along=0.5, control="supervised", algorithm="supervised")),
        _pair(Plant(along=0.2, control="supervised", algorithm="supervised")),
        {},
    ),
    "first-order": (_pair(Plant(along=0.5, first_order=True)), _pair(Plant(along=0.2, first_order=True)), {}),
    "head-and-body": (_pair(ANIL, Plant(part=0.5)), _pair(replace(ANIL, part=0.8), Plant(part=0.5)), {}),
    "meta-gradient": ({"maml": Plant()}, {"maml": Plant(meta=0.1)}, {}),
    "association": (
        {"maml": Plant(along=0.5, accuracy=0.0)},
        {"maml": Plant(along=0.5, accuracy=0.05)},
        MANY_CHECKPOINTS,
    ),
    "shot-distance": ({"maml": Plant(cosine=0.8)}, {"maml": Plant(cosine=0.92)}, {}),
    "shot-accuracy": (_pair(SHOT), _pair(replace(SHOT, accuracy=0.22)), {}),
    "shot-speed": (_pair(SHOT), _pair(replace(SHOT, speed=2.0)), MANY_CHECKPOINTS),
}


def many_verdicts(claim: str, *, true: bool, seeds: int) -> list[Verdict]:
    """The verdicts of a claim on a study with a very large number of seeds, with its effect if ``true``.

    The bootstrap is left out, and the comparison at equal support loss is replaced by the raw one. Both are slow; the
    first decides nothing, and tests/analysis/test_equal_loss.py is about the second.
    """
    learners, with_effect, options = SCENARIOS[claim]
    ds = planted_study(with_effect if true else learners, seeds=seeds, **options)

    def raw(trained: Any, baseline: Any, loss: Any, loss0: Any, plan: Any, *, diverged: Any) -> Comparison:
        return compare_task_by_task(trained, baseline, plan, diverged=diverged)

    with (
        patch("analysis.claims.comparison.task_bootstrap", lambda *_, **__: (np.nan, np.nan)),
        patch("analysis.claims.suppression.compare_at_equal_loss", raw),
    ):
        return CLAIMS[claim](ds, quick_plan(claim))


def rates(verdict: Verdict, num: int) -> tuple[float, float]:
    """How many of the studies of ``num`` seeds have p < 5 %, and how many support the claim, as fractions.

    The seeds of the verdict are cut into such studies. Some claims require more than an effect. This is not looked at
    here, so that the second fraction is an upper bound for these claims.
    """
    effects = np.array(verdict.effects)
    studies = effects[: len(effects) // num * num].reshape(-1, num)
    studies = studies[np.isfinite(studies).all(axis=1)]
    mean, sd = studies.mean(axis=1), studies.std(axis=1, ddof=1)
    half = student_half_width(1.0, num) * sd
    sign = 1.0 if verdict.predicted == "positive" else -1.0
    low, high = sign * mean - half, sign * mean + half
    return float(((low > 0) | (high < 0)).mean()), float(((low > 0) & (high >= verdict.margin)).mean())
