"""Tests that curvature and training on CUDA agree with the CPU in float64."""

import gc
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from cases import quadratic, randn
from device_cases import COMPUTED, DEVICE_CASES, compared, place, same, tensors
from device_cases_derived import DERIVED, LEARNED
from torch import nn
from torch.nn import functional as F

from analysis import run_study
from hessian_tools import (
    Conv4,
    Recorder,
    ResNet12,
    SaveAt,
    Shot,
    TrainConfig,
    VisionTransformer,
    evaluate,
    flatten,
    gradient,
    hessian,
    hessian_of,
    learners,
    make_loss,
    meta_train,
    plan,
    record,
    seeded,
    stream,
    third_derivative,
    top_eigenpairs,
    trace,
    trajectory_from,
)
from hessian_tools.curvature.eigen.batched_lanczos import Limits
from hessian_tools.curvature.eigen.lanczos import lanczos_run
from hessian_tools.curvature.eigen.selection import Selection
from hessian_tools.curvature.engines.compiled import recorded
from hessian_tools.data import open_tasks
from hessian_tools.failures import is_out_of_memory
from hessian_tools.torch_fixes import convolutions
from hessian_tools.train import meta_train_runs, task_loss
from hessian_tools.train.outer import accumulate_gradient, is_batched
from hessian_tools.train.replay import Replay
from hessian_tools.train.task_chunks import TaskChunks
from hessian_tools.train.warm_start import first_parameters

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


ALL = COMPUTED | DERIVED | LEARNED
IMAGES = (1, 16, 16)
NETWORKS = {
    "conv4": partial(Conv4, 3, width=4, input_shape=IMAGES),
    "conv4-group": partial(Conv4, 3, width=4, input_shape=IMAGES, normalisation="group", groups=2),
    "resnet12": partial(ResNet12, 3, widths=(2, 3, 4, 5), input_shape=IMAGES),
    "vision-transformer": partial(VisionTransformer, 3, patch=8, width=8, depth=1, heads=2, input_shape=IMAGES),
    "running-statistics": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Softplus(), nn.AvgPool2d(7), nn.Flatten(), nn.Linear(12, 3)
    ).eval(),
}


