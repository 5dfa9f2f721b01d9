"""Builds a network from a seed, finds your own network by its import path, and refuses one that does not fit the tasks.

A network can be trained and measured if it maps examples to outputs of the right shape and has no hidden state: its
outputs must be a function of its parameters and inputs alone.
"""

from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import UninitializedParameter

from hessian_tools.failures import described
from hessian_tools.importing import import_object, one_line
from hessian_tools.layout import flatten
from hessian_tools.loss import make_loss
from hessian_tools.rng import stream, stream_seed


def seeded(build: Callable[[], nn.Module], *, seed: int) -> nn.Module:
    """A network whose initial parameters depend on the seed alone; the global random state is left unchanged.

    It is built on the CPU, even if the default device is another, because the CPU draws the same numbers on every
    machine.
    """
    # torch.manual_seed is not used here: it also seeds every GPU, or the first GPU that comes into use later.
    # A seed must fit into a signed 64-bit integer, so seven of the hash's bytes are taken.
    number = int.from_bytes(stream_seed(seed, "initial parameters")[:7], "little")
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=gpus), torch.device("cpu"):
        torch.default_generator.manual_seed(number)
        if gpus:
            torch.cuda.manual_seed_all(number)
        model = build()
    if not isinstance(model, nn.Module):
        raise ValueError(f"build gives {described(model)}; it must be a function that builds a torch.nn.Module")
    return model


def load_network(
    target: str | Callable[..., Any],
    *,
    outputs: int,
    input_shape: tuple[int, ...],
    options: Mapping[str, Any] | None = None,
) -> Callable[[], nn.Module]:
    """Return a function that builds the network of a class or factory function.

    target: the class or function, or its import path ``"package.module:name"`` or ``"path/to/file.py:name"``.

    The class or function is called with ``options`` as keywords. It also gets ``outputs`` and ``input_shape`` (of one
    example) if its signature has these names and ``options`` does not. The module is looked for on Python's path and
    then in the working folder; importing it runs its code. Raises ValueError if the name cannot be found or cannot be
    called with these arguments. The returned function raises ValueError if the result is not an ``nn.Module``. Whether
    the network fits the tasks is checked by :func:`refuse_unfit`.

    >>> build = load_network("hessian_tools.nets:Conv4", outputs=5, input_shape=(3, 32, 32), options={"width": 16})
    >>> build().head
    Linear(in_features=64, out_features=5, bias=True)
    """
    factory = import_object(target) if isinstance(target, str) else target
    target = target if isinstance(target, str) else getattr(target, "__name__", repr(target))
    if isinstance(factory, nn.Module):
        raise ValueError(f"{target} is a network that is already built; name a class or a function that builds it")
    if not callable(factory):
        raise ValueError(f"{target} is a {type(factory).__name__}; name a class or a function that makes a network")
    try:
        takes = signature(factory)
    except (TypeError, ValueError):
        raise ValueError(f"{target} has no signature that can be read; wrap it in a function of your own") from None
    known = {"outputs": outputs, "input_shape": tuple(input_shape)}
    keywords = {name: value for name, value in known.items() if name in takes.parameters} | dict(options or {})
    try:
        takes.bind(**keywords)
    except TypeError as e:
        raise ValueError(
            f"{target} cannot be called with {', '.join(keywords) or 'nothing'}: {e}; it takes {takes}"
        ) from e
    return partial(_build, factory, target, keywords)


def refuse_unfit(model: nn.Module, *, outputs: int, input_shape: tuple[int, ...]) -> None:
    """Refuse a network that does not map [example, *input_shape] to [example, outputs], or that has hidden state.

    It runs a few forward passes on four examples of standard normal numbers. Raises ValueError, or HiddenStateError for
    hidden state. The model, its buffers and the global random state are left unchanged.
    """
    name = type(model).__name__
    if any(isinstance(p, UninitializedParameter) for p in model.parameters()):
        raise ValueError(f"{name} has lazy layers, whose shapes are not known yet; use layers with given sizes")
    theta, layout = flatten(model)
    x = torch.randn(4, *input_shape, generator=stream(0, "an input to look at shapes"))
    buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}  # a forward pass may change them
    tensors = layout.unflatten(theta) | buffers

    def outputs_on(device: str) -> Any:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return functional_call(model, {key: each.to(device) for key, each in tensors.items()}, (x.to(device),))

    def refuse(y: Any) -> None:
        if not isinstance(y, Tensor) or y.shape != (4, outputs):
            got = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
            raise ValueError(
                f"{name} returns {got} for 4 examples of shape {tuple(input_shape)};"
                f" the tasks need a tensor of shape (4, {outputs})"
            )

    try:
        # Nothing is computed on the meta device, where outputs of an absurd size are therefore refused at once.
        shapes_only = outputs_on("meta")
    except Exception:  # not every network works on the meta device
        shapes_only = None
    if isinstance(shapes_only, Tensor):
        refuse(shapes_only)
    try:
        y = outputs_on("cpu")
    except Exception as e:  # a forward pass may raise anything
        raise ValueError(f"{name} cannot take examples of shape {tuple(input_shape)}: {one_line(e)}") from e
    refuse(y)
    # Any loss will do here, because hidden state shows in the outputs; their sum needs no targets.
    make_loss(model, lambda out, _: out.sum(), layout).refuse_hidden_state(theta, (x, None))


def _build(factory: Callable[..., Any], target: str, keywords: Mapping[str, Any]) -> nn.Module:
    try:
        model = factory(**keywords)
    except ValueError:
        raise
    except Exception as e:  # the user's code may raise anything
        raise ValueError(f"{target} with {dict(keywords)} failed: {one_line(e)}") from e
    if not isinstance(model, nn.Module):
        raise ValueError(f"{target} makes a {type(model).__name__}, not a torch.nn.Module")
    return model
