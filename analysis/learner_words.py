"""What the learners of a study are, in words for its report."""

from analysis import algorithms
from analysis.config import LearnerConfig, ShotConfig, StudyConfig
from analysis.config.base import listed

NAMES = {
    "maml": "MAML",
    "anil": "ANIL",
    "boil": "BOIL",
    "meta-sgd": "Meta-SGD",
    "reptile": "Reptile",
    "leo": "LEO",
    "supervised": "cross-entropy on all training classes, then the same inner loop",
    "untrained": "the initial network, adapted by the same inner loop",
}
OPTIMISERS = {"adam": "Adam", "sgd": "SGD"}
ORDERED = ("maml", "anil", "boil", "meta-sgd", "leo")


def described(config: StudyConfig, name: str) -> str:
    """One learner, with all that is its own."""
    own = config.learners[name]
    order = "" if own.algorithm not in ORDERED else "first-order " if own.first_order else "second-order "
    penalty = f" + {_shot(own.shot)}" if own.shot else ""
    return ", ".join([f"{order}{NAMES[own.algorithm]}{penalty}", *_inner(config, own), *_outer(config, name, own)])


def trained_on_classes(config: StudyConfig) -> list[str]:
    """A line for each supervised control: claims on meta-training ask of it whether any training does the same."""
    return [
        f"{name} is a control: trained on all classes at once, not meta-trained. Its verdicts say what ordinary"
        " training does to the same quantities."
        for name, own in config.learners.items()
        if own.algorithm == "supervised"
    ]


def without_alpha(config: StudyConfig) -> list[str]:
    """A line for each learner whose steps are not alpha times the gradient."""
    why = {name: algorithms.why_no_alpha(config, name) for name in config.learners}
    return [
        f"{name} has no alpha rho: {words}. What is scaled by alpha does not exist for it; verdicts judge rho instead."
        for name, words in why.items()
        if words
    ]


def partly_moving(config: StudyConfig) -> list[str]:
    """One line for the learners whose inner loop moves a part of the network."""
    names = [name for name in config.learners if _moves_a_part(config, name)]
    if not names:
        return []
    return [
        f"The inner loop of {listed(names)} moves a part of the network: gradients and rho are by that part,"
        " |Hg|, eigenvalues, traces and random directions are of the whole network, as for the others; 2 / alpha"
        " bounds stable steps only of a loop that moves the whole."
    ]


def _moves_a_part(config: StudyConfig, name: str) -> bool:
    found = algorithms.learner(config, name, step_size=1.0)
    return bool(found.moves) or found.latent is not None


def _inner(config: StudyConfig, own: LearnerConfig) -> list[str]:
    """What is particular to its inner loop."""
    parts = []
    if own.algorithm == "leo":
        latent = algorithms.latent(config, own)
        tuned = latent.fine_tuning_steps
        parts.append(f"{config.inner.steps - tuned} of the steps on codes of {latent.size}, then {tuned} on weights")
    if own.moves:
        parts.append(f"moving {listed(own.moves)}")
    if own.rule.name != "plain":
        parts.append(f"{own.rule.name} steps")
    if own.logarithmic:
        parts.append("step sizes by their logarithm")
    if own.minibatches > 1:
        parts.append(f"{own.minibatches} minibatches")
    if own.step_size:
        parts.append(f"alpha = {own.step_size:g}")
    if own.evaluation_steps:
        parts.append(f"accuracy after {own.evaluation_steps} steps")
    return parts


def _outer(config: StudyConfig, name: str, own: LearnerConfig) -> list[str]:
    """What is particular to its training."""
    parts = []
    if own.pretraining:
        parts.append(f"SHOT's distance alone (SHOT_p), projector {own.pretraining.projector}")
    if own.start:
        parts.append(f"from the best checkpoint of {own.start}")
    optimiser, rate = algorithms.optimiser(config, name), algorithms.learning_rate(config, name)
    if own.trained and (optimiser, rate) != (config.train.optimiser, config.train.learning_rate):
        parts.append(f"{OPTIMISERS[optimiser]} {rate:g}")
    return parts


def _shot(shot: ShotConfig) -> str:
    detached = "detached" if shot.detach_reference else "not detached"
    schedule = "" if shot.schedule == "constant" else f", {shot.schedule} over {shot.schedule_steps} meta-iterations"
    return (
        f"SHOT (weight {shot.weight:g}{schedule}, {shot.distance}, T = {shot.target_steps or 'K'},"
        f" R = {shot.reference_steps or 'K'}, reference {detached})"
    )
