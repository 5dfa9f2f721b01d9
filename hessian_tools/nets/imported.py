"""A network of your own, by import path; and what any network must be to be trained and measured."""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from inspect import Signature, signature
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from hessian_tools.flat import flatten
from hessian_tools.loss import make_loss
from hessian_tools.rng import stream


def load_network(
    target: str, *, outputs: int, input_shape: tuple[int, ...], options: Mapping[str, Any] | None = None
) -> Callable[[], nn.Module]:
    """What builds the network that ``"package.module:name"`` names: a class of modules or a function that makes one.

    It is called with ``options`` as keywords, and with ``outputs`` and ``input_shape`` (of one example)
    where its signature names them; ``options`` go first. The module is looked for as ``import`` does, then in
    the working folder. Importing it runs its code. Raises ValueError, in a line or two, for what cannot be
    found or called so, and, when the network is built, for what is no ``nn.Module``; see
    :func:`refuse_unfit` for the rest.

    >>> build = load_network("hessian_tools.nets:Conv4", outputs=5, input_shape=(3, 32, 32), options={"width": 16})
    >>> build().head
    Linear(in_features=64, out_features=5, bias=True)
    """
    factory = _named(target)
    takes = _signature(factory, target)
    known = {"outputs": outputs, "input_shape": tuple(input_shape)}
    keywords = {name: value for name, value in known.items() if name in takes.parameters} | dict(options or {})
    try:
        takes.bind(**keywords)
    except TypeError as e:
        raise ValueError(
            f"{target} cannot be called with {', '.join(keywords) or 'nothing'}: {e}; it takes {takes}"
        ) from e
    return partial(_built, factory, target, keywords)


def refuse_unfit(model: nn.Module, *, outputs: int, input_shape: tuple[int, ...]) -> None:
    """Refuse a network that does not map [example, *input_shape] to [example, outputs], or that has hidden state.

    Costs a few forward passes on four examples of standard normal numbers. Raises ValueError (HiddenStateError
    for hidden state) that names what is wrong. The model, its buffers and the random state are left as found.
    """
    theta, layout = flatten(model)
    x = torch.randn(4, *input_shape, generator=stream(0, "an input to look at shapes"))
    loss = make_loss(model, lambda out, _: out.sum(), layout)
    loss.refuse_hidden_state(theta, (x, None))
    with torch.no_grad():
        found = loss.outputs(theta, x)
    if not isinstance(found, Tensor) or found.shape != (4, outputs):
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise ValueError(
            f"{type(model).__name__} makes {got} of 4 examples of shape {tuple(input_shape)};"
            f" the tasks need a tensor of shape (4, {outputs})"
        )


def _built(factory: Callable[..., Any], target: str, keywords: Mapping[str, Any]) -> nn.Module:
    model = factory(**keywords)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{target} makes a {type(model).__name__}, not a torch.nn.Module")
    return model


def _named(target: str) -> Callable[..., Any]:
    path, colon, name = target.partition(":")
    if not (path and colon and name):
        raise ValueError(f"{target!r} is no import path of a network; write package.module:name")
    module = _module(path, target)
    if name not in vars(module):
        public = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ValueError(
            f"{target}: module {path} has no {name!r}; it has {', '.join(public[:8]) or 'nothing to call'}"
        )
    factory = vars(module)[name]
    if isinstance(factory, nn.Module):
        raise ValueError(f"{target} is a network already made, its parameters drawn; name the class or a function")
    if not callable(factory):
        raise ValueError(f"{target} is a {type(factory).__name__}; name a class or a function that makes a network")
    return factory


def _module(path: str, target: str) -> ModuleType:
    try:
        return _imported(path)
    except ModuleNotFoundError as e:
        if e.name is None or not f"{path}.".startswith(f"{e.name}."):  # something it imports in turn
            raise ValueError(f"{target}: importing {path} failed: {e}") from e
        raise ValueError(
            f"{target}: there is no module {e.name!r} in {Path.cwd()} or on Python's path; start from the folder"
            " that holds it, or add that folder to PYTHONPATH"
        ) from e
    except Exception as e:
        raise ValueError(f"{target}: importing {path} failed: {type(e).__name__}: {e}") from e


def _imported(path: str) -> ModuleType:
    """As ``import`` finds it, or in the working folder, which a console script does not look in."""
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.append(here)  # last, so that nothing there hides another package
    try:
        return import_module(path)
    finally:
        if added:
            sys.path.remove(here)


def _signature(factory: Callable[..., Any], target: str) -> Signature:
    try:
        return signature(factory)
    except (TypeError, ValueError):
        raise ValueError(f"{target} does not say which arguments it takes; wrap it in a function of yours") from None
