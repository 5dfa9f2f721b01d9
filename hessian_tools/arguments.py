"""Checks the arguments of every public function against its annotations, once, where a call enters the library.

``check_public_functions``, at the end of ``hessian_tools/__init__.py``, puts the check before the functions that the
packages export. Calls inside the library go to the functions themselves and are not checked. A wrong argument raises
ValueError with its name, what came and what is expected. Where a loss fails on the batch that it is given, the error
says so.
"""

import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from inspect import Parameter, signature
from numbers import Real
from pathlib import Path
from traceback import walk_tb
from typing import Any, Literal, NamedTuple, TypeVar, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hessian_tools.validation import check_choice, check_whole

F = TypeVar("F", bound=Callable[..., Any])
LIBRARY = str(Path(__file__).parent)
# How a user makes an object of a class.
MADE_BY = {
    "AdaptationJacobian": "ht.adaptation_jacobian(H, step_size)",
    "EigenPairs": "ht.top_eigenpairs(H, vectors=True)",
    "Generator": "ht.stream(seed)",
    "Learner": "ht.learners.maml(steps, step_size)",
    "Loss": "ht.make_loss(model, criterion, layout)",
    "LossFunction": "ht.make_loss(model, criterion, layout)",
    "Module": "ht.MLP((2, 8, 1))",
    "Operator": "ht.hessian(loss, theta, batch)",
    "ParamLayout": "ht.flatten(model)",
    "SaveAt": "ht.SaveAt(thetas=True)",
    "Shot": "ht.Shot()",
    "Spectrum": "ht.spectrum(H)",
    "StepRule": "Momentum(0.9)",
    "TaskSource": "ht.data.open_tasks(name)",
    "Trajectory": "ht.record(learner, loss, theta, support, query)",
}


class Rule(NamedTuple):
    """What an annotation accepts: the test of a value, what is expected in words, and the tensors that it may be."""

    accepts: Callable[[Any], bool]
    expected: str
    tensor: "TensorRule | None" = None


@dataclass(frozen=True)
class TensorRule:
    """The dtypes of a tensor, and the names of its axes.

    dims: the axes that are always there. points: the name of all axes before these, "" if it has none; None where there
    may be no others. broadcasts: whether axes of length one may stand for any length.
    """

    dtypes: frozenset[torch.dtype]
    kind: str
    dims: tuple[str, ...]
    points: str | None
    broadcasts: bool

    def accepts(self, value: Any) -> bool:
        """Whether the value is a tensor of such a dtype with such axes, none of them empty."""
        if not isinstance(value, Tensor) or value.dtype not in self.dtypes or value.numel() == 0:
            return False
        return value.ndim == len(self.dims) if self.points is None else value.ndim >= len(self.dims)

    def sizes(self, value: Tensor) -> dict[str, Any]:
        """The sizes of the axes by name; those that may differ from the sizes of another tensor are left out."""
        first = value.ndim - len(self.dims)
        sizes: dict[str, Any] = dict(zip(self.dims, value.shape[first:], strict=True))
        if self.points and not self.broadcasts:
            sizes[self.points] = tuple(value.shape[:first])
        return {name: size for name, size in sizes.items() if name.isidentifier() and name != "_"}

    def __str__(self) -> str:
        axes = [*([] if self.points is None else [f"{self.points or 'any'} ..."]), *self.dims]
        return f"a tensor [{', '.join(axes)}] of {self.kind} numbers, not empty" if axes else "a tensor of one number"


def checked(function: F, *, module: str) -> F:
    """The function behind a check of its arguments. module: the package in which pickle finds the result by its name."""

    @wraps(function)
    def entry(*args: Any, **kwargs: Any) -> Any:
        _check(function, args, kwargs)
        try:
            return function(*args, **kwargs)
        except Exception as error:
            explanation = _why_the_loss_fails(function, args, kwargs, error)
            if explanation is None:
                raise
            raise ValueError(explanation) from error

    entry.__module__ = module
    return cast(F, entry)


def check_public_functions(*packages: types.ModuleType, classes: Iterable[type] = ()) -> None:
    """Put the check before every function that the packages export, and before the constructors of the classes."""
    entries: dict[Any, Any] = {}
    for package in packages:
        own = [name for name, value in vars(package).items() if getattr(value, "__module__", "") == package.__name__]
        for name in getattr(package, "__all__", [name for name in own if not name.startswith("_")]):
            function = vars(package)[name]
            if isinstance(function, types.FunctionType) and function not in entries.values():
                entries.setdefault(function, checked(function, module=package.__name__))
                setattr(package, name, entries[function])
    for each in classes:
        setattr(each, "__init__", checked(vars(each)["__init__"], module=each.__module__))  # noqa: B010 (for mypy)


