"""Simulated studies with known answers: every variable is filled, and the true effects are stored with them.

Claims, plots and reports read a study's Dataset and never train anything, so that their tests can use these studies.
``truth(ds)`` returns the true effects; the simulated numbers scatter around them by seed, task and point.

Rho is the curvature of the support loss along its gradient, and alpha rho its product with the inner step size alpha.
The alignment A of a task's K inner gradients is 0 if they are orthogonal and 1 if they are equal.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import xarray as xr

from analysis.quantities import QUANTITIES, STANDARD
from analysis.schema import LEVEL_MEANINGS, STATUS_MEANINGS, Sizes, blank_run, describe_learners, stack_runs
from hessian_tools.rng import numpy_stream

LAYERS = ("features.0.weight", "features.0.bias", "head.weight", "head.bias")
# Eigenvalues relative to the largest one. Some are negative, because the Hessian of a task's loss is indefinite.
SPECTRUM = np.array([1.0, -0.49, -0.46, 0.29, 0.19])
LEVELS = (1.0, 0.6)  # alpha rho of the untrained network at step 0, and at later steps
ALIGNMENT = 0.25  # the alignment A of the untrained network's inner gradients
LOSS, LOSS_SD = 1.6, 0.15  # support loss before adaptation; standard deviation of its logarithm between tasks
FULL_TASKS = 4  # the number of tasks with all eigenvalues and trace samples (the level "full"); the rest are "light"


@dataclass(frozen=True)
class Effect:
    """How a learner differs from the untrained network at the last checkpoint."""

    first: float = 0.0  # change of alpha rho at step 0
    later: float = 0.0  # change of alpha rho, averaged over steps 1..K
    alignment: float = 0.0  # change of the alignment A of the inner gradients


DEFAULT_EFFECTS: Mapping[str, Effect] = {
    "maml": Effect(first=-0.45, later=-0.2, alignment=0.2),
    "maml-shot": Effect(first=-0.6, later=-0.35, alignment=0.4),
    "fomaml": Effect(first=-0.65, later=-0.3, alignment=0.15),
}


@dataclass(frozen=True)
class _Options:
    """The arguments of ``simulated_study`` that its helpers need."""

    step_size: float
    seed_spread: float
    task_spread: float
    loss_driven: bool
    growing_weights: bool
    seed: int


def simulated_study(
    *,
    learners: Sequence[str] = ("untrained", "maml", "maml-shot", "fomaml"),
    seeds: Sequence[int] = (0, 1, 2),
    tasks: int = 16,
    checkpoints: Sequence[int] = (0, 30, 100, 300),
    steps: int = 3,
    step_size: float = 0.1,
    effects: Mapping[str, Effect] = DEFAULT_EFFECTS,
    seed_spread: float = 0.03,
    task_spread: float = 0.05,
    loss_driven: bool = False,
    growing_weights: bool = False,
    untrained: Collection[str] = ("untrained",),
    without_shot: Mapping[str, str] | None = None,
    diverged: Collection[tuple[str, int, int]] = (),
    evaluation_tasks: int = 40,
    seed: int = 0,
) -> xr.Dataset:
    """Make a study with the given true effects, which is reproducible from ``seed``.

    The change in each seed is the true effect plus ``seed_spread`` times a standard normal number, and points scatter
    around this change by ``task_spread``. At checkpoint 0, all learners of a seed are one network with equal numbers.

    effects: the true effect of each learner; a learner that is not listed has none.
    untrained: the names of the controls, which have checkpoint 0 only.
    without_shot: for each learner with SHOT, the learner without SHOT that it is compared with. By default, "x-shot" is
        compared with "x".
    loss_driven: if True, alpha rho is the squared support loss, and training changes it only through the loss, so that
        the effect at equal loss is 0. If False, alpha rho does not depend on the loss.
    growing_weights: if True, training changes alpha rho only through the norm of the weights, so that rho at unit
        filter norm does not change. If False, the norms do not change, and rho at unit filter norm changes like alpha
        rho.
    diverged: triples (learner, seed, task) whose inner loop diverges at the last checkpoint. They have no numbers there
        after inner step 0.
    """
    options = _Options(step_size, seed_spread, task_spread, loss_driven, growing_weights, seed)
    runs = {}
    for name in learners:
        saved = tuple(checkpoints)[:1] if name in untrained else tuple(checkpoints)
        sizes = Sizes(
            checkpoints=saved,
            tasks=tuple(range(tasks)),
            steps=steps,
            layers=LAYERS,
            eigenvalues=len(SPECTRUM),
            probes=8,
            evaluation_tasks=evaluation_tasks,
        )
        for run_seed in seeds:
            ds = _run(sizes, name, run_seed, max(checkpoints), effects.get(name, Effect()), options)
            lost = [task for learner, s, task in diverged if (learner, s) == (name, run_seed)]
            runs[name, run_seed] = _diverge(ds, lost) if lost else ds
    if without_shot is None:
        without_shot = {name: name.removesuffix("-shot") for name in learners if name.endswith("-shot")}
    study = describe_learners(
        stack_runs(runs, tuple(learners)),
        trained={name: name not in untrained for name in learners},
        without_shot=without_shot,
    )
    true = {name: asdict(_raw_effect(effects.get(name, Effect()), steps, loss_driven)) for name in learners}
    levels = {"first": LEVELS[0], "later": LEVELS[1], "alignment": ALIGNMENT}
    study.attrs["truth"] = json.dumps({"loss_driven": loss_driven, "untrained": levels, "effects": true})
    return study


def truth(ds: xr.Dataset) -> dict:
    """The true values: ``effects[learner]`` (an ``Effect`` as a dict), ``untrained`` (its levels), ``loss_driven``."""
    return json.loads(ds.attrs["truth"])


def _raw_effect(effect: Effect, steps: int, loss_driven: bool) -> Effect:
    """The expected change of alpha rho before any correction for the loss or the norm of the weights.

    It is the given effect. In a loss-driven study it follows from the fall of the loss (the mean of a log-normal).
    """
    if not loss_driven:
        return effect
    level = LEVELS[0] * np.exp(-0.5 * np.arange(steps + 1) + 2 * LOSS_SD**2)  # mean of (loss / LOSS)^2
    relative = (effect.first / LEVELS[0], effect.later / LEVELS[1])
    return Effect(float(level[0] * relative[0]), float(level[1:].mean() * relative[1]), effect.alignment)


def _run(sizes: Sizes, name: str, run_seed: int, last_checkpoint: int, effect: Effect, options: _Options) -> xr.Dataset:
    """One run with all of its variables.

    Loss, alpha rho and alignment are drawn first, and then the other variables are made to agree with them.
    """
    progress = np.sqrt(np.array(sizes.checkpoints) / max(last_checkpoint, 1))
    loss, alpha_rho, alignment = _core(sizes, name, run_seed, progress, effect, options)
    at_unit_norm, growth = _at_unit_norm(alpha_rho, progress, effect, options)
    ds = blank_run(sizes, [variable for name in STANDARD for variable in QUANTITIES[name].variables])
    ds["step_size"][()], ds["num_params"][()] = options.step_size, 1761
    # The stream does not depend on the learner's name, because checkpoint 0 has to be equal for all learners.
    noise = numpy_stream(options.seed, "rest", run_seed)
    for index in range(len(sizes.checkpoints)):
        one = ds.isel(checkpoint=index)  # a view, so that writing to it fills ds
        _fill_trajectory(one, loss[index], alignment[index], options.step_size, noise)
        full_here = index in (0, len(progress) - 1)
        _fill_curvature(one, alpha_rho[index], options.step_size, noise, full_here=full_here)
        # The simulated filters have norm 3, and scaling them to norm 1 multiplies rho by the square of that.
        one["rho_normalised"][:] = 9.0 * at_unit_norm[index] / options.step_size
        for norm in ("theta_norm", "layer_norm"):
            one[norm][:] *= growth[index]
        shape = one["evaluation_loss"].shape
        one["evaluation_accuracy"][:] = np.clip(0.42 + 0.12 * progress[index] + 0.09 * noise.randn(*shape), 0, 1)
        one["evaluation_loss"][:] = np.exp(0.35 - 0.2 * progress[index] + 0.1 * noise.randn(*shape))
        one["status"][:], one["done"][:], one["evaluation_done"][()] = STATUS_MEANINGS.index("measured"), 1, 1
    return ds


def _core(
    sizes: Sizes, name: str, run_seed: int, progress: np.ndarray, effect: Effect, options: _Options
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the support loss and alpha rho [checkpoint, task, step], and the alignment [checkpoint, task], of one run.

    progress: how much of the change by training is there at each checkpoint, from 0 at checkpoint 0 to 1 at the last.
    """
    step = np.arange(sizes.steps + 1)
    shape = (len(sizes.tasks), len(step))
    start = numpy_stream(options.seed, "start", run_seed)  # for the untrained network, which the seed's learners share
    seed_level, task_level = 0.05 * start.randn(), 0.1 * start.randn(shape[0], 1)
    log_loss = np.log(LOSS) - 0.25 * step + LOSS_SD * start.randn(*shape)
    untrained = np.where(step == 0, *LEVELS) + seed_level + task_level + options.task_spread * start.randn(*shape)
    aligned = ALIGNMENT + options.task_spread * start.randn(shape[0])

    drift = numpy_stream(options.seed, "drift", name, run_seed).randn(3) * options.seed_spread
    change = np.where(step == 0, effect.first, effect.later)
    seed_drift = np.where(step == 0, drift[0], drift[1])
    # Noise [checkpoint, task, step, 3]; the last axis is for the loss, alpha rho and the alignment.
    draws = numpy_stream(options.seed, "noise", name, run_seed).randn(len(progress), *shape, 3)
    draws = draws * (progress > 0)[:, None, None, None]  # no noise at checkpoint 0, where the learners are one network
    gain = progress[:, None, None]
    shift = 0.5 * np.log1p(change / np.where(step == 0, *LEVELS)) if options.loss_driven else -0.03
    loss = np.exp(log_loss + gain * shift + 0.02 * draws[..., 0])
    if options.loss_driven:
        alpha_rho = LEVELS[0] * (loss / LOSS) ** 2 + gain * seed_drift
    else:
        alpha_rho = untrained + gain * (change + seed_drift)
    alpha_rho = alpha_rho + options.task_spread * draws[..., 1]
    alignment = aligned + progress[:, None] * (effect.alignment + drift[2]) + options.task_spread * draws[..., 0, 2]
    return loss, alpha_rho, alignment


