"""A network of your own, by import path; and what any network must be to be trained and measured."""

import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from hashlib import sha256
from importlib import import_module
from inspect import Signature, signature
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import UninitializedParameter

from hessian_tools.layout import flatten
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


def source_digest(target: str) -> str:
    """SHA-256 of the file that ``"package.module:name"`` is imported from: two runs with one digest ran one code.

    Code which that file imports in turn is not in it.
    """
    file = _module(target.partition(":")[0], target).__file__
    return sha256(Path(file).read_bytes()).hexdigest() if file else ""


def refuse_unfit(model: nn.Module, *, outputs: int, input_shape: tuple[int, ...]) -> None:
    """Refuse a network that does not map [example, *input_shape] to [example, outputs], or that has hidden state.

    Costs a few forward passes on four examples of standard normal numbers. Raises ValueError (HiddenStateError
    for hidden state) that names what is wrong. The model, its buffers and the random state are left as found.
    """
    if any(isinstance(p, UninitializedParameter) for p in model.parameters()):
        raise ValueError(
            f"{type(model).__name__} has lazy layers, whose shapes are not known yet; give them their sizes"
        )
    theta, layout = flatten(model)
    x = torch.randn(4, *input_shape, generator=stream(0, "an input to look at shapes"))
    found = _forward(model, layout.unflatten(theta), x)
    if not isinstance(found, Tensor) or found.shape != (4, outputs):
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise ValueError(
            f"{type(model).__name__} makes {got} of 4 examples of shape {tuple(input_shape)};"
            f" the tasks need a tensor of shape (4, {outputs})"
        )
    make_loss(model, lambda out, _: out.sum(), layout).refuse_hidden_state(theta, (x, None))


def _forward(model: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Any:
    """Outputs; buffers are moved in a copy, if at all."""
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return functional_call(model, parameters | buffers, (x,))
    except Exception as e:  # whatever a forward pass may raise
        raise ValueError(
            f"{type(model).__name__} cannot take examples of shape {tuple(x.shape[1:])}: {_said(e)}"
        ) from e


def _built(factory: Callable[..., Any], target: str, keywords: Mapping[str, Any]) -> nn.Module:
    try:
        model = factory(**keywords)
    except ValueError:
        raise
    except Exception as e:  # whatever code of the user's may raise
        raise ValueError(f"{target} with {dict(keywords)} failed: {_said(e)}") from e
    if not isinstance(model, nn.Module):
        raise ValueError(f"{target} makes a {type(model).__name__}, not a torch.nn.Module")
    return model


def _named(target: str) -> Callable[..., Any]:
    path, colon, name = target.partition(":")
    if not (path and colon and name):
        raise ValueError(f"{target!r} is no import path of a network; write package.module:name")
    module = _module(path, target)
    factory = getattr(module, name, None)
    if factory is None:
        raise ValueError(f"{target}: module {path} has no {name!r}; {_hint(module, name)}")
    if isinstance(factory, nn.Module):
        raise ValueError(f"{target} is a network already made, its parameters drawn; name the class or a function")
    if not callable(factory):
        raise ValueError(f"{target} is a {type(factory).__name__}; name a class or a function that makes a network")
    return factory


def _hint(module: ModuleType, name: str) -> str:
    known = [n for n, v in vars(module).items() if isinstance(v, type | FunctionType) and not n.startswith("_")]
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known[:8]) or 'no class and no function'}"


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
        raise ValueError(f"{target}: importing {path} failed: {_said(e)}") from e


def _said(error: Exception) -> str:
    """What foreign code raised, in one line."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


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
