"""Finds the weights whose filters are followed by a normalisation, so that the loss does not depend on their norms."""

from copy import deepcopy
from itertools import pairwise

import torch
from torch import nn
from torch.fx import Tracer
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from hessian_tools.layout import first_names

# The name of a weight, and everything that takes the outputs of the weight's layer as inputs: a module, or None for
# anything else, such as a function.
Use = tuple[str, list[nn.Module | None]]


def normalised_weights(model: nn.Module) -> tuple[str, ...]:
    """The names of the weights of which each filter can be rescaled without a change of the loss.

    A filter is a slice of the weight along dimension 0; it is rescaled by a positive number. The loss stays exactly the
    same only in the limit where the eps of the normalisation goes to 0. The weights are those of convolutions and
    linear layers whose outputs go into a normalisation and nowhere else. What follows a layer is found by tracing the
    forward pass with ``torch.fx``. If that fails, a layer is taken to be followed by its neighbour in an
    ``nn.Sequential``.

    Three kinds of normalisation have this effect: batch and instance normalisation by statistics of the current input,
    and group normalisation with one channel in each group. These cases do not count: group normalisation with several
    channels in a group, and layer normalisation (only all filters of a group or layer *together* can be rescaled);
    normalisation by running statistics (an affine map); transposed convolutions (their slices along dimension 0 belong
    to inputs); a weight that is also used elsewhere. The outputs of a linear layer are taken to be [example, feature].

    >>> normalised_weights(nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4), nn.Conv2d(4, 2, 3)))
    ('0.weight',)
    """
    try:
        uses = _traced_uses(model)
    except Exception:  # a forward pass may raise anything when it is traced instead of run
        uses = _sequential_uses(model)
    free: dict[str, bool] = {}  # for each weight, whether each of its filters can be rescaled at all its uses so far
    for name, followers in uses:
        layer = model.get_submodule(name.rpartition(".")[0])
        here = bool(followers) and all(_frees_each_filter(follower, layer) for follower in followers)
        free[name] = here and free.get(name, True)
    return tuple(name for name, _ in model.named_parameters() if free.get(name))


def _frees_each_filter(norm: nn.Module | None, layer: nn.Module) -> bool:
    """Whether each single filter of a layer can be rescaled if the module ``norm`` takes the outputs of the layer."""
    if isinstance(layer, nn.Linear):
        return isinstance(norm, _BatchNorm) and _uses_input_statistics(norm) and norm.num_features == layer.out_features
    if not isinstance(layer, _ConvNd) or isinstance(layer, _ConvTransposeNd):
        return False
    if isinstance(norm, nn.GroupNorm):
        return norm.num_groups == norm.num_channels == layer.out_channels
    return isinstance(norm, _BatchNorm | _InstanceNorm) and _uses_input_statistics(norm)


def _uses_input_statistics(norm: _NormBase) -> bool:
    """Whether a normalisation divides by statistics of its input; in torch, the condition differs between the kinds."""
    if isinstance(norm, _InstanceNorm):
        return norm.training or not norm.track_running_stats
    return norm.training or norm.running_mean is None


def _traced_uses(model: nn.Module) -> list[Use]:
    """Every use of a weight in the traced forward pass."""
    # A copy that shares only the parameters is traced, because a forward pass may change buffers and keep activations.
    # It may also draw random numbers, so the random state is forked.
    copy = deepcopy(model, {id(p): p for p in model.parameters()})
    with torch.random.fork_rng(devices=[]):
        graph = Tracer().trace(copy)
    # ``names`` maps every name of a parameter to its first name, because a shared weight has several.
    modules, names = dict(model.named_modules()), first_names(model)
    uses: list[Use] = []
    for node in graph.nodes:
        if node.op == "get_attr" and node.target in names:
            uses.append((names[node.target], [None]))
        elif node.op == "call_module" and f"{node.target}.weight" in names:
            followers = [modules[user.target] if user.op == "call_module" else None for user in node.users]
            uses.append((names[f"{node.target}.weight"], followers))
    return uses


def _sequential_uses(model: nn.Module) -> list[Use]:
    """The weight of every module in an ``nn.Sequential`` except the last, with the module that comes next."""
    names = first_names(model)
    uses: list[Use] = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Sequential):
            for (child, _), (_, after) in pairwise(module.named_children()):
                weight = ".".join(part for part in (path, child, "weight") if part)
                if weight in names:
                    uses.append((names[weight], [after]))
    return uses
