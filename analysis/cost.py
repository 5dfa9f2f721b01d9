"""Estimates the time and the memory of a study before anything is made, so that a slip such as 10**12 tasks is refused.

The estimate is rough, within a factor of about five on a CPU. It is meant to tell a long study from an impossible one.
On a GPU it is that of one process on an H200. It rests on a few measurements there, and no study was compared with it.
"""

import os
from collections import defaultdict
from dataclasses import dataclass
from math import prod

import torch

from analysis.config import StepSizeSearch
from analysis.engines.sharing import trains_together
from analysis.errors import UserError
from analysis.problem import Problem
from analysis.study import Study, StudyLearner

MAX_HOURS = 10_000  # of processor time: more than a year on one core
MAX_OPTION = 10_000  # the largest whole number among the options of a network
MAX_LAYERS = 100  # the same for num_layers, depth and the like; building 10,000 layers of torch takes minutes
FLOPS = 5e9  # operations of one core in a second
LAYER_SECONDS = 5e-5  # the least time of a forward pass, for each parameter tensor of the network
# The same for an H200, by outer steps of MAML with a network of four convolutions of width 64 that compute all tasks at
# once: 166 ms with 4 tasks, where launching the operations takes all of the time, and 307 ms with 64 tasks.
CARD_FLOPS = 3e12
CARD_LAYER_SECONDS = 2e-4
GRADIENT = 3  # the price of a gradient in forward passes: one forward pass, and a backward pass that costs two
SECOND_ORDER = 3  # the factor by which an inner step costs more where the outer gradient is taken through it
PRODUCT = 4  # the price of a Hessian-vector product in forward passes, where the graph of the gradient is kept
POSITION_SHARE = 1 / 16  # share of an image's pixels at which a convolution is computed, as networks shrink images
NUMBERS_A_POINT = 100  # the numbers that are stored for each parameter vector, besides eigenvalues and probes
DISK_BLOCK = 4096  # the smallest space that a file takes on most file systems, in bytes
BYTES_OF_PAGES = 5e6  # of the report, the explorer's page and the figures
UNCOUNTABLE = 10**18  # parameters, of a network that is too large for torch to describe


@dataclass(frozen=True)
class Cost:
    """What a study would take.

    seconds: the processor time of each kind of work, such as "training". num_bytes: the bytes of memory of what is held
        in it, such as "the parameters".
    """

    seconds: dict[str, float]
    num_bytes: dict[str, float]


