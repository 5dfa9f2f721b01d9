"""The double-backward engine: each point's gradient is kept with its graph, and a product is one more reverse pass.

Reverse over reverse (Pearlmutter 1994; torch's ``create_graph``) is exact for every network and criterion that torch
can differentiate twice, also for ``nn.MSELoss``, which has no forward-over-reverse derivative in torch. Nothing is
traced, and nothing goes through ``vmap``.

A point is a parameter vector theta at which products are wanted. A group is the points whose batches have the same
shapes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.utils import _pytree as pytree

from hessian_tools.curvature.engines.memory import is_large
from hessian_tools.curvature.objective.objective import Objective
from hessian_tools.first_look import ordinary
from hessian_tools.freed_blocks import return_freed_blocks
from hessian_tools.hand_written import graph_nodes
from hessian_tools.hidden_state import RECOMPUTED
from hessian_tools.loss import Loss, LossFunction
from hessian_tools.outputs import differentiable_part, own_logits
from hessian_tools.rng import stream
from hessian_tools.torch_fixes.precision import full_precision

NO_SECOND_DERIVATIVE = "without a second derivative"
# Outputs are taken for log-probabilities if the logarithm of the sum of their exponentials is 0 up to this.
LOG_SUM_TOLERANCE = 1e-4
# Operations at which autograd's graph ends although their result depends on theta. The keys are parts of the names of
# their nodes, the values describe them in messages.
GRAPH_ENDS = {
    "autograd::Error": "an autograd.Function marked once_differentiable",
    "SparseCooTensor": "a sparse tensor made of parameters",
    "SparseCompressedTensor": "a sparse tensor made of parameters",
}


@dataclass(frozen=True)
class KeptPoints(ABC):
    """Products by reverse passes through graphs that are kept for each point; a subclass says which graphs.

    thetas: theta of each point. Every field of a subclass has one entry for each point, too.
    """

    thetas: tuple[Tensor, ...]

    @abstractmethod
    def product(self, point: int, v: Float[Tensor, " param"]) -> Float[Tensor, " param"]:
        """The matrix of the point at this position, times a vector."""

    def products(self, V: Float[Tensor, "point param probe"]) -> Float[Tensor, "point param probe"]:
        """Each point's matrix times its columns, computed one column at a time."""
        with torch.inference_mode(False):
            V = V.clone() if V.is_inference() else V
            results = []
            for point, block in enumerate(V):
                for v in block.mT:
                    results.append(self.product(point, v))
            if len(results) == 1:  # the only product is not copied
                return results[0].view(V.shape)
            return torch.stack(results).view(len(V), -1, V.shape[1]).mT.contiguous()

    def select(self, points: Int[Tensor, " chosen"], objective: Objective) -> "KeptPoints":
        """The products at some of the points. objective: not used, but other engines need it."""
        chosen = points.tolist()
        return type(self)(*(tuple(column[i] for i in chosen) for column in vars(self).values()))

    def can_be_halved(self, V: Tensor) -> bool:
        """True if V [point, param, probe] has more than one point, so that fewer points would need less memory."""
        return len(V) > 1


@dataclass(frozen=True)
class KeptGraphs(KeptPoints):
    """Products with Hessians. gradients: the gradient of the objective at each point, with its graph."""

    gradients: tuple[Tensor, ...]

    def product(self, point: int, v: Float[Tensor, " param"]) -> Float[Tensor, " param"]:
        """Hv by a reverse pass through the graph of the gradient."""
        gradient = self.gradients[point]
        if not gradient.requires_grad:  # the loss is linear in theta
            return torch.zeros_like(v)
        return torch.autograd.grad(gradient, self.thetas[point], v, retain_graph=True, materialize_grads=True)[0]


def kept_graphs(objective: Objective) -> KeptGraphs:
    """The gradient and its graph at every point of one group, by a forward and a backward pass at each point."""
    leaves, gradients = [], []
    # Inference mode records no graph even under enable_grad, so that all products would be zero. Hooks are disabled to
    # refuse torch.utils.checkpoint, which would run the network again at the model's own parameters and not at theta.
    with torch.inference_mode(False), torch.enable_grad(), disable_saved_tensors_hooks(RECOMPUTED):
        for point, row in enumerate(objective.thetas):
            theta = _leaf(row)
            value = sum(
                weight * objective.loss(theta, pytree.tree_map_only(Tensor, ordinary, batch))
                for weight, batch in zip(objective.weights, objective.batches_at(point), strict=True)
            )
            assert isinstance(value, Tensor)
            if value.requires_grad:
                (gradient,) = torch.autograd.grad(value, theta, create_graph=True, materialize_grads=True)
            else:  # the loss does not depend on theta
                gradient = torch.zeros_like(row)
            if point == 0:  # the other points have the same operations
                refuse_broken_graph(value, gradient)
            leaves.append(theta)
            gradients.append(gradient)
    return KeptGraphs(tuple(leaves), tuple(gradients))


