"""Meta-parameters as one vector: the network's parameters first, then whatever else a learner learns.

For most learners ``theta`` holds the network's parameters alone, [param]. Meta-SGD appends a step size for each entry
that the inner loop moves. Supervised training appends a head with one output per training class. LEO (latent embedding
optimisation) appends the parameters of its own networks and two step sizes. SHOT_p, a kind of pre-training (see
``pretraining``), appends those of its projector, a small network for the outputs of the main one, which no inner loop
contains. Code that needs the network's parameters alone calls ``network_parameters``.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import log

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hessian_tools.inner.learners import Learner
from hessian_tools.layout import ParamLayout
from hessian_tools.loss import Loss, LossFunction, require_network


@dataclass(frozen=True, eq=False)
class Part:
    """Some of a network's parameters: their own layout, and their positions in the network's vector."""

    layout: ParamLayout
    positions: Int[Tensor, " moved"]

    def take(self, theta: Float[Tensor, " param"]) -> Float[Tensor, " moved"]:
        """These entries of ``theta``."""
        return theta[self.positions]

    def put(self, theta: Float[Tensor, " param"], moved: Float[Tensor, " moved"]) -> Float[Tensor, " param"]:
        """``theta`` with these entries replaced."""
        return theta.index_copy(0, self.positions, moved)


def meta_parameters(learner: Learner, layout: ParamLayout, theta: Float[Tensor, " param"]) -> Float[Tensor, " meta"]:
    """The vector that a learner starts meta-training from: ``theta`` and its initial step sizes, if it learns any."""
    if not learner.learns_step_sizes:
        return theta
    initial = log(learner.step_size) if learner.step_sizes == "learned_log" else learner.step_size
    return torch.cat([theta, theta.new_full((num_moved(learner, layout),), initial)])


def network_parameters(loss: LossFunction, theta: Float[Tensor, " meta"]) -> Float[Tensor, " param"]:
    """The network's part of the meta-parameters; all of them where the loss is a plain function."""
    if not isinstance(loss, Loss) or len(theta) == loss.layout.numel:
        return theta
    if len(theta) < loss.layout.numel:
        raise ValueError(
            f"theta has {len(theta)} entries, but the network has {loss.layout.numel} parameters; make it with flatten"
        )
    return theta[: loss.layout.numel]


def without_projector(learner: Learner, loss: LossFunction, theta: Float[Tensor, " longer"]) -> Float[Tensor, " meta"]:
    """The meta-parameters without those of the projector, which pre-training by SHOT_p uses outside the inner loop."""
    # For LEO, for supervised training and for a loss that is a plain function, the number of meta-parameters is None,
    # and the slice takes all of theta. That is right, because theta then has no projector: SHOT_p is refused for these
    # two learners, and it needs a network.
    return theta[: _num_meta_parameters(learner, loss)]


def refuse_longer(learner: Learner, loss: LossFunction, theta: Float[Tensor, " meta"]) -> None:
    """Raise ValueError for a ``theta`` with more entries than the learner has meta-parameters on this network."""
    length = _num_meta_parameters(learner, loss)
    if length is not None and theta.ndim == 1 and len(theta) > length:
        raise ValueError(
            f"theta has {len(theta)} entries, but {learner.name} has {length} meta-parameters on this network; make it "
            f"with flatten, or give theta[:{length}] if the network's parameters come first in it"
        )


def _num_meta_parameters(learner: Learner, loss: LossFunction) -> int | None:
    """The number of the learner's meta-parameters; None where the network alone does not tell it.

    That is so for a plain function, and for LEO and supervised training, whose further parameters depend on the tasks.
    """
    if not isinstance(loss, Loss) or learner.latent is not None or learner.outer == "classes":
        return None
    return loss.layout.numel + (num_moved(learner, loss.layout) if learner.learns_step_sizes else 0)


def further_parameters(loss: Loss, theta: Float[Tensor, " meta"]) -> Float[Tensor, " further"]:
    """The meta-parameters that follow the network's."""
    return theta[loss.layout.numel :]


def step_sizes(learner: Learner, loss: LossFunction, theta: Float[Tensor, " meta"]) -> float | Float[Tensor, " moved"]:
    """The learner's step size or, if step sizes are learned, the ones in ``theta``: one for each moved entry."""
    if not learner.learns_step_sizes:
        return learner.step_size
    network = require_network(loss, f"{learner.name} learns step sizes of named parameters")
    count = num_moved(learner, network.layout)
    learned = further_parameters(network, theta)[:count]
    if len(learned) < count:
        raise ValueError(
            f"theta has {len(theta)} entries, but {learner.name} needs {count} step sizes after the network's"
            f" {network.layout.numel}; make it with meta_parameters(learner, layout, theta)"
        )
    return learned.exp() if learner.step_sizes == "learned_log" else learned


def moved_part(learner: Learner, loss: LossFunction, *, device: torch.device) -> Part | None:
    """The part of the network that the inner loop moves; None stands for all of it."""
    if not learner.moves:
        return None
    network = require_network(loss, f"{learner.name} moves named parameters ({', '.join(learner.moves)})")
    return part_under(network.layout, learner.moves, device)


@lru_cache(maxsize=64)
def part_under(layout: ParamLayout, prefixes: tuple[str, ...], device: torch.device) -> Part:
    """The parameters under the prefixes. Cached, because every inner loop on the same network asks for it."""
    names = layout.under(*prefixes)
    return Part(layout.only(names), layout.positions(names).to(device))


def num_moved(learner: Learner, layout: ParamLayout) -> int:
    """The number of the network's parameters that the inner loop moves; for LEO these are the head's weights."""
    if learner.latent is not None:
        return layout.only((head_weight(layout),)).numel
    return layout.only(layout.under(*learner.moves)).numel if learner.moves else layout.numel


def head_weight(layout: ParamLayout) -> str:
    """The name of the head's weight matrix."""
    return next(name for name in layout.under("head") if name.endswith("weight"))
