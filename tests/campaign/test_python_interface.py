"""Hostile calls of the Python interface: every public function, with one argument replaced and the others valid.

``pytest -m campaign tests/campaign`` runs all calls. ``python tests/campaign/test_python_interface.py`` prints the
numbers of outcomes, and every call whose outcome is not wanted. A hostile value that is accepted counts as wrong.
"""

import inspect
import re
import signal
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import analysis
import hessian_tools as ht
from hessian_tools import curvature, data, nets, train, trajectory
from hessian_tools.inner import collapse, learners, penalty, pretraining, shot, steps

RIGHT, REFUSED, DEEP, WRONG, HANG = "right", "refused by name", "deep error", "wrong", "hang"
LIMIT_S = 20
LONGEST_MESSAGE = 1000

MODEL = ht.seeded(lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)), seed=0)
THETA, LAYOUT = ht.flatten(MODEL)
LOSS = ht.make_loss(MODEL, F.cross_entropy, LAYOUT)
X, Y = torch.linspace(-1, 1, 12).reshape(6, 2), torch.tensor([0, 1, 2, 0, 1, 2])
N = len(THETA)
H = ht.hessian(LOSS, THETA, (X, Y))
THETAS = torch.stack([THETA, 0.9 * THETA])
PATH = ht.hessian(LOSS, THETAS, (X, Y), shared=True)  # at two points
PAIRS = ht.top_eigenpairs(PATH, k=2, vectors=True)
U = PAIRS.vectors
SPECTRUM = curvature.gauss_newton_spectrum(LOSS, THETAS, (X, Y), shared=True, vectors=True)
MAML = learners.maml(2, 0.1)
SINE = data.open_tasks("sine-line")
IMAGES = data.open_tasks("quickdraw", ways=3, shots=1, queries=1)
EVALUATION = train.Evaluation(torch.zeros(2), torch.ones(2), "test", 0, 3, True)
CHECKPOINT = train.Checkpoint(0, THETA, 1.0, 0.5)
TRAJECTORY = ht.record(MAML, LOSS, THETA, (X, Y), (X, Y))
SAMPLES = torch.linspace(0, 1, 6).reshape(2, 3)
SINE_MODEL = ht.seeded(lambda: ht.MLP((1, 4, 1)), seed=0)
SINE_THETA, SINE_LAYOUT = ht.flatten(SINE_MODEL)
SINE_LOSS = ht.make_loss(SINE_MODEL, F.mse_loss, SINE_LAYOUT)


NOTHING = object()
WORDS = [None, "nonsense", MODEL, [], {}, NOTHING, np.ones(3)]
NOT_COUNTS = [*WORDS, 2.5, float("nan"), float("inf"), True, "3", [2], torch.ones(2)]
NOT_NUMBERS = [*WORDS, float("nan"), True, "0.1", [0.1], torch.ones(3, dtype=torch.long), 1j]
NOT_TENSORS = [None, "nonsense", MODEL, 1.5, NOTHING, [1.0, 2.0]]


def _not_vectors(tensor: torch.Tensor) -> list[Any]:
    """Values that may not take the place of a tensor of numbers."""
    whole = tensor.round().long()
    wrong_size = [torch.cat([tensor, tensor[..., :1]], dim=-1), tensor[..., :0]]
    return [*NOT_TENSORS, tensor.numpy(), whole, whole.bool(), tensor.to(torch.complex64), *wrong_size]


def _not_batches() -> list[Any]:
    """Values that may not take the place of the batch (X, Y) of ``LOSS``."""
    return [
        *(
            None,
            "nonsense",
            MODEL,
            1.5,
            NOTHING,
            X,
            (X,),
            (),
            [],
            X.numpy(),
            (X.numpy(), Y.numpy()),
            (X, None),
            (X, "y"),
        ),
        *((X[:0], Y[:0]), (torch.ones(6, 3), Y), (X[0], Y), (X, Y[:3]), (X, Y + 5), (X, -1 - Y), (X, Y.float())),
        *((X.long(), Y), (None, Y), (MODEL, Y), (torch.full((6, 2), 1e300, dtype=torch.float64), Y)),
        *((X.to(torch.complex64), Y), (X, torch.ones(6, 3, 3)), {"x": X, "y": Y}),
    ]


