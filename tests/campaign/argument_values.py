"""Arguments of the public functions: valid objects, and by the kind of an argument what must be refused or accepted."""

from typing import Any

import numpy as np
import torch
from jaxtyping import config
from simulated_studies import simulated_study
from torch import nn
from torch.nn import functional as F

import hessian_tools as ht
from hessian_tools import curvature, data, train
from hessian_tools.inner import learners, shot, steps

# At the first use of a loss, the library checks that the loss draws no random numbers. The type checks of tests may
# draw random numbers, so they are off while the objects below are made.
_checks_were_off = config.jaxtyping_disable
config.update("jaxtyping_disable", True)

# Valid objects: a classifier of points in the plane, its loss and matrices, and what is made from them.
MODEL = ht.seeded(lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)), seed=0)
THETA, LAYOUT = ht.flatten(MODEL)
LOSS = ht.make_loss(MODEL, F.cross_entropy, LAYOUT)
X, Y = torch.linspace(-1, 1, 12).reshape(6, 2), torch.tensor([0, 1, 2, 0, 1, 2])
N = len(THETA)
H = ht.hessian(LOSS, THETA, (X, Y))
THETAS = torch.stack([THETA, 0.9 * THETA])
SEVERAL = ht.hessian(LOSS, THETA, [(X[:2], Y[:2]), (X[2:], Y[2:])])  # on two batches
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
DS = simulated_study(seeds=(0,), tasks=2, evaluation_tasks=2)
SAMPLES = torch.linspace(0, 1, 6).reshape(2, 3)
SINE_MODEL = ht.seeded(lambda: ht.MLP((1, 4, 1)), seed=0)
SINE_THETA, SINE_LAYOUT = ht.flatten(SINE_MODEL)
SINE_LOSS = ht.make_loss(SINE_MODEL, F.mse_loss, SINE_LAYOUT)

config.update("jaxtyping_disable", _checks_were_off)

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
    huge = torch.full((6, 2), 1e300, dtype=torch.float64)  # finite, but float32 cannot hold it
    return [
        # No pair of tensors.
        *(None, "nonsense", MODEL, 1.5, NOTHING, X, (X,), (), [], X.numpy(), {"x": X, "y": Y}),
        *((X, None), (X, "y"), (None, Y), (MODEL, Y)),
        # Empty, or of another shape.
        *((X[:0], Y[:0]), (torch.ones(6, 3), Y), (X[0], Y), (X, Y[:3]), (X, torch.ones(6, 3, 3))),
        # Labels that are no classes, and numbers of another kind.
        *((X, Y + 5), (X, -1 - Y), (X, Y.float()), (X.long(), Y), (X.to(torch.complex64), Y), (huge, Y)),
    ]  # fmt: skip


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
    "text or None": [3, MODEL, [], NOTHING, np.ones(3)],
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
    "diagonal": [*NOT_TENSORS, np.ones(N), torch.ones(N).long(), torch.ones(N + 1), torch.zeros(N), THETAS, THETA[:0]],
    "multiples": [None, "nonsense", MODEL, 3, [], ["a"], [None], [float("nan")], np.ones(3), NOTHING],
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
    "file": [None, 3, MODEL, NOTHING, ["a"], b"\0", "a\0b"],
    "ds": [None, "nonsense", 3, MODEL, NOTHING, {}],
    "figure": [None, "nonsense", 3, MODEL, NOTHING, {}],
    "formats": [None, "nonsense", "pdf", 3, MODEL, NOTHING, [3], [None], ["nonsense"]],
    "numbers of steps": ["nonsense", MODEL, 3, NOTHING, [2.5], [-1], ["3"], [True], [99], [], np.ones(3)],
    "width in print": ["nonsense", MODEL, 0, -1, float("nan"), 99, True, [3.25], NOTHING],
    "source": [None, 3, "no/such/study.yaml", MODEL, NOTHING, ["a"], "a\0b"],
    "piece of a layout": [*NOT_TENSORS, THETA.numpy(), THETA[:-1], torch.cat([THETA, THETA]), THETA[:0]],
    "vector": _not_vectors(THETA),
    "vectors": _not_vectors(THETAS),
    "points": [*_not_vectors(THETAS), THETA[0]],
    "square": [*NOT_TENSORS, np.eye(2), torch.eye(2).long(), torch.ones(2, 3), torch.ones(3)],
    "columns": [*_not_vectors(U.mT), U[..., :0, :], U.numpy(), U.long()],
    "probes": [*_not_vectors(THETA), torch.ones(2, 2), torch.ones(N, 0), torch.ones(N - 1, 2)],
    "numbers": [*NOT_TENSORS, SAMPLES.numpy(), SAMPLES.long(), torch.tensor(1.0), SAMPLES[..., :0]],
    "labels": [*NOT_TENSORS, Y.numpy(), Y.float(), Y[:0], Y[:3], Y + 5, -1 - Y],
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
    "batch": [(X.double(), Y), (X, Y.int().long()), (X.numpy(), Y.numpy())],
    "vector": [THETA.clone(), nn.Parameter(THETA.clone())],
}
