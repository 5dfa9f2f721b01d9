"""What a network returns: a tensor, or any nesting of tuples, mappings and dataclasses with tensors among the rest.

Derivatives are taken of the floating-point tensors. Everything else (None, integers, caches) is a constant.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """The same nesting with the function applied to each tensor; objects of unknown classes are left as they are.

    >>> import torch
    >>> map_tensors(len, {"logits": torch.zeros(3), "cache": None, "rest": (torch.zeros(2),)})
    {'logits': 3, 'cache': None, 'rest': (2,)}
    """
    if isinstance(tree, Tensor):
        return function(tree)
    if type(tree) is dict:
        return {name: map_tensors(function, part) for name, part in tree.items()}
    if isinstance(tree, tuple | list):
        parts = [map_tensors(function, part) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)  # a named tuple has _fields
    # The outputs of Hugging Face's models are mappings and dataclasses at once; setting an item sets the field, too.
    if isinstance(tree, Mapping) and hasattr(tree, "__setitem__"):
        changed: Any = copy.copy(tree)
        for name, part in tree.items():
            changed[name] = map_tensors(function, part)
        return changed
    if is_dataclass(tree) and not isinstance(tree, type):
        copied: Any = copy.copy(tree)
        for field in fields(tree):
            # Not replace(), which would run the checks of __post_init__; and the dataclass may be frozen.
            object.__setattr__(copied, field.name, map_tensors(function, getattr(tree, field.name)))
        return copied
    return tree


def tensors_of(tree: Any) -> list[Tensor]:
    """All tensors of a nesting, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, Mapping):
        return [tensor for part in tree.values() for tensor in tensors_of(part)]
    if isinstance(tree, tuple | list):
        return [tensor for part in tree for tensor in tensors_of(part)]
    if is_dataclass(tree) and not isinstance(tree, type):
        return [tensor for field in fields(tree) for tensor in tensors_of(getattr(tree, field.name))]
    return []


def differentiable_part(outputs: Any) -> tuple[list[Tensor], list[Tensor], Callable[[list[Tensor], list[Tensor]], Any]]:
    """The floating-point tensors of the outputs, their other tensors, and the function that puts both back."""
    tensors = tensors_of(outputs)
    is_float = [tensor.is_floating_point() for tensor in tensors]

    def put_back(floating: list[Tensor], others: list[Tensor]) -> Any:
        floats, rest = iter(floating), iter(others)
        order = iter([next(floats) if flag else next(rest) for flag in is_float])
        return map_tensors(lambda _: next(order), outputs)

    floating = [tensor for tensor, flag in zip(tensors, is_float, strict=True) if flag]
    others = [tensor for tensor, flag in zip(tensors, is_float, strict=True) if not flag]
    return floating, others, put_back


def own_loss(outputs: Any) -> Tensor:
    """The loss that a network returns itself: its output "loss", or the only number among its outputs.

    Raises ValueError where there is none.
    """
    value = outputs if isinstance(outputs, Tensor) else _named(outputs, "loss")
    if value is None and isinstance(outputs, tuple | list):
        numbers = [part for part in outputs if isinstance(part, Tensor) and part.ndim == 0 and part.is_floating_point()]
        value = numbers[0] if len(numbers) == 1 else None
    if not isinstance(value, Tensor):
        raise ValueError(
            f"the network returned a {type(outputs).__name__} without a loss; put the labels into the batch, "
            "or give a criterion: ht.make_loss(model, criterion)"
        )
    return value


def own_logits(outputs: Any) -> list[Tensor]:
    """The outputs of which a network's own loss is a function: those whose names end in "logits".

    Without such names it is the only floating-point tensor beside the loss. Raises ValueError where that is not clear.
    """
    names = list(outputs) if isinstance(outputs, Mapping) else []
    if is_dataclass(outputs) and not isinstance(outputs, type):
        names = [field.name for field in fields(outputs)]
    logits = [tensor for name in names if name.endswith("logits") for tensor in tensors_of(_named(outputs, name))]
    if not logits:
        logits = [t for t in tensors_of(outputs) if t.is_floating_point() and t.ndim > 0]
        logits = logits if len(logits) == 1 else []
    if not logits:
        raise ValueError(
            f"the network's {type(outputs).__name__} names no logits, so it is not clear of which outputs its loss is "
            "a function; give the criterion: ht.make_loss(model, criterion)"
        )
    return logits


def _named(outputs: Any, name: str) -> Any:
    return outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