@pytest.mark.parametrize("case", DEVICE_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", ALL)
def test_everything_agrees_with_the_cpu_in_float64(name, case):
    """Each operator's products and each quantity are computed from tensors on the GPU, and their results stay there."""
    result = ALL[name](place(case, "cuda"))
    assert all(tensor.device.type == "cuda" for tensor in tensors(result))
    same([tensor.cpu() for tensor in compared(result)], compared(ALL[name](place(case, "cpu"))))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_the_derivatives_of_the_cpu(name):
    """Products agree on every route, for several points and vectors at once, which makes convolutions grouped ones.

    Gradients and third derivatives agree too.
    """
    x = torch.rand(3, 6, *IMAGES, generator=stream(0, "x"), dtype=torch.float64)
    batch = (x, torch.arange(3).repeat(2).expand(3, 6).contiguous())
    model = seeded(NETWORKS[name], seed=1).double()
    theta, layout = flatten(model)
    loss, thetas = make_loss(model, F.cross_entropy, layout), theta + 0.01 * randn(3, len(theta), stream_name="gpu")
    V = randn(3, len(theta), 2, stream_name="gpu V")

    def placed(device):
        return thetas.to(device), tuple(leaf.to(device) for leaf in batch)

    on_cpu = hessian(loss, *placed("cpu"), batching="loop") @ V
    for route in ("direct", "kept", "traced"):
        H = hessian(loss, *placed("cuda"), route=route)
        same([(H @ V.cuda()).cpu()], [on_cpu])
        assert H.route == route
    numbers = []
    for device in ("cpu", "cuda"):
        g = gradient(loss, *placed(device))
        taylor = third_derivative(loss, *placed(device), g)
        numbers.append([t.cpu() for t in (g, taylor.value, taylor.first, taylor.second, taylor.third)])
    same(*reversed(numbers))


@pytest.mark.parametrize("name", ["conv4", "resnet12"])
def test_convolutions_of_several_points_are_matrix_products_and_exact(name, monkeypatch):
    """In every engine that takes points together, in float32 as in float64; at one point they are ordinary ones."""
    x = torch.rand(3, 6, *IMAGES, generator=stream(0, "x"), dtype=torch.float64)
    batch = (x.cuda(), torch.arange(3).repeat(2).expand(3, 6).contiguous().cuda())
    model = seeded(NETWORKS[name], seed=1).double()
    theta, layout = flatten(model)
    thetas = (theta + 0.01 * randn(3, len(theta), stream_name="gpu")).cuda()
    V = randn(3, len(theta), 2, stream_name="gpu V").cuda()
    exact = hessian(make_loss(model, F.cross_entropy, layout), thetas, batch, route="kept") @ V
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        errors = []
        for grouped in (False, True):
            loss = make_loss(seeded(NETWORKS[name], seed=1).to(dtype), F.cross_entropy, layout)  # no trace is known
            with monkeypatch.context() as patched:
                if grouped:
                    patched.setattr(convolutions, "pays", lambda **sizes: False)
                operators = [
                    hessian(loss, thetas.to(dtype), (batch[0].to(dtype), batch[1]), route=route)
                    for route in ("direct", "traced")
                ]
                errors += [float(((H @ V.to(dtype)).double() - exact).norm() / exact.norm()) for H in operators]
            (trace,) = operators[1].prepared.findings.traces
            targets = [str(node.target) for node in trace.vector_part.graph.nodes]
            assert any("convolution" in target for target in targets) == grouped
        assert max(errors[:2]) < max(tolerance, 3 * max(errors[2:])), errors


@pytest.mark.parametrize("name", ["conv4", "resnet12", "vision-transformer"])
@pytest.mark.parametrize("route", ["direct", "traced"])
def test_points_that_do_not_fit_together_are_computed_in_several_batches(name, route):
    """By ``max_memory``, and by a device that has only 64 MiB more than it has reserved."""
    model = seeded(NETWORKS[name], seed=1).double()
    theta, layout = flatten(model)
    loss = make_loss(model, F.cross_entropy, layout)
    thetas = (theta + 0.01 * randn(64, len(theta), stream_name="many")).cuda()
    x = torch.rand(64, 6, *IMAGES, generator=stream(0, "x"), dtype=torch.float64)
    batch = (x.cuda(), torch.arange(3).repeat(2).expand(64, 6).contiguous().cuda())
    V = randn(64, len(theta), 2, stream_name="V").cuda()
    whole = hessian(loss, thetas, batch, route=route)
    expected = whole @ V
    limit = 2**22
    same([hessian(loss, thetas, batch, route=route, max_memory=limit) @ V], [expected])
    del whole
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + 2**26) / total))
    try:
        same([hessian(loss, thetas, batch, route=route) @ V], [expected])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def record_a_product():
    """Record the product of a matrix and its gradient; the workspaces of cuBLAS that this takes stay in memory."""
    x = torch.rand(8, 8, dtype=torch.float64, device="cuda")
    recorded.capture(lambda: torch.func.grad(lambda x: (x @ x).sum())(x), x.device)


@pytest.mark.parametrize("name", ["conv4", "resnet12", "vision-transformer"])
def test_products_replayed_as_cuda_graphs_are_those_of_ordinary_calls(name, monkeypatch):
    """At all points, at some, point by point, within an eigenvalue run; and their memory is freed with the operator."""
    x = torch.rand(3, 6, *IMAGES, generator=stream(0, "x"), dtype=torch.float64)
    batch = (x.cuda(), torch.arange(3).repeat(2).expand(3, 6).contiguous().cuda())
    model = seeded(NETWORKS[name], seed=1).double()
    theta, layout = flatten(model)
    loss = make_loss(model, F.cross_entropy, layout)
    thetas = (theta + 0.01 * randn(3, len(theta), stream_name="gpu")).cuda()
    V = randn(3, len(theta), 2, stream_name="gpu V").cuda()
    ordinary = hessian(loss, thetas, batch, route="traced")
    expected, values = ordinary @ V, top_eigenpairs(ordinary, k=2, rtol=1e-8).values
    record_a_product()
    before = torch.cuda.memory_allocated()
    monkeypatch.setattr(recorded, "RECORD", True)
    H = hessian(loss, thetas, batch, route="traced")
    for _ in range(3):
        same([H @ V], [expected])
    (part,) = H.prepared.current.parts
    graphs = part.workspace.cuda_graphs.values()
    assert graphs and not any(graph.cannot_be_recorded for graph in graphs)
    same([H.select(torch.tensor([2, 0])) @ V[[2, 0]]], [expected[[2, 0]]])
    same([top_eigenpairs(H, k=2, rtol=1e-8).values], [values])
    (trace,) = H.prepared.findings.traces
    limit = 2 * (trace.kept_bytes + max(trace.work_bytes, trace.point_bytes))  # one or two points at a time
    same([hessian(loss, thetas, batch, route="traced", max_memory=limit) @ V], [expected])
    del H, part, graphs
    gc.collect()
    assert torch.cuda.memory_allocated() <= before + 2**20


