"""The interface to the engines: the user's options, and matrix-vector products by the engine that is chosen for them.

In the files of the engines a product is that of a curvature matrix at one point with one vector. An engine is a way to
compute products: ``direct``, ``double_backward`` or ``compiled`` (see ``choice``). The class ``Engine`` holds the
options that a user has given for them.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import grad

from hessian_tools.curvature.engines.choice import ENGINES, EngineName, Route, choose_engine
from hessian_tools.curvature.engines.compiled.compiled_products import CompiledProducts, Traced
from hessian_tools.curvature.engines.compiled.trace_cache import is_traced, traced_product
from hessian_tools.curvature.engines.direct import direct_products
from hessian_tools.curvature.engines.double_backward import is_scripted, kept_graphs, kept_outputs
from hessian_tools.curvature.engines.evaluate import Batching, raise_explained, weighted_sum
from hessian_tools.curvature.engines.memory import (
    FORWARDS_PER_PRODUCT,
    KEPT_FORWARDS,
    MemoryBudget,
    largest_forward,
)
from hessian_tools.curvature.engines.partial_products import BatchwiseProducts, PiecewiseProducts, Products
from hessian_tools.curvature.engines.torch_errors import NoForwardDerivative, NoOtherWay, explained
from hessian_tools.curvature.objective.loader_batches import LoaderBatches
from hessian_tools.curvature.objective.matrix import HESSIAN, Matrix
from hessian_tools.curvature.objective.objective import Objective
from hessian_tools.failures import is_out_of_memory
from hessian_tools.loss import Loss
from hessian_tools.torch_fixes.convolutions import at_many_points
from hessian_tools.torch_fixes.precision import full_precision

# The memory for this many vectors of length param is reserved at each point when points are computed together. An
# eigenvalue run keeps about as many.
VECTORS_OF_A_POINT = 48


@dataclass(frozen=True)
class Engine:
    """The user's options for how products and other derivatives are computed; made by :func:`checked_engine`.

    It is not itself one of the engines direct, double_backward and compiled, but chooses among them and runs them.
    route: what the user has asked for: "auto", "direct", "kept" (the engine double_backward) or "traced" (the engine
    compiled). These are the words that users meet in the documentation, in error messages and as the property ``route``
    of an operator; the names of the two engines are accepted as well. batching: "vmap" computes points and vectors
    together, "loop" computes them one by one. chunk: how many products run at once, or None for as many as fit in
    memory. memory: the budget for products, in bytes. compile: True if Inductor (see ``compiled.inductor``) compiles
    the products; the route is then "compiled".
    """

    route: Route = "auto"
    batching: Batching = "vmap"
    chunk: int | None = None
    memory: MemoryBudget = field(default_factory=MemoryBudget)
    compile: bool = False

    def unusable(self, why: str, advice: str) -> ValueError:
        """The error for an engine that the user has asked for, by route= or compile=True, and that cannot be used.

        why: the predicate of a sentence whose subject is the user's option, such as "needs a trace". advice: what to
        do if the option is route=; the advice on compile=True is always to leave it out.
        """
        if self.compile:
            return ValueError(f"compile=True {why}; leave compile out")
        return ValueError(f"route={self.route!r} {why}; {advice}")

    def prepare(self, objective: Objective, matrix: Matrix) -> "PreparedProducts | JoinedProducts":
        """The object that multiplies the matrix at every point; it computes nothing before its first product."""
        groups = tuple(PreparedProducts(part, matrix, self, Findings()) for part in objective.by_group())
        return groups[0] if len(groups) == 1 else JoinedProducts(objective, matrix, self, groups)

    def products_at_once(self, objective: Objective) -> int:
        """How many products ``direct`` may run at once: ``chunk``, or as many as fit in memory.

        The memory that a product needs is estimated from that of one forward pass, which is measured here.
        """
        return self.chunk if self.chunk is not None else self.fitting_products(largest_forward(objective), objective)

    def fitting_products(self, forward: int, objective: Objective) -> int:
        """How many products of ``direct`` fit in memory, at least one. forward: the bytes of one forward pass."""
        budget = self.memory.budget(objective.thetas.device)
        return max(1, budget // (FORWARDS_PER_PRODUCT * max(1, forward)))

    @full_precision
    def gradients(self, objective: Objective) -> Float[Tensor, "point param"]:
        """The gradient at every point, summed over the processes that share the data."""
        return objective.summed(lambda: objective.join([self._group_gradients(p) for p in objective.by_group()]))

    def _group_gradients(self, objective: Objective) -> Tensor:
        """The gradients of one group: in pieces of points that fit in memory, or else one by one in reverse mode."""
        if recomputes(objective):
            return _gradients_one_by_one(objective)

        def piece(rows: slice) -> Tensor:
            part = objective.select(torch.arange(rows.start, rows.stop, device="cpu"))
            return weighted_sum(part, grad(objective.loss), batching=self.batching)

        total = len(objective.thetas)
        at_once = min(self.products_at_once(objective), total)
        try:
            return torch.cat(self.memory.in_pieces(total, piece, at_once=at_once))
        except RuntimeError as error:
            is_final = is_out_of_memory(error) or isinstance(error, NoOtherWay)  # reverse mode is of no use
            if is_final or not self.may_use_reverse(objective, error):
                raise
            first_error = error
        try:
            return _gradients_one_by_one(objective)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            if isinstance(explained(error), NoOtherWay):  # no engine can differentiate this loss, which explains more
                raise_explained(error)
            raise first_error from None

    def may_use_reverse(self, objective: Objective, error: BaseException) -> bool:
        """True if a derivative that torch has refused might be computed in reverse mode, from a kept graph.

        error: torch's error.
        """
        # The first call of every network is checked without vmap and forward mode (see ``first_look``). A network that
        # has passed the check has a gradient in reverse mode, so vmap or forward mode may be what fails here.
        return isinstance(error, NoForwardDerivative) or (isinstance(objective.loss, Loss) and self.batching == "vmap")


def _gradients_one_by_one(objective: Objective) -> Float[Tensor, "point param"]:
    """The gradients in reverse mode, without vmap and at one point at a time."""
    gradients = torch.zeros_like(objective.thetas, memory_format=torch.contiguous_format)
    for weight, of_one_batch in objective.by_batch():
        for point in torch.arange(len(objective.thetas), device="cpu").split(1):
            gradients[point] += weight * kept_graphs(of_one_batch.select(point)).gradients[0].detach()
    return gradients


def recomputes(objective: Objective) -> bool:
    """Whether the loss computes activations again instead of keeping them, as the user asks by ``recompute=``.

    This works in the ordinary graphs of double_backward, and not in the transforms of ``torch.func``.
    """
    return isinstance(objective.loss, Loss) and bool(objective.loss.recomputed)


def checked_engine(
    *,
    route: Route = "direct",
    batching: Batching = "vmap",
    chunk: int | None = None,
    max_memory: float | int | None = None,
    compile: bool = False,
) -> Engine:
    """A user's options; :func:`~hessian_tools.curvature.hessian` describes them.

    The default of route is for the functions of gradients and third derivatives, which have no choice of an engine. The
    functions that make operators pass on their own argument route, which is "auto" by default.
    Raises ValueError for options that contradict each other.
    """
    if compile:
        if ENGINES.get(route, "compiled") != "compiled":
            raise ValueError(f"compile=True is for route='traced', not for route={route!r}; leave one of them out")
        if batching == "loop":
            raise ValueError("compile=True takes points together, batching='loop' one by one; leave one of them out")
        route = "compiled"
    if batching == "loop" and ENGINES.get(route) == "compiled":
        raise ValueError(f"route={route!r} takes points together; pass route='direct' or 'kept' with batching='loop'")
    memory = MemoryBudget(None if max_memory is None else int(max_memory))
    return Engine(route, batching, chunk, memory, compile)


@dataclass
class Findings:
    """What has been found out about the products at a group of points; operators at some of these points share it.

    announced: the number of products, summed over points, that the caller has said will follow. forward: the bytes that
    one forward pass allocates, None while unknown. traces: the trace of the product for each batch; None before the
    first attempt, empty if the product cannot be traced. reverse_only: True once the loss has turned out to have no
    forward derivative. engine: the engine that was used last.
    """

    announced: int = 0
    forward: int | None = None
    traces: tuple[Traced, ...] | None = None
    reverse_only: bool = False
    engine: EngineName | None = None


@dataclass
class PreparedProducts:
    """The products of a matrix at points whose batches have one shape, by the engine chosen for them.

    At the first product the engine is chosen, and the data that all products share is computed and kept. Apart from
    the findings, the memory budget and caches, this is the only object of the engines that changes.

    current: the object that computes the products; None before the first product, and after one that failed.
    """

    objective: Objective
    matrix: Matrix
    engine: Engine
    findings: Findings
    current: Products | None = None

    @property
    def engines(self) -> tuple[EngineName, ...]:
        """The engine that was used last, at these points or at some of them; empty before the first product."""
        return () if self.findings.engine is None else (self.findings.engine,)

    def announce(self, num_products: int) -> None:
        """Announces how many products at each point will follow, so that the engine is chosen for all of them."""
        total = num_products * len(self.objective.thetas)
        if total > self.findings.announced:
            self.findings.announced = total
            if self.current is not None and self.findings.engine != self._choose(num_products):
                self.current = None

    def products(self, V: Float[Tensor, "point param probe"]) -> Float[Tensor, "point param probe"]:
        """Each point's matrix times its columns."""
        if V.numel() == 0:
            return torch.zeros_like(V)
        first_error: BaseException | None = None  # torch's error, explained, after it has refused a derivative
        while True:
            try:
                if self.current is None:
                    self.current = self._build(self._choose(V.shape[-1]))
                return self.current.products(V)
            except RuntimeError as error:
                out_of_memory = is_out_of_memory(error)
                if out_of_memory:
                    if not self._can_be_halved(V):
                        raise
                else:
                    refusal = explained(error)
                    if first_error is not None or not self._may_use_reverse(refusal):
                        self._give_up(error, first_error)
                    first_error = refusal
                    self.findings.reverse_only = True  # for the next attempt
            # The data kept for all points is freed, because the next attempt builds its own.
            self.current = None
            # The lack of memory is recorded outside of the except block, after the error has released the tensors in
            # its frames.
            if out_of_memory:
                self.engine.memory.record_shortage()

    def select(self, points: Int[Tensor, " chosen"]) -> "PreparedProducts":
        """The products at some of the points, with the data that has been kept for these points."""
        objective = self.objective.select(points)
        current = None if self.current is None else self.current.select(points, objective)
        return replace(self, objective=objective, current=current)

    @full_precision
    def points_at_once(self) -> int:
        """The number of points for which results should be requested at once, so that they fit in memory."""
        thetas, memory = self.objective.thetas, self.engine.memory
        fitting = max(1, memory.budget(thetas.device) // (VECTORS_OF_A_POINT * thetas.shape[1] * thetas.element_size()))
        if self.objective.ranks is not None:
            return fitting  # the same on all processes; each takes as many points together as its own batches allow
        if self.engine.route != "direct":
            # If no engine is named, the engine may turn out to be compiled, which keeps tensors of a trace for each
            # point. We assume that these take as much memory as the graph that double_backward keeps, because tracing
            # here to find out would cost seconds.
            fitting = min(fitting, self.fitting_points(ENGINES.get(self.engine.route, "double_backward")))
        return max(1, fitting >> memory.shortages)  # halved for each time that memory ran out

    def fitting_points(self, name: EngineName) -> int:
        """For how many points an engine may keep data, not counting the halvings after memory ran out."""
        thetas, engine = self.objective.thetas, self.engine
        num_batches = 1 if self.is_batchwise else len(self.objective.batches)
        if engine.chunk is not None:
            # The user allows the memory of ``chunk`` products of direct. The result is the number of points whose kept
            # data takes as much.
            return max(1, engine.chunk * FORWARDS_PER_PRODUCT // (KEPT_FORWARDS * num_batches))
        budget = engine.memory.budget(thetas.device)
        if name == "compiled":
            traces = self._traces()
            working = max((trace.working_bytes(thetas.device, budget) for trace in traces), default=0)
            return max(1, (budget - working) // max(1, sum(trace.kept_bytes for trace in traces)))
        return max(1, budget // (KEPT_FORWARDS * num_batches * max(1, self._forward())))

    @property
    def is_batchwise(self) -> bool:
        """True if data is kept for one batch at a time, for the length of a product.

        This is so where the batches are read from a loader, and where the graphs of all batches at one point would not
        fit in memory.
        """
        batches, engine = self.objective.batches, self.engine
        if isinstance(batches, LoaderBatches):
            return True
        if len(batches) == 1 or engine.chunk is not None:
            return False
        budget = engine.memory.budget(self.objective.thetas.device)
        return KEPT_FORWARDS * len(batches) * self._forward() > budget

    def _choose(self, columns: int) -> EngineName:
        """The engine for these points, chosen by their sizes unless the route names it.

        columns: how many products at each point are requested now.
        """
        objective, engine, findings = self.objective, self.engine, self.findings
        is_hessian = self.matrix is HESSIAN
        if ENGINES.get(engine.route) == "compiled" and isinstance(objective.batches, LoaderBatches):
            raise engine.unusable(
                "keeps data of every batch, but the DataLoader's batches exceed max_memory and are read again at every "
                "product",
                "raise max_memory, or pass route='auto'",
            )
        if is_hessian and ENGINES.get(engine.route) != "double_backward" and is_scripted(objective.loss):
            if engine.route != "auto":
                raise engine.unusable("may be wrong for a scripted network", "pass route='kept'")
            return "double_backward"
        if recomputes(objective) and ENGINES.get(engine.route, "double_backward") != "double_backward":
            # direct and compiled keep all activations, although the user passed recompute= so as not to keep them.
            raise engine.unusable("keeps the activations that recompute= is to save", "pass route='auto'")
        if engine.route != "auto":
            return ENGINES[engine.route]
        # The other engines multiply by a Gauss-Newton matrix with the help of the criterion as a function of the
        # outputs. If the network computes its loss itself, there is no such function, but the graph that
        # double_backward keeps leads from the outputs to the loss.
        needs_graph = not is_hessian and not objective.network.has_criterion
        if findings.reverse_only or recomputes(objective) or needs_graph:
            return "double_backward"
        if not isinstance(objective.loss, Loss) or engine.batching == "loop" or engine.chunk is not None:
            return "direct"
        choose = partial(
            choose_engine,
            device=objective.thetas.device,
            forward=self._forward(),
            num_points=len(objective.thetas),
            num_products=max(findings.announced, columns * len(objective.thetas)),
            double_backward=is_hessian,
        )
        if self.is_batchwise:
            return choose(compilable=False)
        points, batches = len(objective.thetas), objective.batches_at(0)
        traced = partial(is_traced, self.matrix.name, objective.loss, objective.thetas[0], points=points)
        name = choose(
            compiled_before=bool(findings.traces) or all(traced(batch) for batch in batches),
            compilable=findings.traces != (),  # an empty tuple: tracing has failed before
        )
        return name if name != "compiled" or self._traces() else choose(compilable=False)

    def _build(self, name: EngineName) -> Products:
        """The object that computes the products by this engine, for all batches together or one after the other."""
        self.findings.engine = name
        if name == "compiled" or not self.is_batchwise:
            return self._build_for(name, self.objective)
        at_once = self._products_at_once() if name == "direct" else 1
        return BatchwiseProducts(self.objective, partial(self._build_for, name), at_once, self.engine.memory)

    def _build_for(self, name: EngineName, objective: Objective) -> Products:
        """The object that computes the products by this engine for the batches of one objective.

        It keeps data for all points at once if that fits in memory, and otherwise for one piece of points at a time.
        """
        engine = self.engine
        if name == "direct":
            return direct_products(objective, self.matrix, engine.batching, self._products_at_once(), engine.memory)
        if name == "compiled" and not self._traces():
            raise engine.unusable(
                "needs a trace, but this product cannot be traced, because the network branches on the values of its "
                "parameters or uses an operation that cannot be traced",
                "pass route='auto' or 'direct'",
            )
        fitting = min(len(objective.thetas), self.fitting_points(name))
        make = partial(self._build_at, name)
        if len(objective.thetas) <= fitting >> engine.memory.shortages:
            return make(objective)
        return PiecewiseProducts(objective, make, fitting, engine.memory)

    def _build_at(self, name: EngineName, objective: Objective) -> Products:
        """The object that computes the products by double_backward or compiled, for points that all fit in memory."""
        if name == "double_backward":
            # A Hessian needs the graph of the gradient. A Gauss-Newton matrix J'BJ (see ``KeptFactors``) is multiplied
            # factor by factor, which needs the graph of the outputs as well.
            return kept_graphs(objective) if self.matrix is HESSIAN else kept_outputs(objective)
        thetas, memory = objective.thetas.contiguous(), self.engine.memory
        budget = memory.budget(thetas.device) >> memory.shortages
        parts = [
            trace.prepare(thetas, batch, shared=objective.shared, budget=budget)
            for trace, batch in zip(self._traces(), objective.batches, strict=True)
        ]
        return CompiledProducts(objective.weights, tuple(parts))

    def _products_at_once(self) -> int:
        """How many products of ``direct`` may run at once."""
        return self.engine.chunk or self.engine.fitting_products(self._forward(), self.objective)

    def _forward(self) -> int:
        """The bytes that one forward pass allocates, with the image patches that convolutions of many points make."""
        if self.findings.forward is None:
            thetas = self.objective.thetas
            with at_many_points(len(thetas), thetas.device):
                self.findings.forward = largest_forward(self.objective)
        return self.findings.forward

    def _traces(self) -> tuple[Traced, ...]:
        """The traces of the product for each batch; empty where it cannot be traced."""
        if self.findings.traces is None:
            loss, thetas, batches = self.objective.loss, self.objective.thetas, self.objective.batches_at(0)
            product = partial(self.matrix.product, loss)
            make = partial(traced_product, product, self.matrix.name, loss, thetas[0].clone(), points=len(thetas))
            traces = [make(batch) for batch in batches]
            found = tuple(trace for trace in traces if trace) if all(traces) else ()
            # ``replace`` copies a trace but not its dict of batched graphs. All operators of one loss share that dict,
            # so that each of them finds the graphs that another one has had compiled.
            self.findings.traces = tuple(replace(t, compile=True) for t in found) if self.engine.compile else found
        return self.findings.traces

    def _can_be_halved(self, V: Tensor) -> bool:
        """True if fewer points or products together would need less memory than the attempt that has just failed."""
        if self.current is None:  # building the data failed; after the first shortage it is built in pieces of points
            return len(V) > 1 and self.engine.memory.shortages == 0
        return self.current.can_be_halved(V)

    def _give_up(self, error: RuntimeError, first_error: BaseException | None) -> NoReturn:
        """Raise the error that the user is to read after the last attempt at a derivative that torch refuses.

        error: the error of the last attempt. first_error: that of the attempt before it, or None if there was only one.
        """
        if first_error is not None:
            self.findings.reverse_only = False  # because reverse mode has failed too
            # The first error is reported, unless the second one says that no engine can differentiate the loss.
            if not isinstance(explained(error), NoOtherWay):
                raise first_error from None
        raise_explained(error)  # in words that say what the user can do

    def _may_use_reverse(self, error: BaseException) -> bool:
        """True if reverse over reverse is allowed, has not been tried, and might compute the refused derivative."""
        if self.engine.route != "auto" or self.findings.engine == "double_backward":
            return False
        return not isinstance(error, NoOtherWay) and self.engine.may_use_reverse(self.objective, error)


@dataclass(frozen=True)
class JoinedProducts:
    """The products at points whose batches differ in shape, computed for one group of equal shapes after the other."""

    objective: Objective
    matrix: Matrix
    engine: Engine
    groups: tuple[PreparedProducts, ...]

    @property
    def engines(self) -> tuple[EngineName, ...]:
        """The engines that were used last, each listed once."""
        return tuple(dict.fromkeys(name for group in self.groups for name in group.engines))

    def announce(self, num_products: int) -> None:
        """Announces how many products at each point will follow, so that the engines are chosen for all of them."""
        for group in self.groups:
            group.announce(num_products)

    def products(self, V: Float[Tensor, "point param probe"]) -> Float[Tensor, "point param probe"]:
        """Each point's matrix times its columns."""
        pairs = zip(self.groups, self.objective.groups, strict=True)
        return self.objective.join([prepared.products(V[group.positions]) for prepared, group in pairs])

    def select(self, points: Int[Tensor, " chosen"]) -> "PreparedProducts | JoinedProducts":
        """The products at some of the points, with the data that has been kept for these points."""
        # For each group: the chosen members, and their positions among the chosen points.
        located = zip(self.groups, self.objective.locate(points), strict=True)
        groups = tuple(group.select(members) for group, (members, _) in located if len(members))
        if len(groups) == 1:
            return groups[0]
        return JoinedProducts(self.objective.select(points), self.matrix, self.engine, groups)

    def points_at_once(self) -> int:
        """The number of points for which results should be requested at once, so that they fit in memory."""
        return min(group.points_at_once() for group in self.groups)