@dataclass(frozen=True)
class KeptFactors:
    """What a Gauss-Newton product J'BJv needs of one batch at one point.

    J is the Jacobian of the outputs in theta, and B the Hessian of the criterion in the outputs.
    weight: that of the batch. outputs: the outputs with their graph to theta. u: any vector, with one tensor for each
    output. pulled: J'u with its graph to u. Because J'u is linear in u, a reverse pass of v through this graph gives
    Jv, without forward mode. at: the outputs in which the criterion is differentiated. They are copies of ``outputs``
    without the graph to theta. Only for a network that computes its loss itself are they ``outputs``, because that loss
    is computed from ``outputs`` and not from copies. slope: the gradient of the criterion in ``at``, with its graph to
    ``at``.
    """

    weight: float
    outputs: tuple[Tensor, ...]
    u: tuple[Tensor, ...]
    pulled: Tensor
    at: tuple[Tensor, ...]
    slope: tuple[Tensor, ...]

    def product(self, theta: Tensor, v: Tensor) -> Tensor:
        """J'BJv."""
        Jv = torch.autograd.grad(self.pulled, self.u, v, retain_graph=True, materialize_grads=True)
        # A slope without a graph is constant, because the criterion is linear in that output.
        curved_and_direction = [(s, part) for s, part in zip(self.slope, Jv, strict=True) if s.requires_grad]
        if not curved_and_direction:
            return torch.zeros_like(theta)
        curved, directions = zip(*curved_and_direction, strict=True)
        # B is symmetric, so that a reverse pass of Jv through the gradient of the criterion gives BJv.
        BJv = torch.autograd.grad(curved, self.at, directions, retain_graph=True, materialize_grads=True)
        return torch.autograd.grad(self.outputs, theta, BJv, retain_graph=True, materialize_grads=True)[0]


@dataclass(frozen=True)
class KeptOutputs(KeptPoints):
    """Products with Gauss-Newton matrices. factors: for each point, the factors of each of its batches."""

    factors: tuple[tuple[KeptFactors, ...], ...]

    def product(self, point: int, v: Float[Tensor, " param"]) -> Float[Tensor, " param"]:
        """The weighted sum of J'BJv over the batches."""
        total = torch.zeros_like(v)
        for of_batch in self.factors[point]:
            total = total + of_batch.weight * of_batch.product(self.thetas[point], v)
        return total


def kept_outputs(objective: Objective) -> KeptOutputs:
    """The outputs and the gradient of the criterion, with their graphs, at every point of one group."""
    loss, thetas, factors = objective.network, [], []
    with torch.inference_mode(False), torch.enable_grad(), disable_saved_tensors_hooks(RECOMPUTED):
        for point, row in enumerate(objective.thetas):
            theta = _leaf(row)
            batches = [pytree.tree_map_only(Tensor, ordinary, b) for b in objective.batches_at(point)]
            thetas.append(theta)
            factors.append(tuple(_factors(loss, theta, b, w) for b, w in zip(batches, objective.weights, strict=True)))
    return KeptOutputs(tuple(thetas), tuple(factors))


