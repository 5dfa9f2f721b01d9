"""The double-backward engine: each point's gradient is kept with its graph, and a product is one more reverse pass.

Reverse over reverse (Pearlmutter 1994; torch's ``create_graph``) is exact for every network and criterion that torch
can differentiate twice, ``nn.MSELoss`` too. Nothing is traced, and nothing goes through ``vmap``.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.utils import _pytree as pytree

from hessian_tools.curvature.objective.objective import Objective
from hessian_tools.loss import Loss, LossFunction

# The words of the error for networks with torch.utils.checkpoint. It runs the network again in the backward pass, but
# with the parameters stored in the module instead of theta, so it cannot be allowed.
RECOMPUTED = "saved tensor hooks of torch.utils.checkpoint"
NO_SECOND_DERIVATIVE = "without a second derivative"
# Operations at which autograd's graph ends although their result depends on theta. The keys are parts of the names of
# their nodes, the values describe them in messages.
GRAPH_ENDS = {
    "autograd::Error": "an autograd.Function marked once_differentiable",
    "SparseCooTensor": "a sparse tensor made of parameters",
    "SparseCompressedTensor": "a sparse tensor made of parameters",
}


@dataclass(frozen=True)
class KeptGraphs:
    """Products by reverse passes through kept graphs.

    thetas: theta of each point. gradients: the gradient of the objective at each point, with its graph.
    """

    thetas: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]

    def products(self, V: Float[Tensor, "point param probe"]) -> Float[Tensor, "point param probe"]:
        """Each point's matrix times its columns, computed one column at a time."""
        results = []
        with torch.inference_mode(False):
            V = V.clone() if V.is_inference() else V
            for theta, gradient, block in zip(self.thetas, self.gradients, V, strict=True):
                for v in block.mT:
                    if gradient.requires_grad:
                        product = torch.autograd.grad(gradient, theta, v, retain_graph=True, materialize_grads=True)[0]
                    else:  # the loss is linear in theta
                        product = torch.zeros_like(v)
                    results.append(product)
            return torch.stack(results).view(len(V), -1, V.shape[1]).mT.contiguous()

    def select(self, points: Int[Tensor, " chosen"], objective: Objective) -> "KeptGraphs":
        """The products at some of the points."""
        chosen = points.tolist()
        thetas, gradients = (tuple(tensors[i] for i in chosen) for tensors in (self.thetas, self.gradients))
        return KeptGraphs(thetas, gradients)

    def can_be_halved(self, V: Tensor) -> bool:
        """True if there is more than one point, so that fewer could be kept together."""
        return len(V) > 1


def kept_graphs(objective: Objective) -> KeptGraphs:
    """The gradient and its graph at every point of one group, by a forward and a backward pass at each point."""
    leaves, gradients = [], []
    # Inference mode records no graph even under enable_grad, so that all products would be zero.
    with torch.inference_mode(False), torch.enable_grad(), disable_saved_tensors_hooks(RECOMPUTED):
        for point, row in enumerate(objective.thetas):
            theta = _ordinary(row.detach()).clone().requires_grad_()
            value = sum(
                weight * objective.loss(theta, pytree.tree_map_only(Tensor, _ordinary, batch))
                for weight, batch in zip(objective.weights, objective.batches_at(point), strict=True)
            )
            assert isinstance(value, Tensor)
            if value.requires_grad:
                (gradient,) = torch.autograd.grad(value, theta, create_graph=True, materialize_grads=True)
            else:
                gradient = torch.zeros_like(row)
            if point == 0:
                _refuse_broken_graph(value, gradient)
            leaves.append(theta)
            gradients.append(gradient)
    return KeptGraphs(tuple(leaves), tuple(gradients))


def is_scripted(loss: LossFunction) -> bool:
    """True if TorchScript runs a part of the network.

    Once such a network has been trained, TorchScript uses a derivative of its own that forward mode takes for a
    constant. Forward over reverse is then wrong.
    """
    return isinstance(loss, Loss) and any(isinstance(m, torch.jit.ScriptModule) for m in loss.model.modules())


def _refuse_broken_graph(value: Tensor, gradient: Tensor) -> None:
    """Raises RuntimeError if a graph holds one of GRAPH_ENDS, through which torch silently takes no derivative."""
    reached: set[Any] = set()
    ahead: list[Any] = [value.grad_fn, gradient.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in reached:
            continue
        operation = next((words for name, words in GRAPH_ENDS.items() if name in node.name()), None)
        if operation is not None:
            raise RuntimeError(f"{NO_SECOND_DERIVATIVE}: {operation}")
        reached.add(node)
        ahead += [following for following, _ in node.next_functions]


def _ordinary(tensor: Tensor) -> Tensor:
    """The tensor itself; or, if it was made in inference mode and can be in no graph, an ordinary copy."""
    return tensor.clone() if tensor.is_inference() else tensor
