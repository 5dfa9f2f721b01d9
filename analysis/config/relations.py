"""What the learners of a study are to each other, by their settings: claims and figures do not guess from names."""

from typing import Any

from analysis.config.learner import LearnerConfig
from analysis.config.study import StudyConfig


def trained(config: StudyConfig) -> dict[str, bool]:
    """Which learners are trained: all but the untrained controls."""
    return {name: learner.trained for name, learner in config.learners.items()}


def without_shot(config: StudyConfig) -> dict[str, str]:
    """For each learner with SHOT the one that is the same but for SHOT, where the study has it.

    With SHOT is one with the penalty, or one that begins from a learner pre-trained by SHOT alone (SHOT_p); what is
    being pre-trained so is not: it has no twin.
    """
    plain = {learner: name for name, learner in config.learners.items() if not _by_shot(config, learner)}
    bare = {
        name: learner.model_copy(update=_without(config, learner))
        for name, learner in config.learners.items()
        if _by_shot(config, learner) and learner.pretraining is None
    }
    return {name: plain[learner] for name, learner in bare.items() if learner in plain}


def rounds(config: StudyConfig) -> list[list[str]]:
    """The learners in the order of training: each round begins from learners of those before it."""
    found: list[list[str]] = []
    for name in config.learners:
        depth, at = 0, config.learners[name].start
        while at is not None:
            depth, at = depth + 1, config.learners[at].start
        found += [[] for _ in range(depth + 1 - len(found))]
        found[depth].append(name)
    return found


def _pretrained(config: StudyConfig, learner: LearnerConfig) -> bool:
    return learner.start is not None and config.learners[learner.start].pretraining is not None


def _by_shot(config: StudyConfig, learner: LearnerConfig) -> bool:
    return learner.shot is not None or _pretrained(config, learner)


def _without(config: StudyConfig, learner: LearnerConfig) -> dict[str, Any]:
    return {"shot": None} | ({"start": None} if _pretrained(config, learner) else {})
