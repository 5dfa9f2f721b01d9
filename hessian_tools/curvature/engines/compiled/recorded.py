"""Products replayed as a CUDA graph: their operations are recorded once, and each product launches all with one call.

Launching the operations of a product takes a few milliseconds. For small networks or few points a GPU computes the
operations in less time than that. A prototype on an H200 was 12 to 15 times as fast as products without recording at
100 points of an MLP, twice as fast at 32 points of a network of four convolutions with 64 channels on 28x28 images, and
no faster at 256 points of that network.

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

    Returns a function that replays the operations at the same addresses, and the tensor that each replay writes.
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

    kept: the tensors that a product needs besides V. Many products use the same ones.

    A recording reads its inputs at the addresses at which they lay when it was made. V is copied there before each
    replay. The first recording reads the kept tensors themselves. Once a call gives other kept tensors, a second
    recording is made, which reads copies of them. The copies are overwritten whenever the kept tensors change again.

    The recording, its memory and its copies are freed with this object. Operations that cannot be recorded run without
    a recording.
    """

    def __init__(self, run: Callable[..., Tensor]) -> None:
        self.run = run
        self.replay: Replay | None = None
        self.inputs: tuple[Tensor, ...] = ()
        self.result: Tensor | None = None
        # The kept tensors whose numbers the inputs have now. They are held, because the address of a freed tensor could
        # be given to another one, which would then be taken for the same.
        self.kept: tuple[Tensor, ...] = ()
        self.has_copies = self.cannot_be_recorded = False

    def __call__(self, V: Tensor, *kept: Tensor) -> Tensor:
        """The products with V."""
        if self.cannot_be_recorded:
            return self.run(V, *kept)
        if self.replay is None:
            return self._record(V, kept, kept)
        if not _same(self.kept, kept):
            if not self.has_copies:
                self.has_copies = True
                return self._record(V, kept, tuple(t.clone() for t in kept))
            for copy, given in zip(self.inputs[1:], kept, strict=True):
                copy.copy_(given)
            self.kept = kept
        self.inputs[0].copy_(V)
        self.replay()
        assert self.result is not None
        return self.result.clone()

    def _record(self, V: Tensor, kept: tuple[Tensor, ...], read: tuple[Tensor, ...]) -> Tensor:
        """Makes a recording, and returns the products with V.

        read: the tensors that the recording reads at each replay: the kept tensors or copies of them.
        """
        self.replay = self.result = None  # an earlier recording is freed before the next one takes memory
        self.inputs, self.kept = (V.clone(), *read), kept
        try:
            self.replay, self.result = record(lambda: self.run(*self.inputs), V.device)
        except RuntimeError as error:
            self.inputs, self.kept = (), ()
            if is_out_of_memory(error):
                raise
            self.cannot_be_recorded = True  # for example, because an operation waits for the GPU
            return self.run(V, *kept)
        self.replay()
        return self.result.clone()


def _same(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    """Whether the tensors of both lie at the same addresses and have the same form."""
    return all(
        a is b or (a.data_ptr(), a.shape, a.stride()) == (b.data_ptr(), b.shape, b.stride())
        for a, b in zip(one, other, strict=True)
    )
