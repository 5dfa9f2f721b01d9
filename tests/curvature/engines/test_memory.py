"""The memory of a device: how much work fits together, and what happens when the device runs out of memory."""

import weakref
from collections import namedtuple
from collections.abc import Callable
from functools import partial

import pytest
import torch
from cases import NETWORKS, randn, relu_mlp
from contract import close
from kept_memory import bytes_kept
from torch import Tensor
from torch.nn import functional as F

from hessian_tools.curvature import gradient, hessian
from hessian_tools.curvature.engines import direct, engine
from hessian_tools.curvature.engines.compiled import compiled_products, trace_cache
from hessian_tools.curvature.engines.compiled.compiled_products import Stacked, Traced
from hessian_tools.curvature.engines.memory import (
    FORWARDS_PER_PRODUCT,
    KEPT_FORWARDS,
    MEMORY_BUDGET,
    MemoryBudget,
    memory_budget,
)
from hessian_tools.curvature.engines.partial_products import PiecewiseProducts
from hessian_tools.curvature.engines.torch_errors import explained
from hessian_tools.failures import is_out_of_memory, says_enough
from hessian_tools.layout import flatten
from hessian_tools.loss import Loss, make_loss
from hessian_tools.nets import Conv4, ResNet12, VisionTransformer, seeded

CONV, RELU = NETWORKS[1], relu_mlp()
# The two errors of torch that say so; the second is that of a derivative that is written in TorchScript.
OUT_OF_MEMORY = [
    partial(torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2.00 GiB (planted)"),
    partial(
        RuntimeError,
        "The following operation failed in the TorchScript interpreter.\nTraceback of TorchScript (most recent call "
        "last):\nRuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB (planted)",
    ),
]
out_of_memory = pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["OutOfMemoryError", "TorchScript"])


def fresh_loss() -> Loss:
    """The loss of RELU, of which no trace is known."""
    return make_loss(RELU.loss.model, RELU.loss.criterion, RELU.loss.layout)


@pytest.mark.parametrize("budget", [2.0, 3.0, 10.0, 100.0])
def test_the_work_of_many_points_on_a_gpu_leaves_memory_for_kept_tensors(budget: float) -> None:
    """On a GPU hundreds of points are computed together. The memory of their work once exceeded the budget."""
    work, gpu = 3 * 2**20, torch.device("cuda")
    trace = Traced(tuple, torch.neg, kept_bytes=2**20, work_bytes=work, point_bytes=2**20, largest=2**18)
    max_memory = int(budget * work)
    assert trace.working_bytes(gpu, None) == 1024 * work
    assert work <= trace.working_bytes(gpu, max_memory) <= max_memory / 2
    assert trace.probes_together(gpu, max_memory) == min(16, int(budget / 2))
    assert trace.probes_together(gpu, None) == 16
    prepared = hessian(CONV.loss, CONV.thetas, CONV.batch, route="traced", max_memory=max_memory).prepared
    prepared.findings.traces = (trace,)
    assert prepared.fitting_points("compiled") * 2**20 >= max_memory / 2 - 2**20


@pytest.mark.slow
@out_of_memory
def test_running_out_of_memory_in_a_graph_is_not_mistaken_for_a_refusal_by_vmap(
    monkeypatch: pytest.MonkeyPatch, error: Callable[[], RuntimeError]
) -> None:
    loss, batch = fresh_loss(), tuple(leaf.repeat_interleave(7, dim=0) for leaf in RELU.batch)
    thetas = RELU.thetas.repeat_interleave(7, dim=0)
    V = randn(thetas.shape[1], 1, stream_name="V")
    expected = hessian(loss, thetas, batch, route="kept") @ V
    batched_graph, sizes = compiled_products.batched_graph, []

    def scarce(vector: object, V: Tensor, *rest: object, points: bool, **options: bool) -> object:
        sizes.append(len(V) if points else 1)
        if sizes[-1] > 5:
            raise error()
        return batched_graph(vector, V, *rest, points=points, **options)

    monkeypatch.setattr(compiled_products, "batched_graph", scarce)
    H = hessian(loss, thetas, batch, route="traced")
    close(H @ V, expected)
    assert H.engine.memory.shortages == 2
    assert 1 < sizes[-1] <= 5  # several points are still computed together, only fewer


@pytest.mark.heavy
@out_of_memory
def test_tensors_kept_for_all_points_are_freed_if_their_products_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, error: Callable[[], RuntimeError]
) -> None:
    V = randn(CONV.thetas.shape[1], 2, stream_name="V")
    products = Stacked.products

    def scarce(stacked: Stacked, V: Tensor) -> Tensor:
        if len(V) > 2:
            raise error()
        return products(stacked, V)

    monkeypatch.setattr(Stacked, "products", scarce)
    H = hessian(CONV.loss, CONV.thetas, CONV.batch, route="traced")
    close(H @ V, CONV.dense @ V)
    assert H.engine.memory.shortages == 1
    assert bytes_kept(H.prepared) == 0


IMAGES = (1, 16, 16)
SMALL_NETWORKS = {
    "conv4": partial(Conv4, 3, width=4, input_shape=IMAGES),
    "resnet12": partial(ResNet12, 3, widths=(2, 3, 4, 5), input_shape=IMAGES),
    "vision-transformer": partial(VisionTransformer, 3, patch=8, width=8, depth=1, heads=2, input_shape=IMAGES),
}