@full_precision
def linear_outputs(loss: Loss, theta: Tensor, batch: Any) -> list[Tensor]:
    """Those outputs of the network on one batch in which the criterion is linear: its second derivatives there are 0.

    The second derivatives are computed at random outputs, because at confident predictions those of a nonlinear
    criterion can underflow to 0. If the network computes its loss itself, they can only be computed at the outputs that
    the network gives, where 0 may be such an underflow. An output is then listed only if it holds log-probabilities, of
    which the usual loss (nll_loss) is linear.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x, y = pytree.tree_map_only(Tensor, ordinary, loss.split(batch))
        theta = ordinary(theta.detach())
        if loss.has_criterion:
            outputs, others, put_back = differentiable_part(loss.outputs(theta, x))
            at = [_random_like(t, f"outputs {i}").requires_grad_() for i, t in enumerate(outputs)]
            value = loss.criterion(put_back(at, others), y)
        else:
            everything = loss.outputs(theta.clone().requires_grad_(), x)
            outputs = at = own_logits(everything)
            value = loss.criterion(everything, y)
        if not value.requires_grad:
            return []
        slopes = torch.autograd.grad(value, at, create_graph=True, materialize_grads=True)
        found = []
        for output, slope in zip(outputs, slopes, strict=True):
            if bool((slope == 0).all()) or not bool(slope.isfinite().all()):
                continue  # the loss does not depend on this output, or nothing is known
            if slope.requires_grad:
                direction = _random_like(slope, "direction")
                curvature = torch.autograd.grad(slope, at, direction, retain_graph=True, materialize_grads=True)
                if any(bool((part != 0).any()) for part in curvature):
                    continue  # the criterion is not linear in this output
            if loss.has_criterion or are_log_probabilities(output):
                found.append(output.detach())
    return found


def are_log_probabilities(outputs: Tensor) -> bool:
    """Whether the exponentials of the outputs sum to one over the last axis or over the second."""
    axes = {-1, min(1, outputs.ndim - 1)} if outputs.ndim else set()
    totals = [outputs.detach().double().logsumexp(axis).abs().max() for axis in axes]
    return any(bool(total < LOG_SUM_TOLERANCE) for total in totals)


def _random_like(tensor: Tensor, name: str) -> Tensor:
    """Random numbers between 0 and 1, so that a criterion that takes probabilities is defined at them, too."""
    numbers = torch.rand(tensor.shape, generator=stream(0, "linear outputs", name), dtype=torch.float64, device="cpu")
    return numbers.to(tensor)


def _factors(loss: Loss, theta: Tensor, batch: Any, weight: float) -> KeptFactors:
    """The factors of one batch at theta, which must be a leaf."""
    x, y = loss.split(batch)
    everything = loss.outputs(theta, x)
    if loss.has_criterion:
        floating, others, put_back = differentiable_part(everything)
        outputs = tuple(t for t in floating if t.requires_grad)
        # Copies without a graph: where one output is computed from another, the derivatives of the criterion in one of
        # them must not pass through the other.
        at = tuple(t.detach().clone().requires_grad_() for t in floating)
        value = loss.criterion(put_back(list(at), others), y)
        at = tuple(copy for copy, t in zip(at, floating, strict=True) if t.requires_grad)
    else:  # the criterion is inside the network, as the part of the graph between its logits and its loss
        at = outputs = tuple(own_logits(everything))
        value = loss.criterion(everything, y)
    if not outputs or not value.requires_grad:
        # The words in front are those by which ``torch_errors`` knows that no engine can help.
        raise RuntimeError(f"{NO_SECOND_DERIVATIVE}: the loss does not depend on theta through its outputs")
    slope = torch.autograd.grad(value, at, create_graph=True, materialize_grads=True)
    u = tuple(torch.zeros_like(t).requires_grad_() for t in outputs)
    (pulled,) = torch.autograd.grad(outputs, theta, u, create_graph=True, materialize_grads=True)
    return KeptFactors(weight, outputs, u, pulled, at, slope)


def is_scripted(loss: LossFunction) -> bool:
    """True if TorchScript runs a part of the network.

    Once such a network has been trained, TorchScript computes its gradient by code of its own, which forward mode takes
    for a constant. Forward over reverse is then wrong.
    """
    return isinstance(loss, Loss) and any(isinstance(m, torch.jit.ScriptModule) for m in loss.model.modules())


def refuse_broken_graph(*results: Tensor) -> None:
    """Raises RuntimeError if a graph holds one of GRAPH_ENDS, through which torch silently takes no derivative."""
    for node in graph_nodes(*results):
        operation = next((words for name, words in GRAPH_ENDS.items() if name in node.name()), None)
        if operation is not None:
            raise RuntimeError(f"{NO_SECOND_DERIVATIVE}: {operation}")


def _leaf(row: Tensor) -> Tensor:
    """theta at one point as a leaf of a graph.

    It is a copy, so that the graph does not change with the tensor that the user gave. A large theta is not copied; if
    it is changed in place, torch refuses the next product. For a large theta on a CPU, freed memory is also made to go
    back to the system at once.
    """
    row = ordinary(row.detach())
    if not is_large(row):
        return row.clone().requires_grad_()
    if row.device.type == "cpu":
        return_freed_blocks()
    return row.requires_grad_()