def _at_unit_norm(
    alpha_rho: np.ndarray, progress: np.ndarray, effect: Effect, options: _Options
) -> tuple[np.ndarray, np.ndarray]:
    """Alpha rho as it would be if no weight had grown [checkpoint, task, step], and the growth of norms [checkpoint].

    The growth is the factor by which training has multiplied the norms of the weights.
    """
    if not options.growing_weights:
        return alpha_rho, np.ones_like(progress)
    change = np.where(np.arange(alpha_rho.shape[-1]) == 0, effect.first, effect.later)
    growth = np.sqrt(LEVELS[0] / (LEVELS[0] + progress * effect.first))
    return alpha_rho - progress[:, None, None] * change, growth


def _fill_trajectory(
    ds: xr.Dataset, loss: np.ndarray, alignment: np.ndarray, step_size: float, noise: np.random.RandomState
) -> None:
    """Fill in losses, norms, and a Gram matrix of the inner gradients that has the given alignment [task].

    ds: one checkpoint of a run.
    """
    steps = ds.sizes["step_i"]
    norms = 2.0 * np.exp(-0.15 * np.arange(steps + 1) + 0.1 * noise.randn(*loss.shape))
    square, total = (norms[:, :-1] ** 2).sum(-1), norms[:, :-1].sum(-1) ** 2
    # All pairs of gradients have one cosine c. With norms n, A (K - 1) sum n^2 = c ((sum n)^2 - sum n^2).
    if steps > 1:
        cosine = np.clip(alignment * (steps - 1) * square / (total - square), -0.9 / (steps - 1), 1.0)
        ds["alignment"][:] = cosine * (total - square) / square / (steps - 1)
    else:
        cosine = np.zeros(len(loss))
    gram = norms[:, :-1, None] * norms[:, None, :-1]
    gram = gram * np.where(np.eye(steps, dtype=bool), 1.0, cosine[:, None, None])
    total_norm = np.sqrt(gram.sum((1, 2)))
    ds["gram"][:] = gram
    ds["grad_norm"][:] = norms
    ds["cos_displacement"][:, :-1] = gram.sum(-1) / norms[:, :-1] / total_norm[:, None]
    for k in range(steps + 1):
        ds["displacement"][:, k] = step_size * np.sqrt(gram[:, :k, :k].sum((1, 2)))
    ds["theta_norm"][:] = 12.0 + 0.01 * ds["displacement"].values
    fractions = np.array([0.8, 0.1, 0.58, 0.11])  # the norm of each layer as a fraction of the whole norm
    ds["layer_norm"][:] = ds["theta_norm"].values[..., None] * fractions
    ds["support_loss"][:] = loss
    ds["query_loss"][:] = loss * np.exp(0.1 + 0.05 * np.abs(noise.randn(*loss.shape)))
    ds["support_accuracy"][:] = np.clip(1.1 - 0.5 * loss, 0.05, 1.0)
    ds["query_accuracy"][:] = np.clip(1.0 - 0.45 * ds["query_loss"].values, 0.05, 1.0)


