"""What a network takes: how a batch is divided into inputs and targets, and how the inputs are passed on.

A batch is a pair (inputs, targets), a longer tuple (a, b, targets) for a network with several inputs, or a mapping of
names to tensors, such as the ``BatchEncoding`` of a tokeniser. Nested containers and NumPy arrays are allowed.
"""

from collections.abc import Mapping
from inspect import Parameter, Signature, signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.distributed import DistributedSampler

from hessian_tools.processes import refuse_share

Batch = Any  # a pair (inputs, targets) for a network, or a mapping; whatever a plain function takes

# The names under which the targets stand in a batch that is a mapping; the first of them that it holds is taken.
TARGETS = ("labels", "label", "targets", "target", "y")
POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def batches_of(batch: Any, *, of_network: bool) -> list[Batch]:
    """The batches of an objective, from one batch or a list of batches.

    For a network, a tuple is one batch, and so is a list that holds a tensor or an array; any other list is several
    batches. For a plain function every list is several batches. Raises ValueError for an empty list.
    """
    refuse_share(batch)
    if not isinstance(batch, list):
        return [batch]
    if of_network and any(isinstance(part, Tensor | np.ndarray) for part in batch):
        return [tuple(batch)]
    if not batch:
        raise ValueError("a list means several batches of one objective and needs at least one; a batch is (x, y)")
    return [tuple(part) if of_network and isinstance(part, list) else part for part in batch]


def refuse_random_loader(loader: Any) -> None:
    """Raise ValueError for a ``DataLoader`` that gives other examples at the next reading, or not all of them."""
    if not isinstance(loader, DataLoader):
        return
    # All of torch's samplers that draw have a generator; one may stand inside a sampler of batches.
    if any(hasattr(s, "generator") for s in (loader.sampler, getattr(loader.batch_sampler, "sampler", None))):
        raise ValueError(
            "the DataLoader draws its examples at random, so its batches are others at each reading; make it with "
            "shuffle=False and without a sampler, or give list(loader) to keep one reading"
        )
    sampler = loader.sampler
    # total_size: the number of examples that all processes read, with those that it repeats.
    if isinstance(sampler, DistributedSampler) and sampler.total_size != len(loader.dataset):  # type: ignore[arg-type]
        raise ValueError(
            f"the DistributedSampler makes {sampler.total_size} examples of {len(loader.dataset)}, by repeating some "  # type: ignore[arg-type]
            "or leaving some out; give each process a Subset of its own, which may differ in size"
        )
    if isinstance(loader.dataset, IterableDataset):  # it need not have a length
        return
    examples = len(loader.dataset)  # type: ignore[arg-type]
    if loader.drop_last and loader.batch_size and examples % loader.batch_size:
        raise ValueError(
            f"the DataLoader leaves out {examples % loader.batch_size} of {examples} examples (drop_last=True); make "
            "it with drop_last=False, or give list(loader) to measure without them"
        )


def signature_of(model: nn.Module) -> Signature:
    """The arguments that a network's forward pass takes."""
    try:
        return signature(model.forward)
    except (TypeError, ValueError):  # a scripted module may have none
        return Signature([Parameter("x", Parameter.POSITIONAL_ONLY)])


def split_batch(batch: Batch, takes: Signature) -> tuple[Any, Any]:
    """The inputs of the network, and the targets with which the criterion compares its outputs.

    takes: the arguments of the network. Of a mapping, the entry called "labels", "label", "targets", "target" or "y" is
    the targets, and the rest are inputs; without such an entry the whole batch is both. Raises ValueError for a batch
    that cannot be divided.
    """
    refuse_share(batch)
    if isinstance(batch, Mapping):
        inputs = dict(batch)
        needed = required_names(takes)
        name = next((name for name in TARGETS if name in inputs and name not in needed), None)
        return (inputs, inputs) if name is None else (inputs, inputs.pop(name))
    if not isinstance(batch, tuple | list):
        raise ValueError(
            f"the batch is of type {type(batch).__name__}; give a pair (x, y), or a dict of inputs with the entry"
            " 'labels'"
        )
    if len(batch) == 2:
        return batch[0], batch[1]
    needed = required_names(takes)
    if len(batch) > 2 and len(needed) == len(batch) - 1:
        return tuple(batch[:-1]), batch[-1]
    raise ValueError(
        f"the batch has {len(batch)} parts, but the network takes {len(needed)} input{'s' * (len(needed) != 1)}; "
        "give (x, y), or ((a, b), y) for a network with two inputs"
    )