def test_runs_of_several_seeds_trained_together_have_the_checkpoints_of_the_cpu(tmp_path):
    config = TrainConfig(
        learner=learners.maml(2, 0.05),
        tasks=open_tasks("quickdraw", ways=3, shots=1, queries=2),
        network=lambda: Conv4(3, width=4).double(),
        shot=Shot(weight=0.5),
        checkpoints=(0, 3),
        meta_batch=3,
        validation_tasks=2,
        optimiser="sgd",
    )
    runs = [replace(config, seed=seed, device="cuda", folder=tmp_path / str(seed)) for seed in (3, 5)]
    for found, expected in zip(zip(*meta_train_runs(runs), strict=True), (3, 5), strict=True):
        for a, b in zip(found, meta_train(replace(config, seed=expected)), strict=True):
            assert a.theta.is_cuda
            same([a.theta.cpu()], [b.theta])
            assert a.validation_loss == pytest.approx(b.validation_loss, rel=1e-6)


@pytest.mark.parametrize("name", ["conv4", "resnet12"])
def test_outer_steps_replayed_as_a_cuda_graph_are_those_of_the_cpu(name, monkeypatch):
    monkeypatch.setattr(recorded, "RECORD", True)
    config = TrainConfig(
        learner=learners.maml(2, 0.05),
        tasks=open_tasks("quickdraw", ways=3, shots=1, queries=2, image_size=16),
        network=lambda: NETWORKS[name]().double(),
        shot=Shot(weight=0.5),
        meta_batch=3,
    )
    record_a_product()
    before = torch.cuda.memory_allocated()
    replay, chunks = Replay(record_after=3), TaskChunks()
    numbers = []
    for device in ("cuda", "cpu"):
        placed = replace(config, device=device)
        loss, theta = task_loss(placed)
        theta.requires_grad_()
        on_device = {"replay": replay, "chunks": chunks} if device == "cuda" else {}
        for meta_step in range(7):
            theta.grad = None
            accumulate_gradient(placed, loss, theta, meta_step, **on_device)
        numbers.append(theta.grad.cpu())
    same(*([each] for each in numbers))
    assert replay.trace is not None and replay.checks_left == 0
    del replay, on_device, loss, theta
    gc.collect()
    assert torch.cuda.memory_allocated() <= before + 2**20


def test_out_of_memory_inside_torchscript_is_known_as_such():
    """The forward derivative of ``native_batch_norm_backward`` is written in TorchScript."""
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.Flatten(), nn.Linear(1568, 3)
    )
    theta, layout = flatten(seeded(lambda: model, seed=0))
    loss = make_loss(model, F.cross_entropy, layout)
    thetas = theta.expand(512, -1).cuda()
    batch = (torch.rand(6, 1, 16, 16).cuda(), torch.arange(6).cuda() % 3)
    V = torch.ones(512, len(theta), 1, device="cuda")
    with torch.backends.cudnn.flags(enabled=False):
        hessian(loss, thetas[:2], batch, shared=True, route="direct").products(V[:2])
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        shortages = set()
        for spare in (2**24, 2**25, 2**26, 2**27):
            torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + spare) / total))
            try:
                H = hessian(loss, thetas, batch, shared=True, route="direct", chunk=512)
                try:
                    H.products(V)
                except RuntimeError as error:
                    assert is_out_of_memory(error), error
                shortages.add(H.engine.memory.shortages)
            finally:
                torch.cuda.set_per_process_memory_fraction(1.0)
        assert max(shortages) > 0


