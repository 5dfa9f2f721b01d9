"""The weights whose filters are followed by a normalisation, so that the loss does not depend on their norm."""

from copy import deepcopy
from itertools import pairwise

import torch
from torch import nn
from torch.fx import Tracer
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

# The name of a parameter, and what the results of the module that owns it go into: modules, or None for anything else.
Use = tuple[str, list[nn.Module | None]]


def normalised_weights(model: nn.Module) -> tuple[str, ...]:
    """Names of the weights whose every filter can be rescaled alone without the loss changing (as eps -> 0).

    A filter is a slice along dimension 0, rescaled by a positive number. The weights are those of convolutions and
    linear layers whose results go into a normalisation and nowhere else. They are found by tracing the forward pass
    with ``torch.fx``; where that fails, neighbours in an ``nn.Sequential`` are looked at instead.

    Three kinds of normalisation count: batch and instance normalisation by statistics of the input at hand, and group
    normalisation with one channel per group. Not counted are group normalisation with several channels and layer
    normalisation (there only all filters of a group or layer *together* are free), normalisation by running statistics
    (an affine map), transposed convolutions (their slices along dimension 0 are inputs), and a weight that is also
    used elsewhere. The outputs of a linear layer are taken to be [example, feature].

    >>> normalised_weights(nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4), nn.Conv2d(4, 2, 3)))
    ('0.weight',)
    """
    try:
        uses = _traced_uses(model)
    except Exception:  # a forward pass may raise anything when it is traced instead of run
        uses = _sequential_uses(model)
    free: dict[str, bool] = {}
    for name, followers in uses:
        layer = model.get_submodule(name.rpartition(".")[0])
        always = bool(followers) and all(_frees_each_filter(after, layer) for after in followers)
        free[name] = always and free.get(name, True)
    return tuple(name for name, _ in model.named_parameters() if free.get(name))


def _frees_each_filter(norm: nn.Module | None, layer: nn.Module) -> bool:
    """Whether each filter of a layer can be rescaled alone if this normalisation takes its results."""
    if isinstance(layer, nn.Linear):
        return isinstance(norm, _BatchNorm) and _uses_input_statistics(norm) and norm.num_features == layer.out_features
    if not isinstance(layer, _ConvNd) or isinstance(layer, _ConvTransposeNd):
        return False
    if isinstance(norm, nn.GroupNorm):
        return norm.num_groups == norm.num_channels == layer.out_channels
    return isinstance(norm, _BatchNorm | _InstanceNorm) and _uses_input_statistics(norm)


def _uses_input_statistics(norm: _NormBase) -> bool:
    """Whether it divides by statistics of its input, by torch's own two rules."""
    if isinstance(norm, _InstanceNorm):
        return norm.training or not norm.track_running_stats
    return norm.training or norm.running_mean is None


def _traced_uses(model: nn.Module) -> list[Use]:
    """Every use of a weight in the forward pass."""
    # A copy that shares only the parameters is traced: a forward pass may move buffers, keep activations, draw numbers.
    copy = deepcopy(model, {id(p): p for p in model.parameters()})
    with torch.random.fork_rng(devices=[]):
        graph = Tracer().trace(copy)
    modules, names = dict(model.named_modules()), _first_names(model)
    uses: list[Use] = []
    for node in graph.nodes:
        if node.op == "get_attr" and node.target in names:
            uses.append((names[node.target], [None]))
        elif node.op == "call_module" and f"{node.target}.weight" in names:
            followers = [modules[user.target] if user.op == "call_module" else None for user in node.users]
            uses.append((names[f"{node.target}.weight"], followers))
    return uses


def _sequential_uses(model: nn.Module) -> list[Use]:
    """Every weight of a module that has a next one in an ``nn.Sequential``."""
    names = _first_names(model)
    uses: list[Use] = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Sequential):
            for (child, _), (_, after) in pairwise(module.named_children()):
                weight = ".".join(part for part in (path, child, "weight") if part)
                if weight in names:
                    uses.append((names[weight], [after]))
    return uses


def _first_names(model: nn.Module) -> dict[str, str]:
    """For every name of a parameter its first name, under which tied weights are known."""
    first = {id(p): name for name, p in model.named_parameters()}
    return {name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}