@pytest.mark.heavy
@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_points_that_do_not_fit_together_are_computed_in_several_batches(name: str) -> None:
    theta, layout = flatten(seeded(SMALL_NETWORKS[name], seed=1).double())
    loss = make_loss(seeded(SMALL_NETWORKS[name], seed=1).double(), F.cross_entropy, layout)
    thetas = theta + 0.01 * randn(5, len(theta), stream_name="several")
    batch = (randn(5, 6, *IMAGES, stream_name="several x"), torch.arange(3).repeat(2).expand(5, 6).contiguous())
    V = randn(5, len(theta), 2, stream_name="several V")
    expected = hessian(loss, thetas, batch, route="direct", batching="loop") @ V
    whole = hessian(loss, thetas, batch, route="traced")
    close(whole @ V, expected)
    (trace,) = whole.prepared.findings.traces
    # One to three points fit, so that the five are computed in several batches.
    limit = max(trace.work_bytes, trace.point_bytes) + 2 * trace.kept_bytes
    for route, max_memory in (("traced", limit), ("kept", 2.5 * KEPT_FORWARDS * whole.prepared._forward())):
        H = hessian(loss, thetas, batch, route=route, max_memory=max_memory)
        close(H @ V, expected)
        assert isinstance(H.prepared.current, PiecewiseProducts) and H.prepared.current.at_once <= 3
    H = hessian(loss, thetas, batch, route="direct", max_memory=4.5 * FORWARDS_PER_PRODUCT * whole.prepared._forward())
    close(H @ V, expected)
    assert H.prepared.current.at_once == 4  # of ten products


@out_of_memory
def test_every_place_that_meets_such_an_error_takes_it_for_a_lack_of_memory(
    monkeypatch: pytest.MonkeyPatch, error: Callable[[], RuntimeError]
) -> None:
    """It is neither explained otherwise nor answered by another engine: less is computed at once, or it is raised."""
    raised_here = error()
    assert is_out_of_memory(raised_here) and says_enough(raised_here) and explained(raised_here) is raised_here
    assert MemoryBudget().in_pieces(4, partial(_refuse, error, more_than=2), at_once=4) == [2, 2]

    def no_memory(*arguments: object, **options: object) -> object:
        raise error()

    V = randn(RELU.thetas.shape[1], 2, stream_name="V")
    for where, name, route in [
        (trace_cache, "split_product", "traced"),  # while a trace is made
        (direct, "own_memory", "direct"),
        (engine, "weighted_sum", "gradient"),
    ]:
        loss = fresh_loss()
        with monkeypatch.context() as patched, pytest.raises(RuntimeError) as raised:
            patched.setattr(where, name, no_memory)
            if route == "gradient":
                gradient(loss, RELU.thetas, RELU.batch)
            else:
                hessian(loss, RELU.thetas[:2], tuple(leaf[:2] for leaf in RELU.batch), route=route) @ V
        assert is_out_of_memory(raised.value) and "(planted)" in str(raised.value), name
    # The kept tensors of several points do not fit together, so those of one point at a time are computed.
    monkeypatch.setattr(Traced, "_point_parts", no_memory)
    H = hessian(fresh_loss(), RELU.thetas[:2], tuple(leaf[:2] for leaf in RELU.batch), route="traced")
    close(H @ V, RELU.dense[:2] @ V)
    assert H.engine.memory.shortages == 1


def _refuse(error: Callable[[], RuntimeError], rows: slice, *, more_than: int) -> int:
    """The number of rows. Raises the error for more than so many."""
    size = rows.stop - rows.start
    if size > more_than:
        raise error()
    return size


def test_another_error_is_no_lack_of_memory() -> None:
    text = "The following operation failed in the TorchScript interpreter: shape '[2]' is invalid"
    other = partial(RuntimeError, text)
    assert not is_out_of_memory(other()) and not is_out_of_memory(ValueError("out of memory"))
    with pytest.raises(RuntimeError, match="shape"):
        MemoryBudget().in_pieces(4, partial(_refuse, other, more_than=2), at_once=4)


def test_tensors_of_a_failed_attempt_are_freed_before_the_cache_is_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    made: list[weakref.ref[Tensor]] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: seen.append(made[-1]() is None))

    def piece(rows: slice) -> int:
        activations = torch.zeros(3)
        made.append(weakref.ref(activations))
        if rows.stop - rows.start > 1:
            raise torch.OutOfMemoryError
        return 1

    assert MemoryBudget().in_pieces(4, piece, at_once=4) == [1, 1, 1, 1]
    assert seen == [True, True]


def test_the_budget_on_a_small_card_is_a_share_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    sizes = {0: 80 * 2**30, 1: 8 * 2**30}
    card = namedtuple("card", "total_memory")
    current = 1
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda device: card(sizes[current if device.index is None else device.index]),
    )
    assert memory_budget(torch.device("cuda:0")) == MEMORY_BUDGET["cuda"]
    assert memory_budget(torch.device("cuda:1")) == int(0.2 * 8 * 2**30)
    assert memory_budget(torch.device("mps")) == memory_budget(torch.device("cpu")) == MEMORY_BUDGET["cpu"]
    # A process that torch keeps to a tenth of a card plans with that tenth.
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda index: {0: 0.1, 1: 1.0}[index])
    assert memory_budget(torch.device("cuda:0")) == int(0.2 * 8 * 2**30)
    assert memory_budget(torch.device("cuda:1")) == int(0.2 * 8 * 2**30)
    # A device without an index is the current card, with that card's share.
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda index: {0: 0.1, 1: 0.5}[index])
    assert memory_budget(torch.device("cuda")) == int(0.2 * 4 * 2**30)
