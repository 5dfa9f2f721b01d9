"""The double-backward engine: each point's gradient is kept with its graph, a product is one reverse pass more.

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

# torch.utils.checkpoint runs the network again in the backward pass, with the module's own parameters, not theta.
RECOMPUTED = "saved tensor hooks of torch.utils.checkpoint"
NO_SECOND_DERIVATIVE = "without a second derivative"
# Operations at which a graph ends although its value depends on theta, by the names of their nodes.
ENDS = {
    "autograd::Error": "an autograd.Function marked once_differentiable",
    "SparseCooTensor": "a sparse tensor made of parameters",
    "SparseCompressedTensor": "a sparse tensor made of parameters",
}


@dataclass(frozen=True)
class KeptGraphs:
    """Products by the kept graphs: each point's theta, and the gradient of the objective there with its graph."""

    thetas: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]

    def products(self, V: Float[Tensor, "point param probe"]) -> Float[Tensor, "point param probe"]:
        """Each point's product with its columns, one by one."""
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
        """The same at some of the points."""
        chosen = points.tolist()
        thetas, gradients = (tuple(tensors[i] for i in chosen) for tensors in (self.thetas, self.gradients))
        return KeptGraphs(thetas, gradients)

    def can_be_halved(self, V: Tensor) -> bool:
        """Whether fewer points than now could be kept together."""
        return len(V) > 1


def kept_graphs(objective: Objective) -> KeptGraphs:
    """The gradient and its graph at every point of one group, from a forward and a backward pass each."""
    leaves, gradients = [], []
    # Inference mode records no graph, whatever enable_grad says: products would be zero.
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
                _refuse_ends(value, gradient)
            leaves.append(theta)
            gradients.append(gradient)
    return KeptGraphs(tuple(leaves), tuple(gradients))


def is_scripted(loss: LossFunction) -> bool:
    """Whether TorchScript runs a part of the network.

    Forward mode takes the derivative of such a part, once it has one, as constant.
    """
    return isinstance(loss, Loss) and any(isinstance(m, torch.jit.ScriptModule) for m in loss.model.modules())


def _refuse_ends(value: Tensor, gradient: Tensor) -> None:
    """Raises where a graph holds an operation behind which torch silently leaves everything out."""
    reached: set[Any] = set()
    ahead: list[Any] = [value.grad_fn, gradient.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in reached:
            continue
        operation = next((words for name, words in ENDS.items() if name in node.name()), None)
        if operation is not None:
            raise RuntimeError(f"{NO_SECOND_DERIVATIVE}: {operation}")
        reached.add(node)
        ahead += [following for following, _ in node.next_functions]


def _ordinary(tensor: Tensor) -> Tensor:
    """The tensor; or a copy of one made in inference mode, on which no graph can be recorded."""
    return tensor.clone() if tensor.is_inference() else tensor
