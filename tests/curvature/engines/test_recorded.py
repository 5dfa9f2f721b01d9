"""Products that are recorded and replayed on a GPU, tested with a recorder that behaves like one."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from cases import NETWORKS, randn
from contract import close
from graph_recorder import Recorder

from hessian_tools.curvature import hessian, top_eigenpairs
from hessian_tools.curvature.engines.compiled import compiled_products, recorded
from hessian_tools.curvature.engines.compiled.compiled_products import Traced
from hessian_tools.curvature.engines.compiled.recorded import RecordedGraph

MLP = NETWORKS[0]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Products are recorded on the CPU too, by the recorder that is returned."""
    found = Recorder()
    monkeypatch.setattr(recorded, "capture", found)
    monkeypatch.setattr(recorded, "switched_on", lambda device: True)
    return found


def test_recording_is_off_and_never_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not recorded.switched_on(torch.device("cuda"))
    monkeypatch.setattr(recorded, "RECORD", True)
    assert recorded.switched_on(torch.device("cuda")) and not recorded.switched_on(torch.device("cpu"))


def test_a_replay_has_the_vectors_and_the_kept_tensors_of_its_call(recorder: Recorder) -> None:
    graph = RecordedGraph(lambda v, a, b: a @ v + b)
    first, second = ((randn(3, 3, stream_name=f"a{i}"), randn(3, stream_name=f"b{i}")) for i in range(2))
    before = [t.clone() for t in (*first, *second)]
    results = []
    for i, (a, b) in enumerate([first, first, second, first, second, second]):
        v = randn(3, stream_name=f"v{i}")
        results.append((graph(v, a, b), a @ v + b))
    for found, expected in results:  # a later call leaves the results of earlier ones alone
        assert torch.equal(found, expected)
    # One recording reads the first kept tensors in place, another one copies of whatever is given.
    assert (recorder.recordings, recorder.replays) == (2, 6)
    assert all(torch.equal(t, was) for t, was in zip((*first, *second), before, strict=True))


def test_kept_tensors_at_an_address_that_was_used_before_are_copied_again(recorder: Recorder) -> None:
    graph = RecordedGraph(lambda v, a: a * v)
    v = torch.ones(4)
    for factor in range(20):  # a new tensor each time, often where the one before was
        assert torch.equal(graph(v, torch.full((4,), float(factor))), factor * v)


def test_what_cannot_be_recorded_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(run: object, device: object) -> object:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(recorded, "capture", refuse)
    graph = RecordedGraph(lambda v, a: a * v)
    for _ in range(2):
        assert torch.equal(graph(torch.ones(2), torch.ones(2)), torch.ones(2))

    def no_memory(run: object, device: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory (planted)")

    monkeypatch.setattr(recorded, "capture", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        RecordedGraph(lambda v, a: a * v)(torch.ones(2), torch.ones(2))


@pytest.mark.slow
def test_operators_with_recordings_have_the_same_products(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    V = randn(3, MLP.thetas.shape[1], 3, stream_name="recorded V")
    H = hessian(MLP.loss, MLP.thetas, MLP.batch, route="traced")
    for _ in range(3):
        close(H @ V, MLP.dense @ V)
        close(H.mv(V[..., 0]), (MLP.dense @ V)[..., 0])
    assert recorder.recordings == 3  # for one and for three probes, and for the check of the trace
    some = H.select(torch.tensor([2, 0]))
    close(some @ V[[2, 0]], MLP.dense[[2, 0]] @ V[[2, 0]])
    assert recorder.replays > 6
    pairs = top_eigenpairs(H, k=3, rtol=1e-8)
    close(pairs.values, top_eigenpairs(hessian(MLP.loss, MLP.thetas, MLP.batch, route="kept"), k=3, rtol=1e-8).values)
    # Points one by one and in blocks share a recording, whose copies are filled for each of them.
    for together in (1, 2):
        monkeypatch.setattr(Traced, "_fitting", lambda *args, together=together: together)
        H = hessian(MLP.loss, MLP.thetas, MLP.batch, route="traced")
        for _ in range(2):
            close(H @ V, MLP.dense @ V)


@pytest.mark.slow
def test_recordings_are_freed_with_their_operator(recorder: Recorder) -> None:
    H = hessian(MLP.loss, MLP.thetas, MLP.batch, route="traced")
    H.mv(randn(3, MLP.thetas.shape[1], stream_name="freed"))
    (part,) = H.prepared.current.parts
    freed = weakref.ref(next(iter(part.workspace.cuda_graphs.values())))
    del H, part
    gc.collect()
    assert freed() is None


def test_copies_of_kept_tensors_are_counted_where_products_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    trace, gpu = Traced(tuple, torch.neg, kept_bytes=2**20, work_bytes=2**20, largest=2**28), torch.device("cuda")
    assert trace.working_bytes(gpu, None) == 2**20
    monkeypatch.setattr(compiled_products.recorded, "RECORD", True)
    assert trace.working_bytes(gpu, None) == 2**21
    # Two points with their copies fit in half of this budget; four would without the copies.
    assert replace(trace, largest=1).working_bytes(gpu, 2**23) == 2 * 2**21
