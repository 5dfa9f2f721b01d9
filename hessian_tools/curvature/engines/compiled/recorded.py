"""Functions replayed as a CUDA graph: their operations are recorded once, and each call launches all of them together.

Products and the outer steps of meta-training are replayed in this way. Launching their operations one by one takes a
few milliseconds. For small networks or few points a GPU computes the operations in less time than that. A prototype on
an H200 computed products at 100 points (parameter vectors) of an MLP 12 to 15 times as fast as without recording, at 32
points of a network of four convolutions with 64 channels on 28x28 images twice as fast, and at 256 points of that
network no faster.

This is off, because it has not run on a GPU since it was written; ``python -m benchmarks.gpu`` measures it.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hessian_tools.failures import is_out_of_memory

# Whether products and outer steps on CUDA are recorded and replayed.
RECORD = False

Replay = Callable[[], object]


def switched_on(device: torch.device) -> bool:
    """Whether products and outer steps on this device are recorded."""
    return RECORD and device.type == "cuda"


def capture(run: Callable[[], Any], device: torch.device) -> tuple[Replay, Any]:
    """Records the operations of a function without arguments, whose result is a tensor or a nesting of tensors.

    Returns two things: a function that runs the operations again on the tensors that ``run`` has read here, and the
    result of ``run``, whose tensors are overwritten each time.
    """
    with torch.cuda.device(device):
        stream = _stream(device)
        stream.wait_stream(torch.cuda.current_stream())
        # Where recording fails, torch.cuda.graph does not go back to the stream from before, but this block does.
        with torch.cuda.stream(stream):
            run()  # libraries prepare themselves at their first call, which must not be recorded
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                result = run()
        torch.cuda.current_stream().wait_stream(stream)
    return graph.replay, result


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which all recordings of a GPU are made.

    Torch keeps a workspace of cuBLAS for each stream on which a matrix product ran, until the process ends; on an H100
    it takes 32 MiB. One that was made while a graph was recorded would lie in the memory of that graph. All recordings
    and the calls that precede them therefore share one stream, and with it one workspace.
    """
    return torch.cuda.Stream(device)


class RecordedGraph:
    """A function ``run(given, *kept)`` on a GPU whose operations are the same at each call, replayed from a recording.

    A product with a curvature matrix is given the vectors V, and keeps the tensors that it needs besides V. Each
    number of points and of vectors has an object of its own, because its operations have other shapes. An outer step
    of meta-training is given its parameters and its tasks, and keeps nothing.

    given: a tensor or a nesting of tensors, with other numbers at each call. kept: tensors that are the same at many
    calls. The shapes of all are those of the first call. The result is a tensor or a nesting of tensors.

    A recording reads its inputs at the addresses at which they lay when it was made. What is given is copied there
    before each replay. The first recording reads the kept tensors themselves. Once a call gives kept tensors at other
    addresses, a second recording is made, which reads copies of them. The copies are filled anew whenever a call gives
    tensors at other addresses than the call before. Kept tensors must not be changed in place, because the copies would
    not follow.

    The recording, its memory and its copies are freed with this object. Operations that cannot be recorded run without
    a recording. Where the memory for a recording is missing, OutOfMemoryError is raised.
    """

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run = run
        self.replay: Replay | None = None
        self.inputs: tuple[Any, ...] = ()
        self.result: Any = None
        # The kept tensors of the call before, whose numbers ``inputs`` has now. They are not freed until the next call,
        # because torch could give the address of a freed tensor to another one, which ``_same`` would take for it.
        self.kept: tuple[Tensor, ...] = ()
        self.has_copies = self.cannot_be_recorded = False

    def __call__(self, given: Any, *kept: Tensor) -> Any:
        """The function's result."""
        if self.cannot_be_recorded:
            return self.run(given, *kept)
        if self.replay is None:
            return self._make_recording(given, kept, kept)
        if not _same(self.kept, kept):
            if not self.has_copies:
                self.has_copies = True
                return self._make_recording(given, kept, _copied(kept))
            _copy_into(self.inputs[1:], kept)
            self.kept = kept
        _copy_into(self.inputs[0], given)
        self.replay()
        return _copied(self.result)

    def _make_recording(self, given: Any, kept: tuple[Tensor, ...], read: tuple[Tensor, ...]) -> Any:
        """Makes a recording, and returns the result of its first replay.

        read: the tensors that the recording reads at each replay: the kept tensors or copies of them.
        """
        self.replay = self.result = None  # an earlier recording is freed before the next one takes memory
        self.inputs, self.kept = (_copied(given), *read), kept
        try:
            device = pytree.tree_leaves(given)[0].device
            self.replay, self.result = capture(lambda: self.run(*self.inputs), device)
        except RuntimeError as error:
            self.inputs, self.kept = (), ()
            if is_out_of_memory(error):
                raise
            self.cannot_be_recorded = True  # for example, because an operation waits for the GPU
            return self.run(given, *kept)
        self.replay()
        return _copied(self.result)


def _copied(tree: Any) -> Any:
    """The same nesting with copies of its tensors."""
    return pytree.tree_map(torch.clone, tree)


def _copy_into(places: Any, tree: Any) -> None:
    """Copy the numbers of the tensors of a nesting into those of another one."""
    for place, tensor in zip(pytree.tree_leaves(places), pytree.tree_leaves(tree), strict=True):
        place.copy_(tensor)


def _same(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    """Whether the tensors of both lie at the same addresses and have the same form."""
    return all(
        a is b or (a.data_ptr(), a.shape, a.stride()) == (b.data_ptr(), b.shape, b.stride())
        for a, b in zip(one, other, strict=True)
    )
