"""Products replayed as a CUDA graph: their operations are recorded once, and each product launches all with one call.

Launching the operations of a product takes a few milliseconds, which is longer than a GPU takes to compute them for
small networks or few points. A prototype on an H200 was 12 to 15 times as fast for 100 MLPs, twice as fast for 32
Conv4-64 on 28x28 images, and no faster for 256 of them.

This is off, because it has not run on a GPU since it was written; ``python -m benchmarks.gpu`` measures it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hessian_tools.failures import is_out_of_memory

# Whether products on CUDA are recorded and replayed.
RECORD = False

Replay = Callable[[], object]


def records(device: torch.device) -> bool:
    """Whether products on this device are recorded."""
    return RECORD and device.type == "cuda"


def record(run: Callable[[], Tensor], device: torch.device) -> tuple[Replay, Tensor]:
    """Records the operations of a function without arguments.

    Returns a function that replays them at the same addresses, and the tensor that each replay writes.
    """
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()  # libraries prepare themselves at their first call, which must not be recorded
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = run()
    return graph.replay, result


class RecordedGraph:
    """The graph of a product, for one number of points and probes, as a function ``(V, *kept) -> products``.

    A recording reads its inputs where they were when it was made. V is copied there before each replay. The kept
    tensors are read where they lie as long as they are the same; once others are given, the recording is made anew with
    copies of its own, which are then filled with the kept tensors of each call.

    The recording, its memory and its copies are freed with this object. Where the operations cannot be recorded, they
    run as they are.
    """

    def __init__(self, run: Callable[..., Tensor]) -> None:
        self.run = run
        self.replay: Replay | None = None
        self.inputs: tuple[Tensor, ...] = ()
        self.result: Tensor | None = None
        self.kept: tuple[Tensor, ...] = ()  # those in the inputs now; held, so that their addresses stay theirs
        self.has_copies = self.cannot_be_recorded = False

    def __call__(self, V: Tensor, *kept: Tensor) -> Tensor:
        """The products with V."""
        if self.cannot_be_recorded:
            return self.run(V, *kept)
        if self.replay is None:
            return self._first(V, *kept)
        if not _same(self.kept, kept):
            if not self.has_copies:
                self.has_copies = True
                return self._first(V, *(t.clone() for t in kept), given=kept)
            for own, given in zip(self.inputs[1:], kept, strict=True):
                own.copy_(given)
            self.kept = kept
        self.inputs[0].copy_(V)
        self.replay()
        assert self.result is not None
        return self.result.clone()

    def _first(self, V: Tensor, *kept: Tensor, given: tuple[Tensor, ...] | None = None) -> Tensor:
        """Makes the recording that reads V and these kept tensors, and returns the products.

        given: the tensors that the kept ones are copies of, or None if they are no copies.
        """
        self.replay = self.result = None  # an earlier recording is freed before the next one takes memory
        self.inputs, self.kept = (V.clone(), *kept), given or kept
        try:
            self.replay, self.result = record(lambda: self.run(*self.inputs), V.device)
        except RuntimeError as error:
            self.inputs, self.kept = (), ()
            if is_out_of_memory(error):
                raise
            self.cannot_be_recorded = True  # such as an operation that waits for the GPU
            return self.run(V, *kept)
        self.replay()
        return self.result.clone()


def _same(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    """Whether the tensors of both lie at the same addresses and have the same form."""
    return all(
        a is b or (a.data_ptr(), a.shape, a.stride()) == (b.data_ptr(), b.shape, b.stride())
        for a, b in zip(one, other, strict=True)
    )