def arguments(x: Any, takes: Signature) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with which the network is called on its inputs: positional ones, and ones by name.

    A tuple or list is spread over several arguments if the network requires several, or if the further ones are
    optional tensors, whose default is None. A mapping is passed by name, unless the network has one argument that takes
    all of it, or the mapping holds none of the arguments that the network requires. Raises ValueError for a name that
    the network does not take.
    """
    if isinstance(x, Tensor):
        return (x,), {}
    parameters = takes.parameters.values()
    if isinstance(x, Mapping):
        needed = required_names(takes)
        takes_one = len(parameters) == 1 and all(p.kind in POSITIONAL for p in parameters)
        if (needed and not any(name in x for name in needed)) or (takes_one and list(x) != list(takes.parameters)):
            return (x,), {}
        by_name = {p.name for p in parameters if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)}
        takes_any = any(p.kind is Parameter.VAR_KEYWORD for p in parameters)
        unknown = [name for name in x if name not in by_name]
        if unknown and not takes_any:
            raise ValueError(
                f"the batch holds {unknown[0]!r}, which the network's forward pass does not take; leave it out "
                f"(it takes {', '.join(takes.parameters)})"
            )
        return (), dict(x)
    if type(x) in (tuple, list):  # not a named tuple, such as PackedSequence, which is one input
        positional = [p for p in parameters if p.kind in POSITIONAL]
        defaults = [p.default for p in positional[: len(x)]]
        optional = len(positional) >= len(x) > 1 and all(default is None for default in defaults[1:])
        several = sum(default is Parameter.empty for default in defaults) > 1
        if several or optional or any(p.kind is Parameter.VAR_POSITIONAL for p in parameters):
            return tuple(x), {}
    return (x,), {}


def required_names(takes: Signature) -> list[str]:
    """The names of the arguments without which the network cannot be called."""
    kinds = (*POSITIONAL, Parameter.KEYWORD_ONLY)
    return [p.name for p in takes.parameters.values() if p.default is Parameter.empty and p.kind in kinds]


def cast_like(tree: Any, like: Tensor) -> Any:
    """The pytree with every tensor on the device of ``like`` and every floating-point tensor in its dtype.

    NumPy arrays become tensors, and mappings of other classes, such as BatchEncoding, become dicts.
    """

    # A function that called itself here would be a reference cycle, which holds ``like`` and the graph behind it until
    # Python collects its garbage.
    def cast(leaf: Any) -> Any:
        leaf = as_tensor(leaf)
        if isinstance(leaf, Tensor):
            return leaf.to(like.device, like.dtype) if leaf.is_floating_point() else leaf.to(like.device)
        return cast_like(dict(leaf), like) if isinstance(leaf, Mapping) else leaf

    return pytree.tree_map(cast, tree)


def refuse_unusable(batch: Any, like: Tensor) -> None:
    """Raise ValueError for a batch without examples, or with a number that is infinite in the dtype of ``like``.

    The mean over no examples is NaN, and its derivatives are 0, which would look like a flat loss.
    """
    refuse_share(batch)
    for leaf in pytree.tree_leaves(batch):
        if isinstance(leaf, Mapping):
            refuse_unusable(dict(leaf), like)
        leaf = as_tensor(leaf)
        if not isinstance(leaf, Tensor):
            continue
        if leaf.numel() == 0:
            shape = tuple(leaf.shape)
            raise ValueError(f"a tensor of the batch has shape {shape}, so it is empty; give one example or more")
        if leaf.dtype == torch.float64 and like.dtype == torch.float32:
            largest = float(leaf.abs().max())
            if torch.finfo(torch.float32).max < largest < torch.inf:
                raise ValueError(
                    f"the batch holds the number {largest:.3g}, which float32 cannot hold; "
                    "scale it, or use theta.double()"
                )


def as_tensor(leaf: Any) -> Any:
    """A NumPy array of numbers as a tensor; anything else as it is."""
    is_numbers = isinstance(leaf, np.ndarray) and leaf.dtype.kind in "fiub"  # floats, integers, unsigned ones, booleans
    return torch.from_numpy(np.ascontiguousarray(leaf)) if is_numbers else leaf
