"""Simulated studies with a planted effect for each claim, of any number of seeds at once.

All seeds are drawn together, so that one Dataset of many thousand seeds can be cut into a thousand studies of a few
seeds each: claims reduce every seed to one number before they compare seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from analysis.schema import MEASURED, describe_learners

ALPHA = 0.1
TASK_SPREAD = 0.1  # standard deviation between tasks of every value, relative to it
STEPS = 2
# The quantities that are drawn separately at every point of the inner loop: the curvature along the gradient and along
# rotated gradients, the largest eigenvalue, the Frobenius norm, the curvature of head and of body, and the loss.
VARIED = ("along", "rotated", "top", "frobenius", "head", "body", "loss")


@dataclass(frozen=True)
class Plant:
    """One learner, and how meta-training changes its quantities. A fall by x divides a quantity by e^x.

    rho is the curvature along the gradient g, H the Hessian of the support loss, and alpha the inner step size.

    along: the fall of rho and of |Hg| / |g|.
    elsewhere: the fall of the curvature along rotated gradients, of the largest eigenvalue and of |H|_F.
    part: the fall of rho of the head and of rho of the body.
    growth: how much smaller the fall of rho is at unit filter norm.
    loss: the fall of the loss. In a study that is ``loss_driven``, all curvature falls by twice as much as well.
    level: alpha rho of the untrained network.
    accuracy: the gain in accuracy.
    speed: how many times sooner the gain is reached.
    cosine: the cosine between SHOT's difference of parameters and the expansion of this difference for small steps.
    meta: the change of the alignment, and of the cosine between the full and the first-order meta-gradient.
    The other fields are settings, which ``analysis.schema.describe_learners`` describes: ``without`` is the learner
    without SHOT and penalty, ``shot`` the weight of SHOT, and the others have the same names.
    """

    along: float = 0.0
    elsewhere: float = 0.0
    part: float = 0.0
    growth: float = 0.0
    loss: float = 0.0
    level: float = 1.0
    accuracy: float = 0.2
    speed: float = 1.0
    cosine: float = 0.9
    meta: float = 0.0
    without: str = ""
    shot: float = 0.0
    penalty: float = 0.0
    control: str = ""
    family: str = "maml"
    algorithm: str = "maml"
    first_order: bool = False


def planted_study(
    learners: Mapping[str, Plant],
    *,
    seeds: int = 5,
    tasks: int = 4,
    checkpoints: Sequence[int] = (0, 100),
    evaluation_tasks: int = 1,
    seed_spread: float = 0.1,
    score_spread: float = 0.02,
    loss_driven: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """A study of the given learners, in which every variable that a claim reads has a number.

    seed_spread: the standard deviation between seeds of every change over meta-training, relative to the value.
    score_spread: that of the accuracy, at each checkpoint.
    loss_driven: True if the curvature of every point is proportional to the square of its loss.
    """
    stream = np.random.RandomState(seed)
    shape = (seeds, 1, tasks, STEPS + 1)
    start = {name: _spread(stream, (seeds, 1, 1, 1)) * _spread(stream, shape) for name in VARIED}
    start["meta"] = 0.5 + TASK_SPREAD * stream.randn(seeds, 1, tasks)
    start["score"] = 0.3 + score_spread * stream.randn(seeds, 1)
    parts = [
        _planted(
            plant,
            start,
            stream,
            np.array(checkpoints),
            evaluation_tasks=evaluation_tasks,
            seed_spread=seed_spread,
            score_spread=score_spread,
            loss_driven=loss_driven,
        )
        for plant in learners.values()
    ]
    ds = xr.concat(parts, "learner").assign_coords(
        learner=list(learners), seed=range(seeds), checkpoint=list(checkpoints), task=range(tasks)
    )
    ds = ds.assign_coords(step_i=range(STEPS))
    return describe_learners(
        ds,
        trained={name: plant.control != "untrained" for name, plant in learners.items()},
        without_shot={name: plant.without for name, plant in learners.items() if plant.without and not plant.penalty},
        without_intervention={name: plant.without for name, plant in learners.items()},
        dose={name: plant.shot for name, plant in learners.items()},
        penalty={name: plant.penalty for name, plant in learners.items()},
        control={name: plant.control for name, plant in learners.items()},
        family={name: plant.family for name, plant in learners.items()},
        algorithm={name: plant.algorithm for name, plant in learners.items()},
        first_order={name: plant.first_order for name, plant in learners.items()},
    )


def _planted(
    plant: Plant,
    start: Mapping[str, np.ndarray],
    stream: np.random.RandomState,
    checkpoints: np.ndarray,
    *,
    evaluation_tasks: int,
    seed_spread: float,
    score_spread: float,
    loss_driven: bool,
) -> xr.Dataset:
    """The variables of one learner.

    start: the values of the untrained network, which all learners of a seed share, by the names in ``VARIED`` [seed, 1,
    task, step], and of "meta" [seed, 1, task] and "score" [seed, 1].
    The other arguments are those of ``planted_study``.
    """
    seeds, _, tasks, _ = start["loss"].shape
    progress = np.sqrt(checkpoints / checkpoints[-1])[None, :, None, None]
    # How far the change of each seed is from that of the learner, and the noise of single points after training.
    drift = {name: stream.randn(seeds, 1, 1, 1) * seed_spread for name in (*VARIED, "growth")}
    noise = {name: _spread(stream, (seeds, len(checkpoints), tasks, STEPS + 1), progress > 0) for name in VARIED}

    loss = 1.5 * start["loss"] ** 2 * np.exp(-plant.loss * progress) * noise["loss"]
    scale = (loss / 1.5) ** 2 if loss_driven else np.ones_like(loss)

    def grown(name: str, fall: float, value: float) -> np.ndarray:
        """A curvature [seed, checkpoint, task, step] that begins around ``value`` and falls by ``fall``."""
        change = np.exp(-fall * progress) * (1 + progress * drift[name])
        return scale * value * start[name] * change * noise[name]

    rho = grown("along", plant.along, plant.level / ALPHA)
    at_unit_norm = rho * np.exp(plant.growth * progress) * (1 + progress * drift["growth"] / 2)
    top = grown("top", plant.elsewhere, 30.0)
    gain = plant.accuracy * np.minimum(1.0, plant.speed * checkpoints / checkpoints[-1]) ** 0.5
    later = (checkpoints > 0) * score_spread * stream.randn(seeds, len(checkpoints))
    score = (start["score"] + gain + later)[..., None] + np.zeros(evaluation_tasks)
    meta = start["meta"] + progress[..., 0] * (plant.meta + 0.5 * drift["loss"][..., 0])
    point = {
        "rho": rho,
        "alpha_rho": ALPHA * rho,
        "hg_ratio": 1.4 * rho,
        "alpha_hg_ratio": 1.4 * ALPHA * rho,
        "rho_normalised": 9.0 * at_unit_norm,
        "hg_ratio_normalised": 12.6 * at_unit_norm,
        "rho_rotated": grown("rotated", plant.elsewhere, 0.3),
        "frobenius": grown("frobenius", plant.elsewhere, 50.0),
        "rho_head": grown("head", plant.part, 5.0),
        "rho_body": grown("body", plant.part, 5.0),
        "support_loss": loss,
        "query_loss": 1.1 * loss,
        "grad_norm": np.ones_like(loss),
    }
    data = {name: (("seed", "checkpoint", "task", "inner_step"), value) for name, value in point.items()}
    data["eigenvalue"] = (("seed", "checkpoint", "task", "inner_step", "eigen_index"), top[..., None])
    cosine = plant.cosine + 0.5 * drift["top"][..., 0] + 0.02 * stream.randn(seeds, len(checkpoints), tasks)
    for name, value in {"meta_gradient_cosine": meta, "shot_direction_cosine": cosine, "alignment": meta}.items():
        data[name] = (("seed", "checkpoint", "task"), value)
    data["status"] = (("seed", "checkpoint", "task"), np.full(meta.shape, MEASURED, dtype=np.int8))
    for name, value in {"evaluation_accuracy": score, "evaluation_loss": 2 - score}.items():
        data[name] = (("seed", "checkpoint", "evaluation_task"), value)
    return xr.Dataset(data)


def _spread(stream: np.random.RandomState, shape: Sequence[int], where: np.ndarray | bool = True) -> np.ndarray:
    """Factors of mean 1 that scatter by ``TASK_SPREAD``, and are exactly 1 elsewhere."""
    return 1 + np.where(where, TASK_SPREAD * stream.randn(*shape), 0.0)
