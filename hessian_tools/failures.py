"""What a wrong value is, in words, and why a loss fails on a batch."""

import contextlib
import sys
import types
import warnings
from collections.abc import Mapping
from dis import opmap
from inspect import getfile
from pathlib import Path
from types import FrameType
from typing import Any

import jaxtyping
import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

LIBRARY = str(Path(__file__).parent)  # the folder of the code of this library
# Where the decorators of the library's functions come from.
DECORATORS = (*(str(Path(getfile(package)).parent) for package in (torch, jaxtyping)), contextlib.__file__)
OUT_OF_MEMORY = "out of memory"  # in every message of torch that says so, of whichever type the error is


def described(value: Any) -> str:
    """What a value is, in a few words.

    >>> described(None), described(torch.ones(2, 3)), described(np.ones(3)), described([1])
    ('None', 'a tensor [2, 3] of float32', 'a NumPy array [3] of float64', 'a list: [1]')
    """
    if value is None:
        return "None"
    if isinstance(value, Tensor | np.ndarray):
        kind = "tensor" if isinstance(value, Tensor) else "NumPy array"
        return f"a {kind} {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, type):
        return f"the class {value.__name__} itself"
    if isinstance(value, types.FunctionType):
        return f"the function {value.__name__}"
    if isinstance(value, str | int | float | complex | list | tuple | dict | set):
        return f"a {type(value).__name__}: {short(value)}"
    return f"a {type(value).__name__}"


def short(value: object) -> str:
    """The repr of a value on one line, cut off after 60 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def first_line(error: BaseException) -> str:
    """The first line of an error's message, cut off after 300 characters; its type where it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user's code that calls this library.

    Other code may stand between the functions of the library, such as torch's, so the outermost one is sought. The
    decorators around it, which call it, are not the user's code either.
    """
    frame: FrameType | None = sys._getframe()
    level = depth = 1
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(LIBRARY) or (level == depth and file.startswith(DECORATORS)):
            level = depth + 1
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, category, stacklevel=level)


def why_loss_fails(loss: Any, thetas: Tensor, batch: Any, *, name: str, own_batch: bool) -> str | None:
    """What is wrong with a batch on which a loss fails at its first point; None if the loss does not fail on it.

    The loss is called once more, without derivatives, so that an error of its network or its criterion shows itself.

    thetas: [param], or [point, param]. batch: a batch, a list of batches, or ragged batches. name: that of the argument
    that holds it. own_batch: whether every point has its own batch, along the first axis.
    """
    layout = getattr(loss, "layout", None)
    theta = thetas.reshape(-1, thetas.shape[-1])[0]  # the first point
    # Some learners append parameters of their own to those of the network, which come first.
    theta = theta if layout is None else theta[: layout.numel]
    for each in batch if isinstance(batch, list) and batch else [batch]:
        first = each.batches[0] if hasattr(each, "batches") else each
        try:
            if own_batch and first is each:  # not for ragged batches, which hold one batch for each point
                first = pytree.tree_map_only(Tensor, lambda leaf: leaf[0], first)
            with torch.no_grad():
                value = loss(theta, first)
        except Exception as failure:
            held = ", ".join(described(leaf) for leaf in pytree.tree_leaves(first)[:4]) or "nothing"
            advice = "give inputs that the network and targets that the criterion accepts"
            return f"the loss fails on {name}, which holds {held}: {first_line(failure)}; {advice}"
        if not isinstance(value, Tensor):
            return f"the loss gives {described(value)}; loss(theta, {name}) must return a tensor of one number"
    return None


def why_criterion_fails(outputs: Any, targets: Any, error: Exception) -> str | None:
    """What to change where a criterion fails on a network's outputs, if the cause is a common mistake; else None.

    The mistakes are outputs that are no tensor, class numbers where floating-point numbers are needed, and the
    opposite.

    >>> why_criterion_fails(torch.ones(4, 3), torch.ones(4), RuntimeError("expected target dtype to be Long or Byte"))
    'the targets are a tensor [4] of float32; this criterion takes class numbers: give targets.long()'
    """
    said = first_line(error)
    if not isinstance(outputs, Tensor):
        if not isinstance(error, TypeError | AttributeError | LookupError):
            return None
        names = list(outputs) if isinstance(outputs, Mapping) else []
        # The part to suggest: an entry of logits, or else the first entry; of a tuple the part at position 0.
        logits = [name for name in names if str(name).endswith("logits")] or names or [0]
        entries = f" with the entries {', '.join(map(str, names))}" if names else ""
        return (
            f"the criterion fails on the outputs, which are a {type(outputs).__name__}{entries} ({said}); let it take "
            f"a part of them, as in lambda out, y: cross_entropy(out[{logits[0]!r}], y), or give None as the criterion "
            "if the network returns its loss when it gets the labels"
        )
    if not isinstance(targets, Tensor) or not isinstance(error, RuntimeError):
        return None
    if "expected target dtype" in said or "expected scalar type Long" in said:
        return f"the targets are {described(targets)}; this criterion takes class numbers: give targets.long()"
    if targets.is_floating_point():
        return None
    if "must match the size" in said and targets.shape == outputs.shape[:-1]:
        return (
            f"the targets are {described(targets)}, and the outputs {described(outputs)}; give class numbers to a "
            f"criterion such as cross_entropy, or give this one one_hot(targets, {outputs.shape[-1]}).float()"
        )
    # Torch says, in this order: "result type Float can't be cast to the desired output type Long", "Found dtype Long
    # but expected Float", "Expected floating point type for target".
    if any(words in said for words in ("can't be cast", "Found dtype", "floating point type")):
        return (
            f"the targets are {described(targets)}; this criterion takes floating-point numbers: give targets.float()"
        )
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device has no memory left, so that less work at once might fit.

    Inside TorchScript, in which some of torch's derivatives are written, an OutOfMemoryError comes out as a
    RuntimeError that holds its text.

    >>> is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory.")), is_out_of_memory(RuntimeError("no"))
    (True, False)
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and OUT_OF_MEMORY in str(error)


def says_enough(error: Exception) -> bool:
    """Whether an error needs no explanation: memory ran out, or a raise statement of the library has raised it."""
    if is_out_of_memory(error):
        return True
    last = error.__traceback__
    assert last is not None
    while last.tb_next is not None:  # the last entry is the line that raised the error
        last = last.tb_next
    code = last.tb_frame.f_code
    # RAISE_VARARGS is the instruction of a raise statement; a call that failed stands at another instruction.
    return code.co_filename.startswith(LIBRARY) and code.co_code[last.tb_lasti] == opmap["RAISE_VARARGS"]
