"""Every public function that a user calls, with valid arguments and the kinds of its arguments."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, wraps
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from argument_values import (
    CHECKPOINT,
    DS,
    EVALUATION,
    IMAGES,
    LAYOUT,
    LOSS,
    MAML,
    MODEL,
    PAIRS,
    PATH,
    SAMPLES,
    SEVERAL,
    SINE,
    SINE_LOSS,
    SINE_THETA,
    SPECTRUM,
    THETA,
    THETAS,
    TRAJECTORY,
    H,
    N,
    U,
    X,
    Y,
)
from torch import nn
from torch.nn import functional as F

import analysis
import hessian_tools as ht
from analysis import figures
from hessian_tools import curvature, data, nets, train, trajectory
from hessian_tools.inner import collapse, learners, penalty, pretraining, shot, steps

# The kind of an argument follows from its name, unless the entry of its function says otherwise. A name that does not
# stand here is its own kind.
KINDS = {
    "count": "k num_probes max_points max_probes num_matvecs magnitude steps ways shots queries points width depth"
    " heads meta_batch workers patch hidden size num_params groups num_rotations max_matvecs max_basis chunk max_rank l"
    " evaluation_steps minibatches target_steps reference_steps save_every num_tasks image_size channels"
    " schedule_steps tasks_at_once",
    "count or 0": "ends validation_tasks fine_tuning_steps last",
    "whole": "seed validation_seed meta_iteration",
    "positive": "learning_rate tau epsilon threshold max_memory fine_tuning_step_size step_size",
    "tolerance": "rtol ends_rtol atol",
    "not negative": "shift zoom brightness kl_weight encoder_weight l2_weight orthogonality_weight noise",
    "real": "weight amplitude phase slope intercept",
    "fraction": "confidence",
    "decay": "decay dropout",
    "flag": "vectors copies shared compile first_order transductive checkpointing batched shuffle_labels flip"
    " logarithmic rotations crop trust yes fsync detach_reference reduced_precision",
    "choice": "which method route batching distance schedule step_sizes outer optimiser normalisation buffers"
    " projector reduction",
    "batch": "support query",
    "vectors": "thetas directions hg",
    "vector": "theta v g d along across start end direction h_d2g",
    "counts": "sizes widths checkpoints",
    "shape": "input_shape",
    "operator": "H",
    "jacobian": "J",
    "builder": "network build",
    "line": "grid",
    "name": "head",
    "numbers": "samples",
    "text": "name",
    "name of a split": "split",
    "path of names": "path",
}
KIND_OF = {name: kind for kind, names in KINDS.items() for name in names.split()}

# Valid arguments that several functions share. NETWORK: the kind of a loss that must be that of a network.
BATCH = (X, Y)
AT_POINT = {"loss": LOSS, "thetas": THETA, "batch": BATCH}
TASK = {"learner": MAML, "loss": LOSS, "theta": THETA, "support": BATCH}
LOOP = {"steps": 2, "step_size": 0.1}
NETWORK = {"loss": "network loss"}


@dataclass(frozen=True)
class Entry:
    """A public function, valid arguments, and the kinds of the arguments whose names do not say it."""

    title: str
    function: Callable[..., Any]
    valid: dict[str, Any]
    kinds: dict[str, str]

    def kind(self, name: str) -> str:
        """The kind of an argument."""
        return self.kinds.get(name) or KIND_OF.get(name, name)


def entry(function: Callable[..., Any], /, kinds: dict[str, str] | None = None, title: str = "", **valid: Any) -> Entry:
    """The entry of a function. An argument of the kind "-" is left alone."""
    return Entry(title or function.__qualname__, function, valid, kinds or {})


def _with_product(make: Callable[..., ht.Operator]) -> Callable[..., torch.Tensor]:
    """The function followed by a product, because a matrix evaluates its loss only then."""

    @wraps(make)
    def product(*args: Any, **kwargs: Any) -> torch.Tensor:
        matrix = make(*args, **kwargs)
        return matrix.mv(torch.ones(matrix.num_params, dtype=matrix.dtype))

    return product


def networks() -> list[Entry]:
    """Networks, their parameters, and the losses made of them."""
    return [
        entry(ht.seeded, build=lambda: nn.Linear(2, 3), seed=0),
        entry(ht.MLP, sizes=(2, 3, 1)),
        entry(ht.Conv4, outputs=3, width=4, kinds={"outputs": "count"}),
        entry(ht.ResNet12, outputs=3, widths=(2, 2, 2, 2), kinds={"outputs": "count", "residual": "flags"}),
        entry(ht.VisionTransformer, outputs=3, width=8, depth=1, kinds={"outputs": "count"}),
        entry(ht.load_network, target="torch.nn:Linear", outputs=3, input_shape=(2,),
              options={"in_features": 2, "out_features": 3},
              kinds={"outputs": "count", "input_shape": "shape of any length"}),
        entry(nets.normalised_weights, model=MODEL),
        entry(nets.linear_cross_entropy, hidden=X, weight=torch.ones(3, 2), targets=Y,
              kinds={"hidden": "lone vectors", "weight": "lone vectors", "targets": "labels", "bias": "lone vectors",
                     "ignore_index": "whole"}),
        entry(nets.refuse_unfit, model=ht.Conv4(3, width=4), outputs=3, input_shape=(1, 28, 28),
              kinds={"outputs": "count"}),
        entry(ht.flatten, model=MODEL),
        entry(ht.make_loss, model=MODEL, criterion=F.cross_entropy, layout=LAYOUT, kinds={"recompute": "names"}),
        entry(ht.stream, seed=0),
        entry(LAYOUT.unflatten, theta=THETA, kinds={"theta": "piece of a layout"}),
    ]  # fmt: skip


def inner_loops() -> list[Entry]:
    """Learners with their options, one inner loop, and a record of it."""
    return [
        *(entry(make, **LOOP, kinds={"head": "names", "body": "names"})
          for make in (learners.maml, learners.anil, learners.boil)),
        *(entry(f, **LOOP) for f in (learners.meta_sgd, learners.reptile, learners.supervised, learners.untrained)),
        entry(learners.leo, **LOOP),
        entry(ht.Learner, name="mine", **LOOP, kinds={"moves": "names"}),
        entry(learners.Latent),
        entry(steps.Momentum),
        entry(steps.Preconditioned),
        entry(ht.Shot, kinds={"target_steps": "not count"}),
        entry(shot.longer_reference, learner=MAML, weight=0.1, kinds={"factor": "count"}),
        entry(penalty.CurvaturePenalty),
        entry(pretraining.Augmentation),
        entry(pretraining.ShotPretraining, kinds={"augmentation": "latent"}),
        entry(collapse.homogeneity, outputs=SAMPLES, kinds={"outputs": "numbers"}),
        entry(ht.adapt, **TASK),
        entry(ht.meta_loss, **TASK, query=BATCH, kinds=NETWORK),
        entry(ht.network_parameters, loss=LOSS, theta=THETA, kinds={"theta": "meta vector", "loss": "function"}),
        entry(ht.record, **TASK, query=BATCH, kinds=NETWORK),
        entry(ht.SaveAt, kinds={"thetas": "flag", "gradients": "flag"}),
        entry(trajectory.stack, trajectories=[TRAJECTORY, TRAJECTORY]),
        entry(ht.trajectory_from, loss=LOSS, states=THETAS, support=BATCH),
        entry(lambda model, criterion, batch, *, query=None, where=None:
              ht.Recorder(model, criterion, batch, query=query, where=where).trajectory(),
              title="Recorder", model=MODEL, criterion=F.cross_entropy, batch=BATCH),
    ]  # fmt: skip


def matrices() -> list[Entry]:
    """Matrices, and their products."""
    return [
        entry(_with_product(ht.hessian), title="hessian", **AT_POINT, kinds={"shared": "-"}),
        entry(_with_product(ht.hessian), title="hessian at points", **AT_POINT | {"thetas": THETAS}, shared=True),
        entry(_with_product(ht.gauss_newton), title="gauss_newton", **AT_POINT, kinds=NETWORK | {"shared": "-"}),
        entry(_with_product(ht.hessian_of), title="hessian_of", model=MODEL, criterion=F.cross_entropy, data=BATCH,
              kinds={"data": "batch"}),
        entry(ht.preconditioned, H=H, preconditioner=torch.ones(N), kinds={"preconditioner": "diagonal"}),
        entry(ht.gradient, **AT_POINT),
        entry(ht.ragged, batches=[BATCH, BATCH]),
        entry(H.mv, v=THETA),
        entry(H.__matmul__, V=THETA, kinds={"V": "vector"}),
        entry(H.scaled, d=THETA),
        entry(H.restrict, Q=torch.eye(N)[:, :2], kinds={"Q": "columns"}),
        entry(H.to_scipy, kinds={"point": "count or 0"}),
    ]  # fmt: skip


def _of_zeros(v: torch.Tensor) -> torch.Tensor:
    """The product of the zero matrix with a vector."""
    return torch.zeros_like(v)


def spectra() -> list[Entry]:
    """Eigenvalues, traces and densities of matrices."""
    return [
        entry(ht.check_operator, H=H),
        entry(lambda model, criterion, batch, *, num_probes=1, seed=0:
              ht.audit(_of_zeros, model, criterion, batch, num_probes=num_probes, seed=seed),
              title="audit", model=MODEL, criterion=F.cross_entropy, batch=BATCH),
        entry(ht.top_eigenpairs, H=H, k=2, kinds={"vectors": "flag", "folder": "folder of a run"}),
        entry(ht.extremal_eigenpairs, H=H, magnitude=2, kinds={"vectors": "flag", "folder": "folder of a run"}),
        entry(ht.spectrum, H=H, kinds={"vectors": "flag"}),
        entry(ht.gauss_newton_spectrum, **AT_POINT, kinds=NETWORK | {"vectors": "flag"}),
        entry(ht.trace, H=H, num_probes=4, method="probes"),
        entry(ht.moments, H=H, num_probes=4),
        entry(ht.frobenius_squared, H=H, num_probes=4),
        entry(ht.by_module, H=H, num_probes=4, kinds={"path": "path of names"}),
        entry(ht.curvature.jackknife, H=SEVERAL, quantity="trace", num_probes=4, kinds={"quantity": "choice"}),
        entry(ht.curvature.jackknife(SEVERAL).interval, title="Jackknife.interval"),
        entry(ht.plan, H=H, calculation="trace", num_probes=4, kinds={"calculation": "choice", "vectors": "flag"}),
        entry(ht.diagonal, H=H, num_probes=4),
        entry(ht.spectral_density, H=H, num_probes=2, num_matvecs=4, kinds={"width": "positive"}),
        entry(curvature.quadrature, H=H, probes=torch.ones(N, 2), num_matvecs=4),
        entry(curvature.rademacher, num_params=4, num_probes=2),
        entry(curvature.estimate_of, samples=SAMPLES),
        entry(curvature.estimate_of(SAMPLES).interval, kinds={"level": "-"}),
    ]  # fmt: skip


def directions() -> list[Entry]:
    """Curvature along the gradient, in eigenspaces, and through the inner loop."""
    return [
        entry(ht.gradient_curvature, H=H, step_size=0.1),
        entry(ht.third_derivative, **AT_POINT, directions=THETA),
        entry(ht.loss_along, H=PATH, directions=U, kinds={"directions": "columns", "steps": "multiples"}),
        entry(ht.gauss_newton_share, pairs=PAIRS, spectrum=SPECTRUM),
        entry(ht.curvature.gradient_share, vectors=U, g=THETAS, kinds={"vectors": "columns", "g": "vectors"}),
        entry(ht.subspace_overlap, U=U, V=U, kinds={"U": "columns", "V": "columns"}),
        entry(curvature.principal_angles, U=U, V=U, kinds={"U": "columns", "V": "columns"}),
        entry(ht.step_overlaps, vectors=U, kinds={"vectors": "columns"}),
        entry(curvature.overlap_null, num_params=10, k=2),
        entry(curvature.subspace_error, pairs=PAIRS),
        entry(curvature.vector_error, pairs=PAIRS),
        entry(ht.adaptation_jacobian, H=PATH, step_size=0.1),
        entry(ht.singular_values, J=ht.adaptation_jacobian(PATH, 0.1), k=2, kinds={"vectors": "flag"}),
        entry(curvature.curvature_along, g=THETAS, hg=THETAS, kinds={"g": "vectors"}),
        entry(curvature.product_asymmetry, hg=THETAS, g=THETAS, hz=U, z=U,
              kinds={"g": "vectors", "hz": "columns", "z": "columns"}),
        entry(curvature.rounding_error, hg_ratio=torch.ones(2), asymmetry=torch.ones(2),
              kinds={"hg_ratio": "numbers", "asymmetry": "numbers"}),
        entry(curvature.filter_scale, layout=LAYOUT, theta=THETA, normalised=(), kinds={"normalised": "names"}),
        entry(curvature.rho_normalised, d=THETA, g=THETA, h_d2g=THETA),
        entry(curvature.tensor_parts, layout=LAYOUT, v=THETA),
        entry(curvature.random_rotations, layout=LAYOUT, g=THETA, num_rotations=2),
        entry(curvature.loss_surface, loss=LOSS, theta=THETA, batch=BATCH, along=THETA, across=-THETA,
              grid=torch.linspace(-1, 1, 3)),
        entry(curvature.filter_normalised, layout=LAYOUT, theta=THETA, direction=THETA),
        entry(curvature.alignment, gram=torch.eye(3), kinds={"gram": "square"}),
        entry(curvature.cos_displacement, gradients=U.mT, displacement=THETAS,
              kinds={"gradients": "points", "displacement": "vectors"}),
        entry(curvature.cosine_null, steps=3),
        entry(curvature.small_step_difference, hg=THETA, tau=0.1, target_steps=1, reference_steps=4,
              kinds={"hg": "lone vectors"}),
        entry(curvature.path_ratio, thetas=THETAS, kinds={"thetas": "lone vectors"}),
        entry(curvature.drop_ratio, losses=torch.ones(2), gradients=THETAS, thetas=THETAS,
              kinds={"losses": "numbers", "gradients": "points", "thetas": "points"}),
        entry(curvature.linearisation_error, outputs=lambda t: LOSS.outputs(t, X), start=THETA, end=0.9 * THETA,
              kinds={"outputs": "criterion"}),
    ]  # fmt: skip


def tasks(scratch: Path) -> list[Entry]:
    """Data sets and tasks."""
    return [
        entry(data.open_tasks, name="quickdraw", ways=2, shots=1, queries=1, kinds={"name": "source"}),
        entry(data.ImageTasks, dataset=IMAGES.dataset, kinds={"dataset": "images"}),
        entry(data.CrossDomainTasks, source=IMAGES, target=IMAGES, kinds={"source": "tasks", "target": "tasks"}),
        entry(data.SineLineTasks, kinds={"support": "count"}),
        entry(data.Sine, amplitude=1.0, phase=0.0),
        entry(data.Line, slope=1.0, intercept=0.0),
        entry(data.open_data, path=str(scratch), kinds={"path": "folder", "split": "-", "cache": "-"}),
        entry(data.describe, path=str(scratch), kinds={"path": "folder", "split": "-", "cache": "-"}),
        entry(data.reshaped, data=IMAGES.dataset, image_size=14, channels=1, kinds={"data": "images"}),
        entry(data.summary, tasks=IMAGES),
        entry(SINE.episode, seed=0, split="train", index=0, kinds={"split": "choice", "index": "count or 0"}),
        entry(IMAGES.episode, seed=0, split="train", index=0, kinds={"split": "choice", "index": "count or 0"}),
    ]  # fmt: skip


def training(scratch: Path) -> list[Entry]:
    """Meta-training, and what it leaves."""
    config = train.TrainConfig(MAML, SINE, lambda: ht.MLP((1, 4, 1)), checkpoints=(0, 1), validation_tasks=2)
    return [
        entry(ht.TrainConfig, learner=MAML, tasks=SINE, network=lambda: ht.MLP((1, 4, 1)),
              kinds=dict.fromkeys(["folder", "start", "network", "head"], "-")
              | {"pretraining": "latent", "checkpoints": "checkpoint numbers"}),
        entry(lambda network: train.task_loss(train.TrainConfig(MAML, SINE, network)), title="network of TrainConfig",
              network=lambda: ht.MLP((1, 4, 1))),
        entry(lambda config, progress=None: list(ht.meta_train(config, progress=progress)), title="meta_train",
              config=config),
        entry(lambda configs: list(train.meta_train_runs(configs)), title="meta_train_runs",
              configs=[config, replace(config, seed=1)], kinds={"configs": "-"}),
        entry(train.task_loss, config=config),
        entry(train.logarithmic_schedule, last=100),
        entry(train.saved_checkpoints, folder=scratch, kinds={"folder": "folder of a run"}),
        entry(train.diverged_at, folder=scratch, kinds={"folder": "folder of a run"}),
        entry(ht.evaluate, learner=MAML, loss=SINE_LOSS, theta=SINE_THETA, tasks=SINE, split="test", num_tasks=2,
              seed=0, kinds={"loss": "loss of the evaluation", "split": "choice", "theta": "meta vector"}),
        entry(ht.best_checkpoint, checkpoints=[CHECKPOINT], kinds={"checkpoints": "list of checkpoints"}),
        entry(EVALUATION.save, title="save", path=scratch / "saved", kinds={"path": "file"}),
        entry(ht.load, path=EVALUATION.save(scratch / "result"), kinds={"path": "file"}),
        entry(train.over_seeds, evaluations=[EVALUATION]),
    ]  # fmt: skip


def studies(scratch: Path) -> list[Entry]:
    """The study, its results and figures."""
    return [
        entry(analysis.load_study, source="micro"),
        entry(analysis.open_study, path=scratch, kinds={"path": "folder"}),
        entry(analysis.open_verdicts, path=scratch, kinds={"path": "folder"}),
        entry(analysis.open_checkpoint, folder=scratch, learner="maml", seed=0,
              kinds={"folder": "folder", "learner": "name", "meta_iteration": "not count", "device": "-",
                     "trust": "flag"}),
        entry(
            analysis.plot,
            result=PAIRS,
            kinds={"ax": "axes", "label": "text or None", "color": "name", "options": "-"},
        ),
        entry(analysis.explore, study=DS, kinds={"study": "folder", "variables": "names"}),
        entry(figures.alpha_rho, title="alpha_rho", ds=DS,
              kinds={"learners": "names", "steps": "numbers of steps", "width": "width in print", "labels": "mapping"}),
        entry(figures.alpha_rho.data, title="alpha_rho.data", ds=DS,
              kinds={"learners": "names", "steps": "numbers of steps"}),
        entry(figures.alpha_rho.caption, title="alpha_rho.caption", ds=DS,
              kinds={"learners": "names", "steps": "numbers of steps", "labels": "mapping"}),
        entry(figures.alpha_rho.save_data, title="alpha_rho.save_data", ds=DS, path_stem=scratch / "alpha_rho",
              kinds={"learners": "names", "steps": "numbers of steps", "path_stem": "file"}),
        entry(figures.figures_of, ds=DS),
        entry(figures.left_out, ds=DS),
        entry(figures.variable, ds=DS, name="theta_norm", kinds={"name": "name"}),
        entry(figures.save, figure=figures.alpha_rho(DS), path_stem=scratch / "alpha_rho",
              kinds={"path_stem": "file"}),
        entry(analysis.to_xarray, result=PAIRS, kinds={"dims": "names", "coords": "mapping"}),
        entry(partial(analysis.run_study, out="/dev/null/study"), title="run_study", source="micro",
              kinds=dict.fromkeys(["out", "claims", "data", "kept", "devices", "cluster", "dask"], "-")
              | {"workers": "count or 0"}),
    ]  # fmt: skip


def entries(scratch: Path) -> list[Entry]:
    """Every public function that a user calls, with valid arguments. scratch: an empty folder."""
    without_folder = (networks, inner_loops, matrices, spectra, directions)
    with_folder = (tasks, training, studies)
    return [*chain.from_iterable(f() for f in without_folder), *chain.from_iterable(f(scratch) for f in with_folder)]