# By the kind of an argument: values that must be refused, and values that must be accepted.
HOSTILE: dict[str, list[Any]] = {
    "count": [*NOT_COUNTS, 0, -1],
    "count or 0": [*NOT_COUNTS, -1],
    "whole": NOT_COUNTS,
    "positive": [*NOT_NUMBERS, 0.0, -1.0, float("inf")],
    "not negative": [*NOT_NUMBERS, -1.0],
    "fraction": [*NOT_NUMBERS, 0.0, 1.0, 95.0, -1.0],
    "decay": [*NOT_NUMBERS, 1.0, -0.5],
    "tolerance": [*NOT_NUMBERS, -1.0, float("inf")],
    "real": NOT_NUMBERS,
    "step size": [*WORDS, float("nan"), True, "0.1", [0.1], torch.ones(3, dtype=torch.long)],
    "flag": [*WORDS, "yes", 2, torch.ones(2)],
    "flags": [None, 3, "nonsense", MODEL, [True], ["a"] * 4, NOTHING],
    "choice": [*WORDS, 3, ["LM"]],
    "device": [None, 3, "nowhere", MODEL, [], NOTHING],
    "target": [None, 3, "nonsense", "no:such", "os:nothing", MODEL, [], NOTHING],
    "text": [None, 3, MODEL, [], NOTHING, np.ones(3)],
    "name": [3, MODEL, NOTHING, "nonsense"],
    "name of a split": [*WORDS, 3],
    "names": [3, MODEL, NOTHING, [3], [None], "nonsense"],
    "counts": [None, "nonsense", MODEL, 3, [2.5], [-1], ["3"], [0], np.ones(3), NOTHING, [True, True]],
    "shape of any length": [None, "nonsense", MODEL, 3, [2.5], [-1, 2, 2], NOTHING, (0, 28, 28), (1, 2.5, 28)],
    "meta vector": [*NOT_TENSORS, THETA[None], THETA.numpy(), THETA.long(), THETA[:-1], THETA[:0]],
    "lone vectors": [*NOT_TENSORS, THETAS.numpy(), THETAS.long(), THETAS[:0]],
    "function": [None, "nonsense", 3, THETA, NOTHING],
    "checkpoint numbers": [None, "nonsense", MODEL, 3, [2.5], [-1], ["3"], np.ones(3), NOTHING, [True, True], [2, 1]],
    "seeds": ["nonsense", MODEL, 3, [2.5], ["3"], NOTHING, [True]],
    "not count": [each for each in [*NOT_COUNTS, 0, -1] if each is not None],
    "shape": [None, "nonsense", MODEL, 3, [2.5], [-1, 2, 2], (1,), (1, 2), NOTHING, (0, 28, 28), (1, 2.5, 28)],
    "batch": _not_batches(),
    "batches": [None, "nonsense", MODEL, 3, [], X, NOTHING],
    "loss": [None, "nonsense", MODEL, 3, THETA, NOTHING, LAYOUT, F.cross_entropy, lambda: 1, lambda theta, batch: None],
    "network loss": [None, "nonsense", MODEL, 3, THETA, NOTHING, LAYOUT, F.cross_entropy],
    "operator": [None, "nonsense", MODEL, 3, torch.eye(N), np.eye(N), LOSS, NOTHING, F.cross_entropy],
    "jacobian": [None, "nonsense", MODEL, 3, torch.eye(N), np.eye(N), LOSS, NOTHING, H],
    "loss of the evaluation": [None, "nonsense", MODEL, 3, THETA, NOTHING, LAYOUT, F.cross_entropy, LOSS],
    "pairs": [None, "nonsense", MODEL, 3, torch.eye(N), NOTHING, H, SPECTRUM, U],
    "spectrum": [None, "nonsense", MODEL, 3, torch.eye(N), NOTHING, H, PAIRS],
    "learner": [None, "maml", learners.maml, 3, shot.Shot(), MODEL, NOTHING],
    "shot": ["kl", 3, MAML, NOTHING, MODEL],
    "penalty": ["kl", 3, MAML, NOTHING, MODEL],
    "rule": [None, "plain", 3, steps.Plain, MODEL, NOTHING],
    "model": [None, "nonsense", 3, THETA, nn.Linear, LOSS, NOTHING, lambda x: x],
    "criterion": [None, "nonsense", 3, THETA, NOTHING, nn.CrossEntropyLoss],
    "builder": [None, "nonsense", 3, THETA, NOTHING, MODEL, lambda: None, lambda: THETA],
    "activation": [None, "nonsense", 3, THETA, NOTHING, lambda: None],
    "layout": [None, "nonsense", 3, THETA, MODEL, LAYOUT.names, NOTHING],
    "tasks": [None, "sine-line", 3, MODEL, NOTHING, (X, Y)],
    "where": [3, MODEL, THETA, NOTHING, ["nonsense"], [3]],
    "save": [None, "thetas", 3, True, NOTHING],
    "states": [None, "nonsense", MODEL, 3, [], [None], [THETA.numpy()], [THETA.long()], [MODEL], THETA[:-1], NOTHING],
    "generator": ["nonsense", 3, NOTHING, MODEL, np.random.default_rng(0)],
    "progress": ["nonsense", 3, THETA, NOTHING, MODEL],
    "path of names": [3, "nonsense", None, NOTHING, THETA, [None]],
    "folder of a run": [None, 3, MODEL, NOTHING, ["a"], b"\0", "a\0b"],
    "folder": [None, 3, "no/such/folder", MODEL, NOTHING, ["a"], b"\0", "a\0b"],
    "source": [None, 3, "no/such/study.yaml", MODEL, NOTHING, ["a"], "a\0b"],
    "piece of a layout": [*NOT_TENSORS, THETA.numpy(), THETA[:-1], torch.cat([THETA, THETA]), THETA[:0]],
    "vector": _not_vectors(THETA),
    "vectors": _not_vectors(THETAS),
    "points": [*_not_vectors(THETAS), THETA[0]],
    "square": [*NOT_TENSORS, np.eye(2), torch.eye(2).long(), torch.ones(2, 3), torch.ones(3)],
    "columns": [*_not_vectors(U.mT), U[..., :0, :], U.numpy(), U.long()],
    "probes": [*_not_vectors(THETA), torch.ones(2, 2), torch.ones(N, 0), torch.ones(N - 1, 2)],
    "numbers": [*NOT_TENSORS, SAMPLES.numpy(), SAMPLES.long(), torch.tensor(1.0), SAMPLES[..., :0]],
    "line": [*NOT_TENSORS, np.ones(3), torch.ones(3).long(), torch.tensor(1.0), torch.ones(0), torch.ones(2, 2)],
    "trajectories": [None, "nonsense", 3, [], [None], TRAJECTORY, [THETA], NOTHING],
    "list of checkpoints": [None, "nonsense", 3, [], [None], CHECKPOINT, [THETA], NOTHING],
    "evaluations": [None, "nonsense", 3, [], [None], EVALUATION, [THETA], NOTHING],
    "config": [None, "nonsense", 3, {}, MODEL, MAML, NOTHING],
    "options": ["nonsense", 3, MODEL, {"nonsense": 1}, NOTHING],
    "result": [None, "nonsense", 3, MODEL, LOSS, NOTHING, {}],
    "axes": ["nonsense", 3, MODEL, NOTHING],
    "weights": ["nonsense", 3, [1.0, 2.0], [-1.0], [0.0], ["a"], [float("nan")], MODEL, NOTHING, None],
    "mapping": ["nonsense", 3, MODEL, NOTHING],
    "latent": ["nonsense", 3, MODEL, NOTHING, {}],
    "images": [None, "nonsense", 3, MODEL, NOTHING],
}  # fmt: skip
BENIGN: dict[str, list[Any]] = {
    "batch": [(X.double(), Y), (X, Y.int().long())],
    "vector": [THETA.clone(), nn.Parameter(THETA.clone())],
}
# The kind of an argument follows from its name, unless the entry of its function says otherwise. A name that does not
# stand here is its own kind.
KINDS = {
    "count": "k num_probes max_points max_probes num_matvecs magnitude steps ways shots queries points width depth"
    " heads meta_batch workers patch hidden size num_params groups num_rotations max_matvecs max_basis chunk max_rank l"
    " evaluation_steps minibatches target_steps reference_steps save_every num_tasks image_size channels"
    " schedule_steps",
    "count or 0": "ends validation_tasks fine_tuning_steps last",
    "whole": "seed validation_seed",
    "positive": "learning_rate tau epsilon threshold max_memory fine_tuning_step_size step_size",
    "tolerance": "rtol ends_rtol atol",
    "not negative": "shift zoom brightness kl_weight encoder_weight l2_weight orthogonality_weight noise",
    "real": "weight amplitude phase slope intercept",
    "fraction": "confidence",
    "decay": "decay dropout",
    "flag": "vectors copies shared first_order transductive checkpointing batched shuffle_labels flip logarithmic"
    " rotations crop trust detach_reference",
    "choice": "which method route batching distance schedule step_sizes outer optimiser normalisation buffers"
    " projector",
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


# What a message may call an argument besides its name.
ALSO_CALLED = {
    **{name: ["batch", "batches", "support"] for name in ("batch", "support", "query")},
    **{"start": ["theta"], "end": ["theta"], "v": ["V"], "states": ["state"], "input_shape": ["shape", "images"]},
    **{"checkpoints": ["checkpoint"], "evaluations": ["evaluation"], "trajectories": ["trajectory"]},
    **{"target": ["import path", "module"], "options": ["called with"], "network": ["build"], "loss": ["network"]},
    "vectors": ["columns"],
    **{"source": ["study", "such"], "path": ["folder", "such"], "folder": ["such"], "name": ["such"]},
}  # fmt: skip


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


def entries(scratch: Path) -> list[Entry]:
    """Every public function that a user calls, with valid arguments. scratch: an empty folder."""
    at_point, batch = {"loss": LOSS, "thetas": THETA, "batch": (X, Y)}, (X, Y)
    network = {"loss": "network loss"}
    task = {"learner": MAML, "loss": LOSS, "theta": THETA, "support": batch}
    loop = {"steps": 2, "step_size": 0.1}
    train_config = train.TrainConfig(MAML, SINE, lambda: ht.MLP((1, 4, 1)), checkpoints=(0, 1), validation_tasks=2)
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
        entry(nets.refuse_unfit, model=ht.Conv4(3, width=4), outputs=3, input_shape=(1, 28, 28),
              kinds={"outputs": "count"}),
        entry(ht.flatten, model=MODEL),
        entry(ht.make_loss, model=MODEL, criterion=F.cross_entropy, layout=LAYOUT),
        entry(ht.stream, seed=0),
        entry(LAYOUT.unflatten, theta=THETA, kinds={"theta": "piece of a layout"}),
        # An inner loop, and a record of it.
        *(entry(make, **loop, kinds={"head": "names", "body": "names"})
          for make in (learners.maml, learners.anil, learners.boil)),
        *(entry(f, **loop) for f in (learners.meta_sgd, learners.reptile, learners.supervised, learners.untrained)),
        entry(learners.leo, **loop),
        entry(ht.Learner, name="mine", **loop, kinds={"moves": "names"}),
        entry(learners.Latent),
        entry(steps.Momentum),
        entry(steps.Preconditioned),
        entry(ht.Shot, kinds={"target_steps": "not count"}),
        entry(shot.longer_reference, learner=MAML, weight=0.1, kinds={"factor": "count"}),
        entry(penalty.CurvaturePenalty),
        entry(pretraining.Augmentation),
        entry(pretraining.ShotPretraining, kinds={"augmentation": "latent"}),
        entry(collapse.homogeneity, outputs=SAMPLES, kinds={"outputs": "numbers"}),
        entry(ht.adapt, **task),
        entry(ht.meta_loss, **task, query=batch, kinds=network),
        entry(ht.network_parameters, loss=LOSS, theta=THETA, kinds={"theta": "meta vector", "loss": "function"}),
        entry(ht.record, **task, query=batch, kinds=network),
        entry(ht.SaveAt, kinds={"thetas": "flag", "gradients": "flag"}),
        entry(trajectory.stack, trajectories=[TRAJECTORY, TRAJECTORY]),
        entry(ht.trajectory_from, loss=LOSS, states=THETAS, support=batch),
        entry(lambda model, criterion, batch, *, query=None, where=None:
              ht.Recorder(model, criterion, batch, query=query, where=where).trajectory(),
              title="Recorder", model=MODEL, criterion=F.cross_entropy, batch=batch),
        # Matrices and their products.
        entry(_with_product(ht.hessian), title="hessian", **at_point, kinds={"shared": "-"}),
        entry(_with_product(ht.hessian), title="hessian at points", **at_point | {"thetas": THETAS}, shared=True),
        entry(_with_product(ht.gauss_newton), title="gauss_newton", **at_point, kinds=network | {"shared": "-"}),
        entry(ht.gradient, **at_point),
        entry(ht.ragged, batches=[batch, batch]),
        entry(H.mv, v=THETA),
        entry(H.__matmul__, V=THETA, kinds={"V": "vector"}),
        entry(H.scaled, d=THETA),
        entry(H.restrict, Q=torch.eye(N)[:, :2], kinds={"Q": "columns"}),
        entry(H.to_scipy, kinds={"point": "count or 0"}),
        # Their spectrum.
        entry(ht.check_operator, H=H),
        entry(ht.top_eigenpairs, H=H, k=2, kinds={"vectors": "flag"}),
        entry(ht.extremal_eigenpairs, H=H, magnitude=2, kinds={"vectors": "flag"}),
        entry(ht.spectrum, H=H, kinds={"vectors": "flag"}),
        entry(ht.gauss_newton_spectrum, **at_point, kinds=network | {"vectors": "flag"}),
        entry(ht.trace, H=H, num_probes=4, method="probes"),
        entry(ht.moments, H=H, num_probes=4),
        entry(ht.frobenius_squared, H=H, num_probes=4),
        entry(ht.diagonal, H=H, num_probes=4),
        entry(ht.spectral_density, H=H, num_probes=2, num_matvecs=4, kinds={"width": "positive"}),
        entry(curvature.quadrature, H=H, probes=torch.ones(N, 2), num_matvecs=4),
        entry(curvature.rademacher, num_params=4, num_probes=2),
        entry(curvature.estimate_of, samples=SAMPLES),
        entry(curvature.estimate_of(SAMPLES).interval, kinds={"level": "-"}),
        # Curvature along the gradient, in eigenspaces, and through the inner loop.
        entry(ht.gradient_curvature, H=H, step_size=0.1),
        entry(ht.third_derivative, **at_point, directions=THETA),
        entry(ht.gauss_newton_share, pairs=PAIRS, spectrum=SPECTRUM),
        entry(ht.gradient_share, vectors=U, g=THETAS, kinds={"vectors": "columns", "g": "vectors"}),
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
        entry(curvature.loss_surface, loss=LOSS, theta=THETA, batch=batch, along=THETA, across=-THETA,
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
        # Data and training.
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
        entry(ht.TrainConfig, learner=MAML, tasks=SINE, network=lambda: ht.MLP((1, 4, 1)),
              kinds=dict.fromkeys(["folder", "start", "network", "head"], "-")
              | {"pretraining": "latent", "checkpoints": "checkpoint numbers"}),
        entry(lambda network: train.task_loss(train.TrainConfig(MAML, SINE, network)), title="network of TrainConfig",
              network=lambda: ht.MLP((1, 4, 1))),
        entry(lambda config, progress=None: list(ht.meta_train(config, progress=progress)), title="meta_train",
              config=train_config),
        entry(train.task_loss, config=train_config),
        entry(train.logarithmic_schedule, last=100),
        entry(train.saved_checkpoints, folder=scratch, kinds={"folder": "folder of a run"}),
        entry(train.diverged_at, folder=scratch, kinds={"folder": "folder of a run"}),
        entry(ht.evaluate, learner=MAML, loss=SINE_LOSS, theta=SINE_THETA, tasks=SINE, split="test", num_tasks=2,
              seed=0, kinds={"loss": "loss of the evaluation", "split": "choice", "theta": "meta vector"}),
        entry(ht.best_checkpoint, checkpoints=[CHECKPOINT], kinds={"checkpoints": "list of checkpoints"}),
        entry(train.over_seeds, evaluations=[EVALUATION]),
        # The study.
        entry(analysis.load_study, source="micro"),
        entry(analysis.open_study, path=scratch, kinds={"path": "folder"}),
        entry(analysis.open_verdicts, path=scratch, kinds={"path": "folder"}),
        entry(analysis.plot, result=PAIRS, kinds={"ax": "axes", "options": "-"}),
        entry(analysis.to_xarray, result=PAIRS, kinds={"dims": "names", "coords": "mapping"}),
        entry(partial(analysis.run_study, out="/dev/null/study"), title="run_study", source="micro",
              kinds=dict.fromkeys(["out", "claims", "data", "kept"], "-") | {"workers": "count or 0"}),
    ]  # fmt: skip


def arguments(function: Callable[..., Any]) -> Iterator[inspect.Parameter]:
    """The named arguments of a function; options that are a TypedDict are its keys."""
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            yield parameter


@dataclass(frozen=True)
class Trial:
    """One call: an argument of a function, the value it is given, and whether that value must be accepted."""

    entry: Entry
    argument: str
    value: Any
    benign: bool

    def run(self) -> tuple[str, str]:
        """The outcome of the call, and what it raised or returned."""
        try:
            with warnings.catch_warnings(), _time_limit(LIMIT_S):
                warnings.simplefilter("ignore")
                result = self.entry.function(**{**self.entry.valid, self.argument: self.value})
        except _TooLong:
            return HANG, ""
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            if self.benign:  # some valid calls are refused as well, such as those on an empty folder
                return (RIGHT if text == self._valid_error() else WRONG), text
            return (REFUSED if self._names_the_argument(error) else DEEP), text
        return (RIGHT if self.benign else WRONG), f"returned a {type(result).__name__}"

    def _valid_error(self) -> str:
        """What the valid call raises; "" if it succeeds."""
        try:
            self.entry.function(**self.entry.valid)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def _names_the_argument(self, error: Exception) -> bool:
        words = "|".join([re.escape(self.argument), *ALSO_CALLED.get(self.argument, [])])
        is_kind = isinstance(error, TypeError | ValueError | OSError | analysis.UserError)
        return is_kind and len(str(error)) <= LONGEST_MESSAGE and bool(re.search(rf"\b({words})\b", str(error)))

    def __str__(self) -> str:
        value = " ".join(repr(self.value).split())
        return f"{self.entry.title}({self.argument}={value[:60]})"


class _TooLong(BaseException):
    """A call ran for longer than the limit."""


@contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def trials(scratch: Path) -> Iterator[Trial]:
    """All calls, one after the other."""
    for each in entries(scratch):
        for parameter in arguments(each.function):
            kind = each.kind(parameter.name)
            if kind == "-":
                continue
            for value in HOSTILE[kind]:
                may_be_none = value is None and parameter.default is None
                if not may_be_none:
                    yield Trial(each, parameter.name, value, benign=False)
            given = each.valid.get(parameter.name, parameter.default)
            of_numpy = [np.array(given)[()]] if isinstance(given, int | float) else []
            for value in (*BENIGN.get(kind, []), *of_numpy):
                yield Trial(each, parameter.name, value, benign=True)


def campaign(show: Callable[[str], None] = lambda line: None) -> dict[str, Counter[str]]:
    """Runs all calls. Returns the number of calls by function and outcome; shows each call that went wrong."""
    table: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for trial in trials(Path(scratch)):
            outcome, text = trial.run()
            table.setdefault(trial.entry.title, Counter())[outcome] += 1
            if outcome in (DEEP, WRONG, HANG):
                show(f"{outcome:10s} {trial}: {' '.join(text.split())[:150]}")
    return table


@pytest.mark.campaign
def test_no_hostile_call_gives_a_deep_error_a_wrong_number_or_hangs(capsys: pytest.CaptureFixture[str]) -> None:
    wrong: list[str] = []
    total = sum(campaign(wrong.append).values(), Counter())
    with capsys.disabled():
        print(f"\n{total.total()} hostile calls: {dict(total)}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.campaign
def test_every_public_function_has_an_entry(tmp_path: Path) -> None:
    """A new public function must be entered above, or here among those that nobody calls with arguments."""
    entered = {getattr(each.function, "__name__", each.title) for each in entries(tmp_path)} | {
        *("hessian", "gauss_newton", "Recorder", "meta_train", "run_study", "load_quickdraw", "check_choice"),
    }  # fmt: skip
    packages = (ht, curvature, data, nets, train, trajectory, analysis)
    public = {name for package in packages for name in package.__all__ if inspect.isfunction(getattr(package, name))}
    assert public <= entered


def main() -> None:
    """Print every call that went wrong, and the table."""
    torch.set_num_threads(1)
    total = sum(campaign(print).values(), Counter())
    print(
        f"tried {total.total()}; " + "; ".join(f"{name} {total[name]}" for name in (RIGHT, REFUSED, DEEP, WRONG, HANG))
    )


if __name__ == "__main__":
    main()
