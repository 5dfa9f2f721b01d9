"""Which filters a normalisation follows, so that the loss does not see their norm."""

from copy import deepcopy
from itertools import pairwise

import torch
from torch import nn
from torch.fx import Tracer
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

# The name of a parameter, and what takes the results of a module that owns it: a module, or None for all else.
Use = tuple[str, list[nn.Module | None]]


def normalised_weights(model: nn.Module) -> tuple[str, ...]:
    """Names of the weights whose every filter can be rescaled alone without the loss changing (as eps -> 0).

    A filter is a slice along dimension 0, rescaled by a positive number. Found by looking: convolutions and
    linear layers whose results go into a normalisation and nowhere else, wherever ``torch.fx`` can trace
    the forward pass; else neighbours in an ``nn.Sequential``. Counted are batch and instance normalisation
    by statistics of the input at hand, and group normalisation with one channel a group. Not counted:
    group normalisation of several channels and layer normalisation (there only all filters of a group or
    layer *together* are free), normalisation by running statistics (an affine map), transposed
    convolutions (their slices along dimension 0 are inputs), a weight used elsewhere too. A linear layer
    is taken to put out [example, feature].

    >>> normalised_weights(nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4), nn.Conv2d(4, 2, 3)))
    ('0.weight',)
    """
    free: dict[str, bool] = {}
    layers = _owners(model)
    for name, followers in _uses(model):
        layer = layers[name]
        alone = bool(followers) and all(_frees_each_filter(after, layer) for after in followers)
        free[name] = alone and free.get(name, True)
    return tuple(name for name, _ in model.named_parameters() if free.get(name))


def _frees_each_filter(norm: nn.Module | None, layer: nn.Module) -> bool:
    if isinstance(layer, nn.Linear):
        return isinstance(norm, _BatchNorm) and _of_the_input(norm) and norm.num_features == layer.out_features
    if not isinstance(layer, _ConvNd) or isinstance(layer, _ConvTransposeNd):
        return False
    if isinstance(norm, nn.GroupNorm):
        return norm.num_groups == norm.num_channels == layer.out_channels
    return isinstance(norm, _BatchNorm | _InstanceNorm) and _of_the_input(norm)


def _of_the_input(norm: _NormBase) -> bool:
    """Whether it divides by statistics of its input; torch's own two rules."""
    if isinstance(norm, _InstanceNorm):
        return norm.training or not norm.track_running_stats
    return norm.training or norm.running_mean is None


def _owners(model: nn.Module) -> dict[str, nn.Module]:
    """The module that owns each parameter, by the parameter's first name."""
    return {name: model.get_submodule(name.rpartition(".")[0]) for name, _ in model.named_parameters()}


def _uses(model: nn.Module) -> list[Use]:
    """Each use of a weight in the forward pass."""
    try:
        return _traced_uses(model)
    except Exception:  # whatever a forward pass may raise when it is traced instead of run
        return _sequential_uses(model)


def _traced_uses(model: nn.Module) -> list[Use]:
    # On a copy that shares the parameters alone: a forward pass may move buffers, keep its activations, draw numbers.
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
    """Every name of a parameter -> its first one, under which tied weights are known."""
    first = {id(p): name for name, p in model.named_parameters()}
    return {name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}
