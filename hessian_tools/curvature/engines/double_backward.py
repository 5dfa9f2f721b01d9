"""The gradient's graph kept at some points: a Hessian-vector product is then one reverse pass.

Reverse over reverse (Pearlmutter 1994; torch's ``create_graph``): exact for every network and criterion that torch
can differentiate twice, ``nn.MSELoss`` too; nothing is traced, nothing goes through ``vmap``.
"""

from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.utils import _pytree as pytree

from hessian_tools.loss import Batch, Loss, LossFunction

# torch.utils.checkpoint runs the network again in the backward pass, with the module's own parameters, not theta.
RECOMPUTED = "saved tensor hooks of torch.utils.checkpoint"
NO_SECOND_DERIVATIVE = "without a second derivative"
# By the names of their nodes in a graph.
ENDS = {
    "autograd::Error": "an autograd.Function marked once_differentiable",
    "SparseCooTensor": "a sparse tensor made of parameters",
    "SparseCompressedTensor": "a sparse tensor made of parameters",
}


@dataclass(frozen=True)
class KeptGraphs:
    """Each point's theta and the gradient there, with its graph."""

    thetas: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]

    def products(self, V: Float[Tensor, "point param probe"]) -> Float[Tensor, "point param probe"]:
        """Each point's product with its columns, one by one."""
        with torch.inference_mode(False):
            columns = [[self._product(i, v) for v in block.mT] for i, block in enumerate(_ordinary(V))]
            return torch.stack([torch.stack(c, dim=-1) for c in columns])

    def select(self, points: Int[Tensor, " chosen"]) -> "KeptGraphs":
        """The same at some of the points."""
        chosen = points.tolist()
        return KeptGraphs(tuple(self.thetas[i] for i in chosen), tuple(self.gradients[i] for i in chosen))

    def _product(self, point: int, v: Tensor) -> Tensor:
        gradient, theta = self.gradients[point], self.thetas[point]
        if not gradient.requires_grad:  # a loss linear in theta
            return torch.zeros_like(v)
        return torch.autograd.grad(gradient, theta, v, retain_graph=True, materialize_grads=True)[0]


def kept_graphs(loss: LossFunction, thetas: Float[Tensor, "point param"], batch: Batch, *, shared: bool) -> KeptGraphs:
    """The gradient and its graph at every point, from a forward and a backward pass each."""
    leaves, gradients = [], []
    # Inference mode records no graph, whatever enable_grad says: products would be zero.
    with torch.inference_mode(False), torch.enable_grad(), disable_saved_tensors_hooks(RECOMPUTED):
        batch = pytree.tree_map_only(Tensor, _ordinary, batch)
        for i, row in enumerate(thetas):
            theta = row.detach().clone().requires_grad_()
            here = batch if shared else pytree.tree_map_only(Tensor, itemgetter(i), batch)
            value = loss(theta, here)
            if value.requires_grad:
                (gradient,) = torch.autograd.grad(value, theta, create_graph=True, materialize_grads=True)
            else:
                gradient = torch.zeros_like(row)
            if i == 0:
                _refuse_ends(value, gradient)
            leaves.append(theta)
            gradients.append(gradient)
    return KeptGraphs(tuple(leaves), tuple(gradients))


def is_scripted(loss: LossFunction) -> bool:
    """Whether TorchScript runs part of it: forward mode takes its derivative, once it has one, as constant."""
    return isinstance(loss, Loss) and any(isinstance(m, torch.jit.ScriptModule) for m in loss.model.modules())


def _refuse_ends(value: Tensor, gradient: Tensor) -> None:
    """torch leaves out what stands behind such an operation, and says nothing."""
    reached: set[Any] = set()
    ahead: list[Any] = [value.grad_fn, gradient.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in reached:
            continue
        found = next((said for name, said in ENDS.items() if name in node.name()), None)
        if found is not None:
            raise RuntimeError(f"{NO_SECOND_DERIVATIVE}: {found}")
        reached.add(node)
        ahead += [following for following, _ in node.next_functions]


def _ordinary(tensor: Tensor) -> Tensor:
    """No graph can be recorded on a tensor made in inference mode; on its copy it can."""
    return tensor.clone() if tensor.is_inference() else tensor
