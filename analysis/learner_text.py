"""Sentences about the learners of a study for its report."""

from analysis.config.base import listed
from analysis.study import Study, StudyLearner
from hessian_tools.inner.learners import ALGORITHMS
from hessian_tools.inner.shot import Shot

OPTIMISERS = {"adam": "Adam", "sgd": "SGD"}


def learner_description(study: Study, name: str) -> str:
    """One learner's algorithm as a report prints it, with the settings that differ from the defaults of the study."""
    learner = study.learners[name]
    algorithm = ALGORITHMS[learner.settings.algorithm]
    order = "first-order " if learner.learner.first_order else "second-order "
    title = (order if "first_order" in algorithm.options else "") + algorithm.title
    shot, penalty = learner.settings.shot, learner.settings.penalty
    penalties = f" + {_shot(shot)}" if shot else ""
    penalties += f" + curvature penalty (weight {penalty.weight:g})" if penalty else ""
    return ", ".join([title + penalties, *_inner_loop(learner), *_outer_loop(study, learner)])


def _inner_loop(learner: StudyLearner) -> list[str]:
    """The settings in which a learner's inner loop differs from the default, in words."""
    settings, latent, particulars = learner.settings, learner.learner.latent, []
    if latent is not None:
        particulars.append(
            f"{learner.learner.steps} of the steps on codes of {latent.size},"
            f" then {latent.fine_tuning_steps} on weights"
        )
    if settings.moves:
        particulars.append(f"moving {listed(settings.moves)}")
    if settings.rule.name != "plain":
        particulars.append(f"{settings.rule.name} steps")
    if settings.logarithmic:
        particulars.append("learning the logarithms of the step sizes")
    if settings.minibatches > 1:
        particulars.append(f"{settings.minibatches} minibatches")
    if settings.step_size:
        particulars.append(f"alpha = {settings.step_size:g}")
    if settings.evaluation_steps:
        particulars.append(f"accuracy after {settings.evaluation_steps} steps")
    return particulars


def _outer_loop(study: Study, learner: StudyLearner) -> list[str]:
    """The settings in which a learner's training differs from the outer loop of the study, in words."""
    settings, train_settings, particulars = learner.settings, study.config.train, []
    if settings.pretraining:
        particulars.append(f"SHOT's distance alone (SHOT_p), projector {settings.pretraining.projector}")
    if settings.start:
        particulars.append(f"from the best checkpoint of {settings.start}")
    if settings.shuffle_labels:
        particulars.append("trained with shuffled labels")
    outer_loop = (learner.optimiser, learner.learning_rate)
    if settings.trained and outer_loop != (train_settings.optimiser, train_settings.learning_rate):
        particulars.append(f"{OPTIMISERS[learner.optimiser]} {learner.learning_rate:g}")
    return particulars


def _shot(shot: Shot) -> str:
    """The settings of SHOT, the penalty on the distance between the ends of two inner loops, in words.

    The target loop takes T large steps and the reference loop R small ones; K is the learner's own number of steps.
    """
    detached = "detached" if shot.detach_reference else "not detached"
    schedule = "" if shot.schedule == "constant" else f", {shot.schedule} over {shot.schedule_steps} meta-iterations"
    return (
        f"SHOT (weight {shot.weight:g}{schedule}, {shot.distance}, T = {shot.target_steps or 'K'},"
        f" R = {shot.reference_steps or 'K'}, reference {detached})"
    )


def notes_on_learners(study: Study) -> list[str]:
    """What a reader must not overlook about learners that are unlike the others, one line each."""
    loops = {name: learner.learner for name, learner in study.learners.items()}
    # A supervised control shows whether ordinary training has the effects of meta-training.
    notes = [
        f"{name} is a control: it was trained on all classes at once, not meta-trained. Its verdicts say what ordinary"
        " training does to the same quantities."
        for name, learner in study.learners.items()
        if learner.settings.algorithm == "supervised"
    ]
    notes += [
        f"{name} has no alpha rho: {loop.why_no_alpha}. Quantities scaled by alpha do not exist for"
        " it; verdicts judge rho instead."
        for name, loop in loops.items()
        if loop.why_no_alpha
    ]
    if partly_adapted := [name for name, loop in loops.items() if loop.moves or loop.latent is not None]:
        notes.append(
            f"The inner loop of {listed(partly_adapted)} moves only a part of the network. Gradients and rho are those"
            " of that part; |Hg|, eigenvalues, traces and random directions are those of the whole network, as for the"
            " other learners. Eigenvalues below 2 / alpha mean stable steps only for an inner loop that moves the whole"
            " network."
        )
    return notes