def _fill_curvature(
    ds: xr.Dataset, alpha_rho: np.ndarray, step_size: float, noise: np.random.RandomState, *, full_here: bool
) -> None:
    """Fill in everything about the Hessian, from alpha rho [task, step].

    full_here: if True, the first ``FULL_TASKS`` tasks of this checkpoint have all eigenvalues and trace samples; if
        False, no task has them.
    """
    rho = alpha_rho / step_size
    for name, value in {"rho": rho, "alpha_rho": alpha_rho, "hg_ratio": np.abs(rho) * 1.4 + 0.5}.items():
        ds[name][:] = value
        ds[f"{name}_error"][:] = 1e-5 * np.abs(value) + 1e-7
    ds["rho_random"][:] = 0.02 + 0.01 * noise.randn(*rho.shape)
    ds["rho_random_stderr"][:] = 0.01
    top = 3.0 * np.abs(rho) + 5.0
    full = (np.arange(len(rho)) < FULL_TASKS) & full_here
    ds["level"][:] = np.where(full, LEVEL_MEANINGS.index("full"), LEVEL_MEANINGS.index("light"))
    ds["eigenvalue"][:] = top[..., None] * SPECTRUM
    ds["eigenvalue"][~full, :, 1:] = np.nan
    ds["eigenvalue_residual"][:] = 1e-3 * np.abs(ds["eigenvalue"].values)
    for end, relative in (("max", SPECTRUM.max()), ("min", SPECTRUM.min())):
        ds[f"eigenvalue_{end}"][:] = top * relative
        ds[f"eigenvalue_{end}_residual"][:] = 1e-3 * np.abs(top * relative)
    samples = (0.8 * top)[..., None] + 300.0 * noise.randn(1, 1, ds.sizes["probe"])  # each probe is shared along a task
    samples = np.where(full[:, None, None], samples + 30.0 * noise.randn(*rho.shape, samples.shape[-1]), np.nan)
    ds["trace_sample"][:] = samples
    ds["trace"][:] = samples.mean(-1)
    ds["trace_stderr"][:] = samples.std(-1, ddof=1) / np.sqrt(samples.shape[-1])


def _diverge(ds: xr.Dataset, tasks: list[int]) -> xr.Dataset:
    """Mark tasks of a run as diverged at the last checkpoint, and set their numbers after inner step 0 to NaN."""
    last, rows = ds.sizes["checkpoint"] - 1, [list(ds["task"].values).index(task) for task in tasks]
    for name, variable in ds.data_vars.items():
        if variable.dims[:3] == ("checkpoint", "task", "inner_step"):
            ds[name][last, rows, 1:] = np.nan
        elif variable.dims[:2] == ("checkpoint", "task") and variable.dtype.kind == "f":
            ds[name][last, rows] = np.nan
    ds["status"][last, rows] = STATUS_MEANINGS.index("diverged")
    return ds
