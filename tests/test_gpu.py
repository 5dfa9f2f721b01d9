"""Curvature and training on CUDA agree with the CPU in float64."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from everywhere import COMPUTED, DEVICE_CASES, compared, place, same, tensors
from torch.nn import functional as F

from hessian_tools import (
    Conv4,
    SaveAt,
    TrainConfig,
    flatten,
    hessian,
    learners,
    make_loss,
    meta_train,
    record,
    seeded,
    stream,
    top_eigenpairs,
    trace,
)
from hessian_tools.data import open_tasks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("case", DEVICE_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", COMPUTED)
def test_everything_agrees_with_the_cpu_in_float64(name, case):
    """Each operator's products and each quantity, computed on the GPU from tensors there, and left there."""
    found = COMPUTED[name](place(case, "cuda"))
    assert all(tensor.device.type == "cuda" for tensor in tensors(found))
    same([tensor.cpu() for tensor in compared(found)], compared(COMPUTED[name](place(case, "cpu"))))


def setting(device: str):
    model = seeded(lambda: Conv4(3, width=4, input_shape=(1, 16, 16)), seed=1).double()
    theta, layout = flatten(model)
    x = torch.rand(9, 1, 16, 16, generator=stream(0, "x"), dtype=torch.float64)
    y = torch.arange(3).repeat(3)
    batches = [(a.to(device), b.to(device)) for a, b in ((x[:3], y[:3]), (x[3:], y[3:]))]
    return make_loss(model.to(device), F.cross_entropy, layout), theta.to(device), *batches


def test_curvature_along_a_trajectory_agrees():
    found = []
    for device in ("cpu", "cuda"):
        loss, theta, support, query = setting(device)
        trajectory = record(learners.maml(3, 0.1), loss, theta, support, query, save=SaveAt(thetas=True))
        H = hessian(loss, trajectory.thetas, support, shared=True)
        pairs, estimate = top_eigenpairs(H, k=3, rtol=1e-8), trace(H, num_probes=8)
        assert pairs.values.device.type == device
        found.append([t.cpu() for t in (trajectory.support_loss, pairs.values, estimate.value, estimate.stderr)])
    for on_cpu, on_gpu in zip(*found, strict=True):
        assert torch.allclose(on_cpu, on_gpu, rtol=1e-6, atol=1e-9)


def test_training_runs_on_the_device():
    config = TrainConfig(
        learner=learners.maml(2, 0.1),
        tasks=open_tasks("quickdraw", ways=3, shots=1, queries=2),
        network=partial(Conv4, 3, width=4),
        checkpoints=(0, 2),
        validation_tasks=2,
    )
    on_cpu, on_gpu = (list(meta_train(replace(config, device=device)))[-1] for device in ("cpu", "cuda"))
    assert on_gpu.theta.device.type == "cuda"
    assert (on_gpu.theta.cpu() - on_cpu.theta).norm() < 1e-2 * on_cpu.theta.norm()
