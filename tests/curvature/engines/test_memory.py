"""The memory of a device: how much work fits together, and what happens when the device runs out of memory."""

import weakref
from collections import namedtuple

import pytest
import torch
from cases import NETWORKS, randn, relu_mlp
from contract import close
from kept_memory import bytes_kept
from torch import Tensor

from hessian_tools.curvature import hessian
from hessian_tools.curvature.engines.compiled import compiled_products
from hessian_tools.curvature.engines.compiled.compiled_products import Stacked, Traced
from hessian_tools.curvature.engines.memory import MEMORY_BUDGET, MemoryBudget, memory_budget

CONV, RELU = NETWORKS[1], relu_mlp()


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
def test_running_out_of_memory_in_a_graph_is_not_mistaken_for_a_refusal_by_vmap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loss, batch = RELU.loss, tuple(leaf.repeat_interleave(7, dim=0) for leaf in RELU.batch)
    thetas = RELU.thetas.repeat_interleave(7, dim=0)
    V = randn(thetas.shape[1], 1, stream_name="V")
    expected = hessian(loss, thetas, batch, route="kept") @ V
    batched_graph, sizes = compiled_products.batched_graph, []

    def scarce(vector: object, V: Tensor, *rest: object, points: bool, probes: bool) -> object:
        sizes.append(len(V) if points else 1)
        if sizes[-1] > 5:
            raise torch.OutOfMemoryError("CUDA out of memory (planted)")
        return batched_graph(vector, V, *rest, points=points, probes=probes)

    monkeypatch.setattr(compiled_products, "batched_graph", scarce)
    H = hessian(loss, thetas, batch, route="traced")
    close(H @ V, expected)
    assert H.engine.memory.refusals == 2
    assert 1 < sizes[-1] <= 5  # several points are still computed together, only fewer


@pytest.mark.heavy
def test_tensors_kept_for_all_points_are_freed_if_their_products_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    V = randn(CONV.thetas.shape[1], 2, stream_name="V")
    products = Stacked.products

    def scarce(stacked: Stacked, V: Tensor) -> Tensor:
        if len(V) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory (planted)")
        return products(stacked, V)

    monkeypatch.setattr(Stacked, "products", scarce)
    H = hessian(CONV.loss, CONV.thetas, CONV.batch, route="traced")
    close(H @ V, CONV.dense @ V)
    assert H.engine.memory.refusals == 1
    assert bytes_kept(H.prepared) == 0


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
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card(sizes[device.index]))
    assert memory_budget(torch.device("cuda:0")) == MEMORY_BUDGET["cuda"]
    assert memory_budget(torch.device("cuda:1")) == int(0.2 * 8 * 2**30)
    assert memory_budget(torch.device("mps")) == memory_budget(torch.device("cpu")) == MEMORY_BUDGET["cpu"]