def test_training_on_a_gpu_is_in_float32_although_torch_allows_tf32():
    """Convolutions in TF32 are off by 1e-3 and more; those in float32 agree with float64 to 1e-4."""
    assert torch.backends.cudnn.allow_tf32  # torch's default
    gradients = {}
    for reduced in (False, True):
        config = short_run(learner=learners.maml(2, 0.01), device="cuda", reduced_precision=reduced, meta_batch=2)
        config = replace(config, network=partial(Conv4, 3, width=64))
        loss, theta = task_loss(config)
        theta.requires_grad_()
        accumulate_gradient(config, loss, theta, 0)
        gradients[reduced] = theta.grad.double().cpu()
    exact_loss, exact_theta = task_loss(replace(config, device="cpu"))
    exact_loss.model.double()
    exact_theta = exact_theta.double().requires_grad_()
    accumulate_gradient(replace(config, device="cpu"), exact_loss, exact_theta, 0)
    exact = exact_theta.grad
    errors = {reduced: float((g - exact).norm() / exact.norm()) for reduced, g in gradients.items()}
    assert errors[False] < 1e-3 and errors[False] < errors[True], errors
    assert torch.backends.cudnn.allow_tf32


def test_curvature_on_a_second_card_agrees_with_the_cpu():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    pairs = top_eigenpairs(place(DEVICE_CASES[1], "cuda:1").H, k=2, rtol=1e-8)
    assert pairs.values.device == torch.device("cuda:1")
    same([pairs.values.cpu()], [top_eigenpairs(place(DEVICE_CASES[1], "cpu").H, k=2, rtol=1e-8).values])


def test_products_that_do_not_fit_into_memory_are_computed_in_smaller_pieces():
    """The process may use only 64 MiB more than it has reserved, so the pieces get smaller until they fit."""
    loss, theta, support, _ = few_shot_problem("cuda")
    thetas = theta.expand(64, -1) + 0.01 * randn(64, len(theta), stream_name="many").cuda()
    V = randn(len(theta), 4, stream_name="V").cuda()
    expected = hessian(loss, thetas, support, shared=True, route="traced") @ V
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + 2**26) / total))
    try:
        for route in ("direct", "traced"):
            same([hessian(loss, thetas, support, shared=True, route=route) @ V], [expected])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("calculation", ["product", "trace", "top_eigenpairs"])
