"""Sentences about the learners of a study for its report."""

from analysis.config.base import listed
from analysis.study import Study, StudyLearner
from hessian_tools.inner.learners import ALGORITHMS
from hessian_tools.inner.shot import Shot

OPTIMISERS = {"adam": "Adam", "sgd": "SGD"}


def described(study: Study, name: str) -> str:
    """One learner with all the settings that are its own."""
    one = study.learners[name]
    algorithm = ALGORITHMS[one.settings.algorithm]
    order = "first-order " if one.learner.first_order else "second-order "
    title = (order if "first_order" in algorithm.options else "") + algorithm.title
    penalty = f" + {_shot(one.settings.shot)}" if one.settings.shot else ""
    return ", ".join([title + penalty, *_inner_loop(one), *_outer_loop(study, one)])


def _inner_loop(one: StudyLearner) -> list[str]:
    """The particulars of a learner's inner loop."""
    settings, latent, particulars = one.settings, one.learner.latent, []
    if latent is not None:
        particulars.append(
            f"{one.learner.steps} of the steps on codes of {latent.size}, then {latent.fine_tuning_steps} on weights"
        )
    if settings.moves:
        particulars.append(f"moving {listed(settings.moves)}")
    if settings.rule.name != "plain":
        particulars.append(f"{settings.rule.name} steps")
    if settings.logarithmic:
        particulars.append("step sizes by their logarithm")
    if settings.minibatches > 1:
        particulars.append(f"{settings.minibatches} minibatches")
    if settings.step_size:
        particulars.append(f"alpha = {settings.step_size:g}")
    if settings.evaluation_steps:
        particulars.append(f"accuracy after {settings.evaluation_steps} steps")
    return particulars


def _outer_loop(study: Study, one: StudyLearner) -> list[str]:
    """The particulars of a learner's training."""
    settings, outer, particulars = one.settings, study.config.train, []
    if settings.pretraining:
        particulars.append(f"SHOT's distance alone (SHOT_p), projector {settings.pretraining.projector}")
    if settings.start:
        particulars.append(f"from the best checkpoint of {settings.start}")
    if settings.trained and (one.optimiser, one.learning_rate) != (outer.optimiser, outer.learning_rate):
        particulars.append(f"{OPTIMISERS[one.optimiser]} {one.learning_rate:g}")
    return particulars


def _shot(shot: Shot) -> str:
    detached = "detached" if shot.detach_reference else "not detached"
    schedule = "" if shot.schedule == "constant" else f", {shot.schedule} over {shot.schedule_steps} meta-iterations"
    return (
        f"SHOT (weight {shot.weight:g}{schedule}, {shot.distance}, T = {shot.target_steps or 'K'},"
        f" R = {shot.reference_steps or 'K'}, reference {detached})"
    )


def trained_on_classes(study: Study) -> list[str]:
    """A line for each supervised control, by which claims on meta-training ask whether any training does the same."""
    return [
        f"{name} is a control: trained on all classes at once, not meta-trained. Its verdicts say what ordinary"
        " training does to the same quantities."
        for name, one in study.learners.items()
        if one.settings.algorithm == "supervised"
    ]


def without_alpha(study: Study) -> list[str]:
    """A line for each learner whose steps are not alpha times the gradient."""
    return [
        f"{name} has no alpha rho: {one.learner.why_no_alpha}. What is scaled by alpha does not exist for it; verdicts"
        " judge rho instead."
        for name, one in study.learners.items()
        if one.learner.why_no_alpha
    ]


def partly_moving(study: Study) -> list[str]:
    """One line for the learners whose inner loop moves a part of the network."""
    names = [name for name, one in study.learners.items() if one.learner.moves or one.learner.latent is not None]
    if not names:
        return []
    return [
        f"The inner loop of {listed(names)} moves a part of the network: gradients and rho are by that part,"
        " |Hg|, eigenvalues, traces and random directions are of the whole network, as for the others; 2 / alpha"
        " bounds stable steps only of a loop that moves the whole."
    ]