def refuse_above_limits(study: Study) -> None:
    """Raise UserError where a study would take more than ``MAX_HOURS``, or more memory than this machine has."""
    for name, value in study.config.network.options.items():
        limit = MAX_LAYERS if name.endswith(("layers", "depth")) else MAX_OPTION
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, int) and number > limit:
                raise UserError(
                    f"network.options.{name} holds {number}, which is above {limit}; lower it, or add --yes"
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
    work = _work(study)
    # Roughly six vectors for the parameters, their gradients and Adam's moments, and one for the parameters after each
    # inner step.
    copies = 6 + max(learner.learner.steps for learner in study.learners.values())
    num_bytes = {"the parameters": 4.0 * work.num_params * copies, "the measurements": _stored_bytes(study)}
    return Cost(_seconds(study, work), num_bytes)


def estimate_of_runs(study: Study) -> dict[str, dict[str, float]]:
    """For each learner, the seconds of processor time that training and measuring one of its runs take, roughly.

    The names of the parts are those of ``analysis.times.PARTS``.
    """
    work = _work(study)
    seconds = {name: _seconds_of_run(study, work, name) for name in study.learners}
    return {
        name: {"train": kinds["training"] + kinds["validation"], "measure": kinds["evaluation"] + kinds["curvature"]}
        for name, kinds in seconds.items()
    }


def bytes_on_disk(study: Study) -> float:
    """The space on the disk that a finished study takes, roughly.

    Most of it are small files and folders, which take a whole block each.
    """
    measure, num_params = study.config.measure, study.problem.layout.numel
    num_variables = sum(len(quantity.variables) for quantity in study.quantities)
    # Chunks hold a single task where the tasks of the level "full" do not fill whole blocks (``analysis.measure``).
    blocks = measure.tasks / (measure.block if measure.full_tasks % measure.block == 0 else 1)
    num_bytes = BYTES_OF_PAGES + _stored_bytes(study)
    for name, _ in study.runs_to_measure:
        num_checkpoints = len(study.learners[name].checkpoints)
        # A variable takes its folder, its description and a folder of chunks (3). In that, each checkpoint has a folder
        # (1) with its blocks. A block takes a file and a folder for each further dimension, about 2.3 on average.
        num_files = num_variables * (3 + num_checkpoints * (1 + 2.3 * blocks))
        # Each checkpoint holds the parameters; the state of the outer loop holds them with Adam's two moments.
        num_bytes += num_files * DISK_BLOCK + (num_checkpoints + 3) * 4.0 * num_params
    return num_bytes


def is_on_card(study: Study) -> bool:
    """Whether a study is computed on a GPU, where all tasks of a step or of a measurement are computed at once."""
    return torch.device(study.device).type == "cuda"


def _work(study: Study) -> "_Work":
    """What the processor time of the forward passes of a study's network follows from."""
    input_shape = study.problem.tasks.input_shape
    num_params, num_tensors, has_convolutions = _parameters(study.problem)
    latent_sizes = [learner.learner.latent.size for learner in study.learners.values() if learner.learner.latent]
    # LEO also has an encoder and a decoder between codes and head; this is a rough count of their parameters.
    num_params += 100 * max(latent_sizes, default=0)
    positions = max(prod(input_shape[1:]) * POSITION_SHARE, 1.0) if has_convolutions else 1.0
    return _Work(study, num_params, num_tensors, positions)


@dataclass(frozen=True)
class _Work:
    """The processor time of the work on tasks, which is counted in forward passes.

    num_params, num_tensors: the numbers of parameters and of tensors of them. positions: at how many positions of an
    example every parameter is used.
    """

    study: Study
    num_params: int
    num_tensors: int
    positions: float

    def forward(self, examples_of_a_class: int, *, tasks: int = 1) -> float:
        """The seconds of one forward pass over a set of examples of each of several tasks, which pass together."""
        examples = self.study.config.data.ways * examples_of_a_class * tasks
        flops, layer_seconds = (CARD_FLOPS, CARD_LAYER_SECONDS) if is_on_card(self.study) else (FLOPS, LAYER_SECONDS)
        # At each position of each example, every parameter takes one multiplication and one addition.
        return max(2 * self.num_params * self.positions * examples / flops, self.num_tensors * layer_seconds)

    def in_all(self, examples_of_a_class: int, tasks: int) -> float:
        """The seconds of forward passes over the sets of several tasks: one after the other, or at once on a GPU."""
        if is_on_card(self.study) and tasks:
            return self.forward(examples_of_a_class, tasks=tasks)
        return tasks * self.forward(examples_of_a_class)

    def training(self, learner: StudyLearner, meta_steps: int) -> float:
        """The seconds of a number of meta-iterations of a run, as its share of those of all runs of its unit."""
        data, meta_batch = self.study.config.data, self.study.config.train.meta_batch
        num_runs = 1
        if trains_together(self.study, learner.name):
            num_runs = max(1, len(self.study.config.seeds_of(learner.name)))
        # The tasks of a meta-iteration pass through the network together.
        supports = self.forward(data.shots, tasks=meta_batch * num_runs)
        queries = self.forward(data.queries, tasks=meta_batch * num_runs)
        inner = learner.learner.steps
        if learner.settings.shot:
            # A loop of SHOT without a number of steps of its own is the inner loop itself, which is counted already.
            inner += (learner.settings.shot.reference_steps or 0) + (learner.settings.shot.target_steps or 0)
        order = 1 if learner.learner.first_order else SECOND_ORDER
        return meta_steps * GRADIENT * (inner * supports * order + queries) / num_runs

    def evaluation(self, learner: StudyLearner, tasks: int, queries: int) -> float:
        """The seconds of adapting to a number of tasks, each followed by a forward pass over ``queries`` a class."""
        steps = learner.learner.evaluating().steps
        return GRADIENT * steps * self.in_all(self.study.config.data.shots, tasks) + self.in_all(queries, tasks)


def _seconds_of_run(study: Study, work: _Work, name: str) -> dict[str, float]:
    """The processor time of each kind of work in one run of a learner."""
    config, measure, learner = study.config, study.config.measure, study.learners[name]
    num_checkpoints = len(learner.checkpoints)
    curvature = 0.0
    # The full measurements are those of the first ``full_tasks`` tasks at the first and the last checkpoint.
    for level, checkpoints, tasks in (
        (measure.full, 2, measure.full_tasks),
        (measure.light, num_checkpoints, measure.tasks),
    ):
        products = min(level.max_matvecs, work.num_params) + level.probes
        num_losses = 1 + len(measure.losses)  # the support loss and the further ones
        points = work.in_all(config.data.shots, tasks * (config.inner.steps + 1))
        curvature += checkpoints * num_losses * products * PRODUCT * points
    return {
        "training": work.training(learner, learner.checkpoints[-1]),
        "validation": num_checkpoints * work.evaluation(learner, config.train.validation_tasks, config.data.queries),
        "evaluation": num_checkpoints * work.evaluation(learner, measure.evaluation_tasks, config.data.test_queries),
        "curvature": curvature,
    }


def _seconds(study: Study, work: _Work) -> dict[str, float]:
    """The processor time of each kind of work."""
    config = study.config
    seconds: defaultdict[str, float] = defaultdict(float)
    for name, _ in study.runs_to_measure:
        for kind, time in _seconds_of_run(study, work, name).items():
            seconds[kind] += time
    search = config.inner.step_size
    if isinstance(search, StepSizeSearch):
        learner = study.learners[search.learner]
        validation = work.evaluation(learner, search.validation_tasks, config.data.queries)
        seconds_of_candidate = work.training(learner, search.meta_steps) + validation
        seconds["the search for the step size"] = len(search.candidates) * seconds_of_candidate
    return dict(seconds)


def _stored_bytes(study: Study) -> float:
    """The bytes of all measurements, which drawing and judging read into memory."""
    measure, num_points = study.config.measure, study.config.inner.steps + 1
    numbers = NUMBERS_A_POINT + measure.full.eigenvalues + measure.full.probes
    at_a_checkpoint = measure.tasks * num_points * numbers + 2 * measure.evaluation_tasks  # 2: loss and accuracy
    # 8 bytes for each number
    return 8.0 * at_a_checkpoint * sum(len(study.learners[name].checkpoints) for name, _ in study.runs_to_measure)


def _parameters(problem: Problem) -> tuple[int, int, bool]:
    """The numbers of parameters and of parameter tensors of the network, and whether it has convolutions.

    The network is built on torch's meta device, where tensors have shapes but no memory.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            shapes = [parameter.shape for parameter in problem.network().parameters()]
    except (RuntimeError, ValueError, OverflowError, TypeError) as e:
        # A network of the user's own may not work on the meta device; later checks build it as it is and report errors.
        return (UNCOUNTABLE if "overflow" in str(e).lower() else 0), 1, False
    has_convolutions = any(len(shape) == 4 for shape in shapes)  # kernels of images have four axes
    return sum(map(prod, shapes)), len(shapes), has_convolutions


def _memory() -> float:
    """The bytes of memory of this machine; infinite where the system does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return float("inf")
