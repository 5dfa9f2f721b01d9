"""Matrix-vector products by a trace, which is the sequence of the operations of one product.

The part of the trace that does not depend on the vector is computed once for each point, and its results are kept.
"Recorded" means something else here: on a GPU the operations can be recorded as a CUDA graph (see ``recorded``).
For small networks many points are stacked and computed together. For large ones points are computed one by one, because
a batch of points would gain nothing and its intermediate results would not fit in the caches.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import ceil, log2

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from hessian_tools.curvature.engines.compiled import recorded
from hessian_tools.curvature.engines.compiled.batched_graph import BatchedGraph, batched_graph
from hessian_tools.curvature.engines.compiled.inductor import compiled_size
from hessian_tools.curvature.engines.compiled.memory_plan import Buffer
from hessian_tools.curvature.engines.compiled.recorded import RecordedGraph
from hessian_tools.curvature.objective.objective import Objective
from hessian_tools.failures import is_out_of_memory
from hessian_tools.loss import Batch

# Points, and probes of one point, are computed together as long as the largest intermediate result has no more bytes
# than this. On the CPU a result that does not fit in the caches costs more time than fewer, larger operations save.
# Measured times of a product at one point, with 1, 4 and 16 points together: 8.7, 7.8 and 10.7 ms for a network of four
# convolutions with 64 channels on 28x28 images, whose largest result at a point has 1 MB; 0.15, 0.018 and 0.009 ms for
# an MLP 1-40-40-1.
POINTS_TOGETHER = {"cpu": 2**22, "cuda": 2**28}
PROBES_TOGETHER = {"cpu": 2**20, "cuda": 2**28}
MAX_PROBES_TOGETHER = 16
# How many batched graphs of one trace are kept. Each is for one number of points and one number of probes.
MAX_GRAPHS = 64


@dataclass
class Workspace:
    """Memory and CUDA graphs that all products of an operator use.

    buffers: memory for the buffers of batched graphs; the key is the number of the buffer in its graph, and its shape,
    strides, dtype and device.
    cuda_graphs: batched graphs that are replayed on a GPU (see ``recorded``), by their numbers of points and probes.
    """

    buffers: dict[tuple[int, Buffer], Tensor] = field(default_factory=dict)
    cuda_graphs: dict[tuple[int, int], RecordedGraph] = field(default_factory=dict)


@dataclass(frozen=True)
class Traced:
    """A traced product, split into a part that depends only on the point and a part that depends on the vector.

    point_part: ``point_part(theta, *batch tensors) -> kept``, the tensors that the other part needs.
    vector_part: ``vector_part(v, *kept) -> product``.

    The sizes are bytes for one point and one vector. kept_bytes: the size of the kept tensors. work_bytes and
    point_bytes: the peak memory of the vector part and of the point part. largest: the size of the largest tensor in
    the vector part. compile: True if Inductor compiles the vector part. _graphs: the batched graphs of the vector part,
    by number of points, number of probes and ``compile``; None where vmap refuses an operation.
    """

    point_part: Callable[..., tuple[Tensor, ...]]
    vector_part: Callable[..., Tensor]
    kept_bytes: int = 0
    work_bytes: int = 0
    point_bytes: int = 0
    largest: int = 0
    compile: bool = False
    _graphs: "OrderedDict[tuple[int, int, bool], BatchedGraph | None]" = field(default_factory=OrderedDict)

    @torch.no_grad()
    def prepare(
        self, thetas: Float[Tensor, "point param"], batch: Batch, *, shared: bool, budget: int | None = None
    ) -> "Stacked | PointByPoint":
        """Computes the point part at every point.

        shared: True if all points have the same batch; otherwise its tensors have a leading point axis. budget: bytes
        for the kept tensors and for the work on them; None for no limit.
        """
        together = min(len(thetas), self._fitting(POINTS_TOGETHER, thetas.device, budget))
        probes = self.probes_together(thetas.device, budget)
        if together > 1:
            try:
                kept = self._point_parts(thetas, batch, shared, together)
                # The thetas stand in for vectors, of which a graph needs only the shape.
                if self.graph(thetas[:together, :, None], tuple(t[:together] for t in kept)) is not None:
                    return Stacked(self, kept, together, torch.arange(len(thetas), device=thetas.device), probes)
            except RuntimeError as error:  # vmap refuses an operation, but one point at a time works
                if is_out_of_memory(error):
                    raise
        leaves = tensors_of(batch)
        points = [self.point_part(t, *(leaf if shared else leaf[i] for leaf in leaves)) for i, t in enumerate(thetas)]
        return PointByPoint(self, tuple(points), probes)

    def probes_together(self, device: torch.device, budget: int | None) -> int:
        """How many products are computed at once: the number of points times the number of columns for each of them."""
        return min(MAX_PROBES_TOGETHER, self._fitting(PROBES_TOGETHER, device, budget))

    def graph(self, V: Tensor, kept: tuple[Tensor, ...]) -> BatchedGraph | None:
        """The graph of the vector part for as many points and probes as V [point, param, probe] has.

        kept: the kept tensors of these points, without a point axis if there is one point. Returns None if vmap refuses
        an operation.
        """
        key = V.shape[0], V.shape[-1], self.compile
        if key not in self._graphs:
            v = V.squeeze((0, -1)).contiguous()  # a graph has no axis of points or of probes that has length one
            points, probes = key[0] > 1, key[1] > 1
            try:
                graph = batched_graph(self.vector_part, v, kept, points=points, probes=probes, compile=self.compile)
            except Exception as error:  # vmap refuses an operation, but one point or vector at a time works
                if not (points or probes) or is_out_of_memory(error):
                    raise
                graph = None
            self._graphs[key] = graph
            while len(self._graphs) > MAX_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        return self._graphs[key]

    def working_bytes(self, device: torch.device, budget: int | None) -> int:
        """The peak memory besides the kept tensors, in bytes, for as many points as are computed together."""
        return self._fitting(POINTS_TOGETHER, device, budget) * self._bytes_of_work(device)

    @torch.no_grad()
    def multiply(
        self, V: Float[Tensor, "point param probe"], kept: tuple[Tensor, ...], workspace: Workspace
    ) -> Float[Tensor, "point param probe"]:
        """The products of one block of points and vectors, by the graph for its size."""
        graph = self.graph(V, kept)
        if graph is None:
            # One column after the other. A graph for one column exists, so that this ends: for several points,
            # ``prepare`` has made sure of it, and for one point and column ``graph`` raises an error.
            return torch.cat([self.multiply(v, kept, workspace) for v in V.split(1, dim=-1)], dim=-1)
        v = V.squeeze((0, -1)).contiguous()  # a graph has no axis of points or of probes that has length one
        if recorded.switched_on(V.device):  # only on a GPU, where graphs have no buffers
            size = V.shape[0], V.shape[-1]
            if size not in workspace.cuda_graphs:
                workspace.cuda_graphs[size] = RecordedGraph(graph.run)
            return workspace.cuda_graphs[size](v, *kept).reshape(V.shape)
        memory = []
        for number, buffer in enumerate(graph.buffers):
            if (number, buffer) not in workspace.buffers:
                workspace.buffers[number, buffer] = buffer.empty()
            memory.append(workspace.buffers[number, buffer])
        return graph.run(v, *kept, *memory).reshape(V.shape)

    def _point_parts(
        self, thetas: Tensor, batch: Batch, shared: bool, together: int
    ) -> tuple[Shaped[Tensor, "point ..."], ...]:  # Shaped, because masks and the positions of maxima are kept, too
        """The kept tensors of all points, each stacked over the points."""
        leaves = tensors_of(batch)
        point_part = vmap(self.point_part, in_dims=(0, *(None if shared else 0 for _ in leaves)))
        pieces = []
        for start in range(0, len(thetas), together):
            rows = slice(start, start + together)
            pieces.append(list(point_part(thetas[rows], *(leaf if shared else leaf[rows] for leaf in leaves))))
        # The pieces of a tensor are released once they have been joined, so that not all tensors exist twice.
        return tuple(torch.cat([piece.pop(0) for piece in pieces]) for _ in range(len(pieces[0])))

    def _fitting(self, limits: dict[str, int], device: torch.device, budget: int | None) -> int:
        """How many points or probes are computed together.

        limits: the bytes that the largest intermediate result may have, by type of device.
        """
        together = limits.get(device.type, limits["cpu"]) // max(1, self.largest)
        if budget is not None:
            # The work may take half of the budget, so that the other half is left for the kept tensors.
            together = min(together, budget // (2 * max(1, self._bytes_of_work(device))))
        return max(1, together)

    def _bytes_of_work(self, device: torch.device) -> int:
        """The peak memory for one point besides its kept tensors, in bytes."""
        # A recorded product may read its kept tensors from copies of them, see ``RecordedGraph``.
        return max(self.work_bytes, self.point_bytes) + (self.kept_bytes if recorded.switched_on(device) else 0)


@dataclass(frozen=True)
class CompiledProducts:
    """The products of an objective with several batches: the weighted sum of the products of the batches.

    parts: for each batch, the object that computes its products, which ``Traced.prepare`` has made from its trace.
    """

    weights: tuple[float, ...]
    parts: "tuple[Stacked | PointByPoint, ...]"

    def products(self, V: Float[Tensor, "point param probe"]) -> Float[Tensor, "point param probe"]:
        """Each point's matrix times its columns."""
        product = self.weights[0] * self.parts[0].products(V)
        for weight, part in zip(self.weights[1:], self.parts[1:], strict=True):
            product = product + weight * part.products(V)
        return product

    def select(self, points: Int[Tensor, " chosen"], objective: Objective) -> "CompiledProducts":
        """The products at some of the points. objective: not used, but other engines need it."""
        return CompiledProducts(self.weights, tuple(part.select(points) for part in self.parts))

    def can_be_halved(self, V: Tensor) -> bool:
        """True if V [point, param, probe] has more than one point, so that fewer points would need less memory."""
        return len(V) > 1


