"""Estimates the time and the memory of a study before anything is made, so that a slip such as 10**12 tasks is refused.

The estimate is rough, within a factor of about five on a CPU. It is made to tell a long study from an impossible one.
"""

import os
from collections import defaultdict
from dataclasses import dataclass
from math import prod

import torch

from analysis.config import StepSizeSearch
from analysis.errors import UserError
from analysis.study import Problem, Study, StudyLearner

MAX_HOURS = 10_000  # of processor time: more than a year on one core
MAX_OPTION = 10_000  # the largest whole number among the options of a network; each could be a number of layers
FLOPS = 5e9  # operations of one core in a second
LAYER_SECONDS = 5e-5  # the least time of a forward pass, for each parameter tensor of the network
POSITION_SHARE = 1 / 16  # of an image's pixels: where a mean convolution is computed, because networks shrink images
NUMBERS_A_POINT = 100  # that are stored, besides eigenvalues and probes
UNCOUNTABLE = 10**18  # parameters, of a network that is too large for torch to describe


@dataclass(frozen=True)
class Cost:
    """What a study would take.

    seconds: the processor time of each kind of work. num_bytes: the memory of each kind of thing.
    """

    seconds: dict[str, float]
    num_bytes: dict[str, float]


def refuse_above_limits(study: Study) -> None:
    """Raise UserError where a study would take more than ``MAX_HOURS``, or more memory than this machine has."""
    for name, value in study.config.network.options.items():
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, int) and number > MAX_OPTION:
                raise UserError(
                    f"network.options.{name} holds {number}, which is above {MAX_OPTION}; lower it, or add --yes"
                    " (yes=True in Python)"
                )
    cost = estimate(study)
    hours, gigabytes = sum(cost.seconds.values()) / 3600, sum(cost.num_bytes.values()) / 1e9
    memory = _memory() / 1e9
    if hours <= MAX_HOURS and gigabytes <= memory:
        return
    raise UserError(
        f"the study would take about {hours:.2g} hours of processor time, most of it for"
        f" {max(cost.seconds, key=cost.seconds.__getitem__)}, and {gigabytes:.2g} GB of memory, most of it for"
        f" {max(cost.num_bytes, key=cost.num_bytes.__getitem__)};\nthe limits are {MAX_HOURS} hours and the"
        f" {memory:.2g} GB of this machine. Lower its numbers, or add --yes (yes=True in Python)"
    )


def estimate(study: Study) -> Cost:
    """The processor time and the memory that a study would take, roughly."""
    config, problem = study.config, study.problem
    num_params, num_tensors, has_convolutions = _parameters(problem)
    latent_sizes = [learner.learner.latent.size for learner in study.learners.values() if learner.learner.latent]
    num_params += 100 * max(latent_sizes, default=0)  # LEO decodes a head from its codes
    positions = max(prod(problem.tasks.input_shape[1:]) * POSITION_SHARE, 1.0) if has_convolutions else 1.0

    def forward(examples: int) -> float:
        return max(2 * num_params * positions * examples / FLOPS, num_tensors * LAYER_SECONDS)

    ways = config.data.ways
    support, query = forward(ways * config.data.shots), forward(ways * config.data.queries)
    held_out = forward(ways * config.data.test_queries)

    def outer_steps(learner: StudyLearner, number: int) -> float:
        inner = learner.learner.steps
        if learner.settings.shot:
            inner += (learner.settings.shot.reference_steps or 0) + (learner.settings.shot.target_steps or 0)
        of_a_task = 3 * inner * support * (1 if learner.learner.first_order else 3) + 3 * query
        return number * config.train.meta_batch * of_a_task if learner.settings.trained else 0.0

    def adapted(learner: StudyLearner, tasks: int, queries: float) -> float:
        return tasks * (3 * learner.learner.evaluating().steps * support + queries)

    seconds: defaultdict[str, float] = defaultdict(float)
    stored = 0.0
    measure, num_points = config.measure, config.inner.steps + 1
    for name, _ in study.runs_to_measure:
        learner = study.learners[name]
        num_checkpoints = len(learner.checkpoints)
        seconds["training"] += outer_steps(learner, learner.checkpoints[-1])
        seconds["validation"] += num_checkpoints * adapted(learner, config.train.validation_tasks, query)
        seconds["evaluation"] += num_checkpoints * adapted(learner, measure.evaluation_tasks, held_out)
        for level, number in (
            (measure.full, 2 * measure.full_tasks),
            (measure.light, num_checkpoints * measure.tasks),
        ):
            products = min(level.max_matvecs, num_params) + level.probes
            seconds["curvature"] += number * num_points * (1 + len(measure.losses)) * products * 4 * support
        numbers = NUMBERS_A_POINT + measure.full.eigenvalues + measure.full.probes
        stored += 8 * num_checkpoints * (measure.tasks * num_points * numbers + 2 * measure.evaluation_tasks)
    search = config.inner.step_size
    if isinstance(search, StepSizeSearch):
        learner = study.learners[search.learner]
        of_one = outer_steps(learner, search.meta_steps) + adapted(learner, search.validation_tasks, query)
        seconds["the search for the step size"] += len(search.candidates) * of_one
    # The parameters, their gradient and Adam's moments, and the parameters after each inner step.
    steps = max(learner.learner.steps for learner in study.learners.values())
    return Cost(dict(seconds), {"the parameters": 4.0 * num_params * (6 + steps), "the measurements": stored})


def _parameters(problem: Problem) -> tuple[int, int, bool]:
    """The numbers of parameters and of parameter tensors of the network, and whether it has convolutions.

    The network is built on torch's meta device, where tensors have shapes but no memory.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            shapes = [parameter.shape for parameter in problem.network().parameters()]
    except (RuntimeError, ValueError, OverflowError, TypeError) as e:
        # A network of the user's own may not work on the meta device; it is then built as it is, and errors are told.
        return (UNCOUNTABLE if "overflow" in str(e).lower() else 0), 1, False
    return sum(map(prod, shapes)), len(shapes), any(len(shape) == 4 for shape in shapes)


def _memory() -> float:
    """The bytes of memory of this machine; infinite where the system does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return float("inf")