def test_the_plan_is_the_peak_of_the_card(calculation):
    """Within 10 % or 64 MiB, for vectors of 400 MB, which are large on a card."""
    model = nn.Sequential(nn.Linear(1000, 99_000), nn.Tanh(), nn.Linear(99_000, 10)).cuda()
    batch = (torch.randn(16, 1000, generator=stream(0, "x")), torch.arange(16) % 10)
    H = hessian_of(model, F.cross_entropy, batch)
    planned = plan(H, calculation, num_probes=4)
    assert planned.counted and planned.device.startswith("cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    if calculation == "product":
        H.mv(torch.ones(H.num_params, device="cuda"))
    elif calculation == "trace":
        trace(H, num_probes=4, method="probes")
    else:
        top_eigenpairs(H, k=5, max_matvecs=30, method="lanczos")
    added = torch.cuda.max_memory_allocated() - before
    # Signs of probes, of one byte each, wait on the CPU.
    waiting = planned.added.get("probes, one byte for each sign", 0)
    assert abs(added - planned.bytes_added) <= max(0.1 * planned.bytes_added, 2**26) + waiting


def few_shot_problem(device: str):
    """A loss, its theta, and the support and query batches of a 3-way task on a device."""
    model = seeded(lambda: Conv4(3, width=4, input_shape=(1, 16, 16)), seed=1).double()
    theta, layout = flatten(model)
    x = torch.rand(9, 1, 16, 16, generator=stream(0, "x"), dtype=torch.float64)
    y = torch.arange(3).repeat(3)
    batches = [(a.to(device), b.to(device)) for a, b in ((x[:3], y[:3]), (x[3:], y[3:]))]
    return make_loss(model.to(device), F.cross_entropy, layout), theta.to(device), *batches


def test_a_loop_of_the_user_is_recorded_on_the_device_of_its_model():
    numbers = []
    for device in ("cpu", "cuda"):
        loss, _, support, query = few_shot_problem(device)
        recorder = Recorder(loss.model, F.cross_entropy, support, query=query)
        optimiser = torch.optim.SGD(loss.model.parameters(), lr=0.1)
        for _ in range(2):
            optimiser.zero_grad()
            F.cross_entropy(loss.model(support[0]), support[1]).backward()
            optimiser.step()
            recorder.step()
        t = recorder.trajectory()
        again = trajectory_from(loss, t.thetas, support)
        assert {t.grad_norm.device.type, again.grad_norm.device.type} == {device}
        numbers.append([n.cpu() for n in (t.support_loss, t.query_loss, t.gram, t.step_cosine, again.grad_norm)])
    same(*reversed(numbers))


def test_curvature_along_a_trajectory_agrees_with_the_cpu():
    numbers = []
    for device in ("cpu", "cuda"):
        loss, theta, support, query = few_shot_problem(device)
        trajectory = record(learners.maml(3, 0.1), loss, theta, support, query, save=SaveAt(thetas=True))
        H = hessian(loss, trajectory.thetas, support, shared=True)
        pairs, estimate = top_eigenpairs(H, k=3, rtol=1e-8), trace(H, num_probes=8)
        assert pairs.values.device.type == device
        numbers.append([t.cpu() for t in (trajectory.support_loss, pairs.values, estimate.value, estimate.stderr)])
    for on_cpu, on_gpu in zip(*numbers, strict=True):
        assert torch.allclose(on_cpu, on_gpu, rtol=1e-6, atol=1e-9)


def short_run(**options) -> TrainConfig:
    """The configuration of a short training run of a small network."""
    network = options.pop("network", partial(Conv4, 3, width=4))
    return TrainConfig(tasks=open_tasks("quickdraw", ways=3, shots=1, queries=2), network=network, **options)


def test_training_and_evaluation_agree_with_the_cpu():
    config = short_run(
        learner=learners.maml(2, 0.1),
        checkpoints=(0, 2),
        validation_tasks=2,
        optimiser="sgd",  # Adam's first steps follow signs, which rounding decides for tiny entries
        learning_rate=0.1,
    )
    on_cpu, on_gpu = (list(meta_train(replace(config, device=device))) for device in ("cpu", "cuda"))
    begin, end = (checkpoint.theta for checkpoint in on_cpu)
    assert on_gpu[-1].theta.device.type == "cuda"
    assert (on_gpu[-1].theta.cpu() - end).norm() < 0.05 * (end - begin).norm()
    losses = []
    for device in ("cpu", "cuda"):
        loss = task_loss(replace(config, device=device))[0]
        evaluation = evaluate(config.learner, loss, end.to(device), config.tasks, split="test", num_tasks=3, seed=0)
        losses.append(evaluation.losses.cpu())
    assert torch.allclose(*losses, rtol=1e-2)


def test_a_run_on_a_gpu_is_read_back_to_it(tmp_path):
    config = short_run(
        learner=learners.maml(1, 0.1),
        checkpoints=(0, 1),
        validation_tasks=0,
        device="cuda",
        folder=tmp_path,
    )
    first, again = list(meta_train(config)), list(meta_train(config))
    for trained, read in zip(first, again, strict=True):
        assert read.theta.device == trained.theta.device
        assert torch.equal(read.theta, trained.theta)


# Tasks at once, and the solver's waits.


def meta_gradient_on(device: str, chunks: TaskChunks | None = None, **options) -> torch.Tensor:
    """The mean meta-gradient of eight tasks in float64, followed by their query losses."""
    config = short_run(meta_batch=8, device=device, **options)
    loss, theta = task_loss(config)
    meta = first_parameters(config, loss, theta.double()).requires_grad_()
    aux = accumulate_gradient(config, loss, meta, 0, chunks=chunks)
    return torch.cat([meta.grad, torch.stack([task_aux.query_loss for task_aux in aux])]).cpu()


@pytest.mark.parametrize("shot", [None, Shot(weight=0.5)], ids=["plain", "shot"])
@pytest.mark.parametrize("learner", [learners.maml(2, 0.1), learners.boil(2, 0.1), learners.reptile(2, 0.1)])
def test_tasks_at_once_by_default_have_the_meta_gradient_of_the_cpu(learner, shot):
    config = short_run(learner=learner, device="cuda")
    assert is_batched(config, config.network())
    expected = meta_gradient_on("cpu", learner=learner, shot=shot)
    assert (meta_gradient_on("cuda", learner=learner, shot=shot) - expected).norm() < 1e-10 * expected.norm()


def test_the_memory_of_a_task_that_is_measured_is_what_the_card_holds():
    """A chunk of as many tasks as the budget allows takes no more than the budget, and not much less."""
    budget = 2**28
    options = {"learner": learners.maml(3, 0.1), "network": partial(Conv4, 3, width=64)}
    meta_gradient_on("cuda", TaskChunks(budget=budget), **options)  # cuBLAS makes its work space
    chunks = TaskChunks(budget=budget)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    meta_gradient_on("cuda", chunks, **options)
    peak = torch.cuda.max_memory_allocated() - before
    num_tasks = min(chunks.largest, 8)
    assert 0.5 * num_tasks * budget / (chunks.largest + 1) < peak < 1.3 * num_tasks * budget / chunks.largest + 2**26


def test_tasks_that_do_not_fit_on_the_card_are_computed_in_smaller_chunks():
    """A run that takes all tasks at once has less memory than they need, and goes on with half as many."""
    options = {"learner": learners.maml(3, 0.1), "network": partial(Conv4, 3, width=64), "batched": True}
    expected = meta_gradient_on("cuda", TaskChunks(largest=1), **options)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    meta_gradient_on("cuda", TaskChunks(largest=8), **options)
    needed = torch.cuda.max_memory_allocated() - before
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    chunks = TaskChunks(largest=8)
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + 0.7 * needed) / total))
    try:
        found = meta_gradient_on("cuda", chunks, **options)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert chunks.largest < 8
    assert (found - expected).norm() < 1e-10 * expected.norm()


