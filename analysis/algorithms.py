"""The learners a configuration names as the library's own, and which of them have one inner loop."""

from dataclasses import replace

from analysis.config import LatentConfig, LearnerConfig, StudyConfig
from hessian_tools.inner import learners
from hessian_tools.inner.learners import Latent, Learner
from hessian_tools.inner.pretraining import ShotPretraining
from hessian_tools.inner.shot import Shot
from hessian_tools.inner.steps import PLAIN
from hessian_tools.layout import ParamLayout

LEO_STEP_SIZE = 1.0  # where the learned step size on codes begins, in units of a code


def learner(config: StudyConfig, name: str, *, step_size: float) -> Learner:
    """A learner of the study; step_size: the study's, for those that name none of their own. ValueError if it cannot
    take the study's number of inner steps."""
    own, steps = config.learners[name], config.inner.steps
    if own.algorithm == "leo":
        codes = latent(config, own)
        alpha = own.step_size or LEO_STEP_SIZE
        return learners.leo(steps - codes.fine_tuning_steps, alpha, latent=codes, first_order=own.first_order)
    found = _built(own, steps, own.step_size or step_size)
    return replace(found, moves=own.moves or found.moves, rule=own.rule.built(), evaluation_steps=own.evaluation_steps)


def latent(config: StudyConfig, settings: LearnerConfig) -> Latent:
    """LEO's settings in this study. ValueError where they leave no inner step for the codes."""
    return (settings.latent or LatentConfig()).built(inner_steps=config.inner.steps)


def _built(own: LearnerConfig, steps: int, alpha: float) -> Learner:
    match own.algorithm:
        case "anil":
            return learners.anil(steps, alpha, first_order=own.first_order)
        case "boil":
            return learners.boil(steps, alpha, first_order=own.first_order)
        case "meta-sgd":
            return learners.meta_sgd(steps, alpha, logarithmic=own.logarithmic, first_order=own.first_order)
        case "reptile":
            return learners.reptile(steps, alpha, minibatches=own.minibatches)
        case "supervised":
            return learners.supervised(steps, alpha)
        case "untrained":
            return learners.untrained(steps, alpha)
        case _:
            return learners.maml(steps, alpha, first_order=own.first_order)


def shot(settings: LearnerConfig) -> Shot | None:
    """The learner's SHOT penalty, if it has one."""
    return settings.shot.built() if settings.shot else None


def pretraining(settings: LearnerConfig) -> ShotPretraining | None:
    """How it is pre-trained by SHOT alone, if it is."""
    return settings.pretraining.built() if settings.pretraining else None


def optimiser(config: StudyConfig, name: str) -> str:
    """Of the outer loop; Reptile's is plain descent unless told otherwise."""
    own = config.learners[name]
    return own.optimiser or ("sgd" if own.algorithm == "reptile" else config.train.optimiser)


def learning_rate(config: StudyConfig, name: str) -> float:
    """Of the outer loop."""
    return config.learners[name].learning_rate or config.train.learning_rate


def moved_params(found: Learner, layout: ParamLayout) -> int:
    """How many of the network's parameters the inner loop moves; LEO's moves the head's weights through codes."""
    if found.latent is not None:
        names = [name for name in layout.under("head") if name.endswith("weight")][:1]
        return layout.only(names).numel
    return layout.only(layout.under(*found.moves)).numel if found.moves else layout.numel


def alpha(config: StudyConfig, name: str, *, step_size: float) -> float:
    """The alpha of alpha rho: that of inner steps which are alpha times the gradient; NaN where they are not.

    A learned step size per parameter, another rule and steps on codes have no such number, so that whatever is scaled
    by alpha does not exist for them; see ``why_no_alpha``.
    """
    return float("nan") if why_no_alpha(config, name) else config.learners[name].step_size or step_size


def why_no_alpha(config: StudyConfig, name: str) -> str | None:
    """In words, why the inner steps are not one alpha times the gradient; None where they are."""
    found = learner(config, name, step_size=1.0)
    if found.latent is not None:
        return "its steps are on codes"
    if found.learns_step_sizes:
        return "each parameter has a step size of its own"
    return None if found.rule == PLAIN else f"its steps follow the {config.learners[name].rule.name} rule"


def inner_loop(config: StudyConfig, name: str) -> tuple[object, ...]:
    """Equal for learners that are one network with one inner loop before training: what they are measured by."""
    found = learner(config, name, step_size=1.0)
    alike = replace(found, name="", first_order=False, outer="query", minibatches=1)
    return alike, config.learners[name].step_size, config.learners[name].start


def untrained_start(config: StudyConfig) -> dict[str, str]:
    """For each learner the one whose checkpoint 0 is the untrained network under the same inner loop.

    That is the learner itself, unless it begins from another one; absent where no learner of the study is it.
    """
    at_birth = {_steps_of(config, n): n for n, own in reversed(config.learners.items()) if own.start is None}
    own = {name: name for name, settings in config.learners.items() if settings.start is None}
    begun = {name: at_birth.get(_steps_of(config, name)) for name in config.learners if name not in own}
    return own | {name: start for name, start in begun.items() if start is not None}


def _steps_of(config: StudyConfig, name: str) -> tuple[object, ...]:
    alike, step_size, _ = inner_loop(config, name)
    assert isinstance(alike, Learner)
    return replace(alike, evaluation_steps=None), step_size