def _check(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise ValueError for the first argument that its annotation does not accept, and for sizes that do not agree."""
    positional, by_name, several_tensors = _rules(function)
    for (name, rule), value in zip(positional, args, strict=False):
        if not rule.accepts(value):
            _refuse(name, rule, value)
    for name, value in kwargs.items():
        if name in by_name and not by_name[name].accepts(value):
            _refuse(name, by_name[name], value)
    if several_tensors:
        given = {name: value for (name, _), value in zip(positional, args, strict=False)} | dict(kwargs)
        _check_sizes({name: value for name, value in given.items() if isinstance(value, Tensor)}, by_name)


def _check_sizes(tensors: Mapping[str, Tensor], rules: Mapping[str, Rule]) -> None:
    """Raise ValueError where axes of one name differ in size, or tensors in dtype or device."""
    sizes: dict[str, tuple[str, Any]] = {}
    first: tuple[str, Tensor] | None = None
    for name, value in tensors.items():
        if (rule := rules[name].tensor) is None:
            continue
        for axis, size in rule.sizes(value).items():
            other, expected = sizes.setdefault(axis, (name, size))
            if size != expected:
                shapes = f"{name} has shape {tuple(value.shape)} and {other} {tuple(tensors[other].shape)}"
                raise ValueError(f"{shapes}, but their axes '{axis}' must be equal; expected is {rules[name].expected}")
        if value.is_floating_point():
            first = first or (name, value)
            if (value.dtype, value.device) != (first[1].dtype, first[1].device):
                raise ValueError(
                    f"{name} is {value.dtype} on {value.device}, but {first[0]} is {first[1].dtype} on "
                    f"{first[1].device}; write {name}.to({first[0]})"
                )


def _refuse(name: str, rule: Rule, value: Any) -> None:
    """Raise ValueError for an argument."""
    if rule.expected == WHOLE.expected:
        check_whole(**{name: value})
    fix = f"give {rule.expected}"
    if isinstance(value, np.ndarray) and rule.tensor is not None:
        fix = f"convert it with torch.from_numpy({name}); expected is {rule.expected}"
    raise ValueError(f"{name} is {described(value)}; {fix}")


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
        text = " ".join(repr(value).split())
        return f"a {type(value).__name__}: {text if len(text) < 60 else text[:57] + '...'}"
    return f"a {type(value).__name__}"


class _Rules(NamedTuple):
    """The rules of the positional arguments in their order, those of all by name, and whether sizes are compared."""

    positional: list[tuple[str, Rule]]
    by_name: dict[str, Rule]
    several_tensors: bool


@cache
def _rules(function: Callable[..., Any]) -> _Rules:
    """The rules of a function's annotations."""
    hints = get_type_hints(function)
    rules = _Rules([], {}, False)
    for name, parameter in signature(function).parameters.items():
        hint = hints.get(name, Any)
        if parameter.kind is Parameter.VAR_KEYWORD:
            options = get_args(hint)  # Unpack[a TypedDict]
            if options and is_typeddict(options[0]):
                rules.by_name.update((key, _rule(kind)) for key, kind in get_type_hints(options[0]).items())
        elif parameter.kind is not Parameter.VAR_POSITIONAL:
            rules.by_name[name] = _rule(hint if parameter.default is not None else hint | None)
            if parameter.kind is not Parameter.KEYWORD_ONLY:
                rules.positional.append((name, rules.by_name[name]))
    return rules._replace(several_tensors=sum(rule.tensor is not None for rule in rules.by_name.values()) > 1)


ANYTHING = Rule(lambda value: True, "anything")
WHOLE = Rule(lambda v: type(v) is int or (not isinstance(v, bool) and isinstance(v, np.integer | int)), "a whole number")
NUMBER = Rule(lambda v: isinstance(v, Real) and not isinstance(v, bool | np.bool_) and v == v, "a number that is not NaN")
SCALARS: dict[Any, Rule] = {
    Any: ANYTHING,
    int: WHOLE,
    float: NUMBER,
    bool: Rule(lambda v: isinstance(v, bool | np.bool_), "True or False"),
    str: Rule(lambda v: isinstance(v, str), "a str"),
    Path: Rule(lambda v: isinstance(v, str | Path) and "\0" not in str(v), "a path without a NUL character"),
    type(None): Rule(lambda v: v is None, "None"),
    Tensor: Rule(
        lambda v: isinstance(v, Tensor) and v.numel() > 0,
        "a tensor, not empty",
        TensorRule(frozenset(), "", (), "", broadcasts=True),
    ),
}


def _rule(hint: Any) -> Rule:
    """The rule of an annotation; an annotation that is not known accepts everything."""
    if hint in SCALARS:
        return SCALARS[hint]
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _any_of([_rule(each) for each in inside])
    if origin is Literal:
        return Rule(lambda v: isinstance(v, str | bool) and v in inside, " or ".join(map(repr, inside)))
    if origin is tuple and inside[-1:] != (...,):
        parts = [_rule(each) for each in inside]
        return Rule(
            lambda v: isinstance(v, tuple | list)
            and len(v) == len(parts)
            and all(part.accepts(each) for part, each in zip(parts, v, strict=True)),
            f"{len(parts)} values: {', '.join(part.expected for part in parts)}",
        )
    if origin in (tuple, list, Sequence):
        part = _rule(inside[0])
        return Rule(
            lambda v: isinstance(v, tuple | list | range) and all(map(part.accepts, v)),
            f"a list or tuple, each entry {part.expected}",
        )
    if origin is Iterable:
        part = _rule(inside[0])
        return Rule(
            lambda v: hasattr(v, "__iter__") and not (isinstance(v, list | tuple) and not all(map(part.accepts, v))),
            f"a list, each entry {part.expected}",
        )
    if origin is Mapping:
        return Rule(lambda v: isinstance(v, Mapping), "a dict")
    if origin is Callable:
        return _callable_rule(*inside)
    if hasattr(hint, "dim_str"):
        return _tensor_rule(hint)
    if isinstance(hint, type) and hint is not object:
        made = f", such as {MADE_BY[hint.__name__]}" if hint.__name__ in MADE_BY else ""
        # A class may have all the methods of a protocol, but it is no object of it.
        return Rule(lambda v: isinstance(v, hint) and not isinstance(v, type), f"a {hint.__name__}{made}")
    return ANYTHING


def _any_of(rules: Sequence[Rule]) -> Rule:
    """The rule that accepts what one of the rules accepts."""
    accepts = [rule.accepts for rule in rules]
    expected = " or ".join(dict.fromkeys(rule.expected for rule in rules))
    tensor = next((rule.tensor for rule in rules if rule.tensor is not None), None)
    return Rule(lambda v: any(accept(v) for accept in accepts), expected, tensor)


def _callable_rule(arguments: Any, result: Any) -> Rule:
    """The rule of a function. Where it builds an object, the object itself is refused; where not, a class is."""
    result = result if isinstance(result, type) else object
    builds = arguments == [] and result is not object
    expected = f"a function that builds a {result.__name__}" if builds else "a function"

    def accepts(value: Any) -> bool:
        if not callable(value):
            return False
        return not isinstance(value, result) if builds else not (isinstance(value, type) and issubclass(value, nn.Module))

    return Rule(accepts, expected)


def _tensor_rule(hint: Any) -> Rule:
    """The rule of a jaxtyping annotation, such as ``Float[Tensor, "*point param"]``."""
    axes = hint.dim_str.split()
    points = next((axis for axis in axes if axis == "..." or axis.startswith("*")), None)
    many = points is not None and axes.index(points) == 0
    dtypes = frozenset(getattr(torch, name) for name in hint.dtypes if hasattr(torch, name))
    kind = "floating-point" if torch.float32 in dtypes else "whole" if torch.int64 in dtypes else "such"
    tensor = TensorRule(
        dtypes,
        kind,
        tuple(axis for axis in axes if axis != points),
        points.strip("*#.") if points is not None else None,
        "#" in (points or ""),
    )
    assert many or points is None, f"{hint}: the axes that are not counted must come first"
    return Rule(tensor.accepts, str(tensor), tensor)


def _why_the_loss_fails(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], error: Exception
) -> str | None:
    """Why a call failed, if its loss fails on its batch at the first point; None where the loss is not the reason."""
    given = dict(zip(_rules(function).by_name, args, strict=False)) | dict(kwargs)
    loss = given.get("loss")
    thetas = given.get("thetas", given.get("theta"))
    if loss is None or not isinstance(thetas, Tensor) or _is_ours(error) or isinstance(error, torch.OutOfMemoryError):
        return None
    for name in ("batch", "support", "query"):
        if name in given:
            theta, batch = _at_first_point(thetas, given[name], shared=bool(given.get("shared")))
            layout = getattr(loss, "layout", None)
            try:
                with torch.no_grad():
                    value = loss(theta if layout is None else theta[: layout.numel], batch)
            except Exception as failure:
                leaves = [leaf for leaf in pytree.tree_leaves(batch)][:4]
                cause = str(failure).strip().splitlines() or [type(failure).__name__]
                return (
                    f"the loss fails on {name}, which holds {', '.join(map(described, leaves)) or 'nothing'}: "
                    f"{cause[0][:200]}; give inputs that the network and targets that the criterion accepts"
                )
            if not isinstance(value, Tensor):
                return f"loss gives {described(value)}; a loss(theta, batch) returns a tensor of one number"
    return None


def _at_first_point(thetas: Tensor, batch: Any, *, shared: bool) -> tuple[Tensor, Any]:
    """The parameters of the first point, and the first batch there."""
    batch = batch[0] if isinstance(batch, list) and batch else batch
    batch = batch.batches[0] if hasattr(batch, "batches") else batch
    if thetas.ndim < 2:
        return thetas, batch
    if not shared:
        batch = pytree.tree_map_only(Tensor, lambda leaf: leaf[0], batch)
    return thetas.reshape(-1, thetas.shape[-1])[0], batch


def _is_ours(error: Exception) -> bool:
    """Whether the library itself raised the error, which then says what is wrong."""
    *_, (frame, _) = walk_tb(error.__traceback__)
    return isinstance(error, ValueError) and frame.f_code.co_filename.startswith(LIBRARY)