@pytest.mark.parametrize("transductive", [True, False])
def test_an_evaluation_of_tasks_at_once_has_the_losses_of_the_cpu(transductive):
    config = short_run(learner=learners.maml(2, 0.1))
    losses = []
    for device in ("cpu", "cuda"):
        loss, theta = task_loss(replace(config, device=device))
        evaluation = evaluate(
            config.learner,
            loss,
            theta.double(),
            config.tasks,
            split="test",
            num_tasks=10,
            seed=0,
            transductive=transductive,
        )
        losses.append(evaluation.losses.cpu())
    assert torch.allclose(*losses, rtol=1e-9)


def test_the_solver_waits_for_the_card_once_in_four_steps():
    """torch itself counts the waits. The run has restarts, and its points finish at different steps."""
    A = torch.stack(
        [torch.diag((-1.0) ** torch.arange(200) * ratio ** torch.arange(200)) for ratio in (0.8, 0.9, 0.95)]
    )
    H = hessian(quadratic, torch.zeros(3, 200, device="cuda", dtype=torch.float64), A.double().cuda())
    selections, limits = (Selection("LM", 3, 1e-6),), Limits(seed=0, max_steps=200, max_basis=18)
    lanczos_run(H, selections, limits).run()  # the products are prepared
    run = lanczos_run(H, selections, limits)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            pairs = run.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    count = sum("synchronizing CUDA operation" in str(each.message) for each in waits)
    assert pairs.converged.all() and run.steps > run.basis.max_size
    assert count <= run.steps / 4 + 1


def test_the_solver_finds_the_pairs_of_the_cpu_within_their_residuals():
    loss, theta, support, _ = few_shot_problem("cpu")
    thetas = theta.expand(6, -1) + 0.01 * randn(6, len(theta), stream_name="solver")
    solve = partial(top_eigenpairs, k=4, rtol=1e-5, method="lanczos", copies=True, max_matvecs=400)
    on_cpu = solve(hessian(loss, thetas, support, shared=True))
    gpu_loss, _, gpu_support, _ = few_shot_problem("cuda")
    on_gpu = solve(hessian(gpu_loss, thetas.cuda(), gpu_support, shared=True))
    assert on_gpu.converged.all() and on_gpu.complete.all()
    apart = (on_gpu.values.cpu() - on_cpu.values).abs()
    assert (apart <= on_gpu.residuals.cpu() + on_cpu.residuals + 1e-10).all()


def test_two_workers_train_and_measure_a_study_on_one_card(tmp_path):
    result = run_study("micro", out=tmp_path / "study", workers=2, device="cuda")
    assert bool(np.isfinite(result.dataset["evaluation_loss"].sel(learner="maml")).all())