@dataclass(frozen=True)
class PointByPoint:
    """Products computed one point at a time.

    kept: for each point, the tensors that its point part has computed. probes: how many columns are multiplied at once.
    """

    traced: Traced
    kept: tuple[tuple[Tensor, ...], ...]
    probes: int = 1
    workspace: Workspace = field(default_factory=Workspace)

    def products(self, V: Float[Tensor, "point param probe"]) -> Float[Tensor, "point param probe"]:
        """Each point's matrix times its columns."""
        probes = min(V.shape[-1], self.probes)
        out = torch.empty_like(V, memory_format=torch.contiguous_format)
        for point, kept in enumerate(self.kept):
            for columns in _blocks(V.shape[-1], probes):
                block = V[point : point + 1, :, columns]
                out[point : point + 1, :, columns] = self.traced.multiply(block, kept, self.workspace)
        return out

    def select(self, points: Int[Tensor, " chosen"]) -> "PointByPoint":
        """The products at some of the points."""
        return replace(self, kept=tuple(self.kept[i] for i in points.tolist()))


@dataclass(frozen=True)
class Stacked:
    """Products of many points together.

    tensors: the kept tensors, each with a leading point axis. together: how many points are multiplied at once. rows:
    the positions on that axis of the points for which products are still wanted. probes: how many products are computed
    at once, the number of points times the number of columns for each of them.
    """

    traced: Traced
    tensors: tuple[Tensor, ...]
    together: int
    rows: Int[Tensor, " point"]
    probes: int = 1
    workspace: Workspace = field(default_factory=Workspace)

    def products(self, V: Float[Tensor, "point param probe"]) -> Float[Tensor, "point param probe"]:
        """Each point's matrix times its columns.

        Several columns of a point are multiplied at once only where ``probes`` allows more products than there are
        points together.
        """
        size = len(self.tensors[0])
        all_wanted = len(self.rows) == size
        if not all_wanted:
            # The other points get zero vectors, because another number of points would need another graph.
            V = V.new_zeros(size, *V.shape[1:]).index_copy_(0, self.rows, V)
        probes = max(1, min(V.shape[-1], self.probes // self.together))
        if V.shape[::2] == (self.together, probes):  # a single block, which needs no copies
            kept = self.tensors if size > 1 else tuple(t[0] for t in self.tensors)
            product = self.traced.multiply(V, kept, self.workspace)
        else:
            product = torch.empty_like(V, memory_format=torch.contiguous_format)
            for rows in _blocks(size, self.together):
                kept = tuple(t[rows] if self.together > 1 else t[rows.start] for t in self.tensors)
                for columns in _blocks(V.shape[-1], probes):
                    product[rows, :, columns] = self.traced.multiply(V[rows, :, columns], kept, self.workspace)
        return product if all_wanted else product[self.rows]

    def select(self, points: Int[Tensor, " chosen"]) -> "Stacked":
        """The products at some of the points.

        The tensors of the other points are dropped only once half of the points have left. Points leave one by one, and
        copying the remaining tensors each time would take as long as the products that are saved.
        """
        points = points.cpu() % len(self.rows)  # a negative position counts from the end
        rows = self.rows[points.to(self.rows.device, non_blocking=True)]
        # The tensors can stay as they are only if the points keep their order and none is repeated. This is checked on
        # the points and not on the rows, because the rows lie on the device, and reading them would wait for it.
        if 2 * len(rows) > len(self.tensors[0]) and bool((points[1:] > points[:-1]).all()):
            return replace(self, rows=rows)
        before = len(self.tensors[0])
        # Another number of points needs another graph, so the number is rounded up to one of a few sizes; to one of
        # fewer sizes where Inductor must compile each graph. The further rows repeat the last point.
        size = compiled_size(len(rows), before=before) if self.traced.compile else _round_size(len(rows))
        filled = torch.cat([rows, rows[-1:].expand(size - len(rows))])
        tensors = tuple(t[filled] for t in self.tensors)
        rows = torch.arange(len(rows), device=rows.device)
        return Stacked(self.traced, tensors, min(self.together, len(filled)), rows, self.probes)


def tensors_of(batch: Batch) -> list[Tensor]:
    """The tensors of a batch, in the order in which a trace takes them."""
    return [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]


def _blocks(total: int, size: int) -> list[slice]:
    """Slices that cover ``range(total)`` and all have the same size, because another size would need another graph.

    The last slice may overlap the one before.
    """
    return [slice(min(start, total - size), min(start, total - size) + size) for start in range(0, total, size)]


def _round_size(count: int) -> int:
    """The count rounded up to one of 1, 2, ..., 8, 10, 12, 14, 16, 20, ..., so that there are few sizes and few graphs.

    It grows by a quarter at most.
    """
    step = 2 ** max(0, ceil(log2(count)) - 3)
    return ceil(count / step) * step
