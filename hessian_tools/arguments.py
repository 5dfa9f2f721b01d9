"""Rules of arguments: which values an annotation accepts. All others are refused with a ValueError.

A rule is read from the annotation of an argument. The range of a number follows from the argument's name, because an
option has the same name and the same meaning in all functions.
"""

import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from inspect import Parameter, signature
from math import isfinite
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, NamedTuple, SupportsIndex, Union, get_args, get_origin, get_type_hints, is_typeddict

import numpy as np
import torch
from torch import Tensor, nn

from hessian_tools.failures import described, short
from hessian_tools.validation import check_whole

# For the messages: how a user makes an object of a class, by the name of the class; ht stands for hessian_tools.
MADE_BY = {
    "AdaptationJacobian": "ht.adaptation_jacobian(H, step_size)",
    "EigenPairs": "ht.top_eigenpairs(H, vectors=True)",
    "Generator": "ht.stream(seed)",
    "Learner": "ht.learners.maml(steps, step_size)",
    "Loss": "ht.make_loss(model, criterion, layout)",
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

# The ranges of numbers, by the names of the arguments. First whole numbers: the smallest allowed one, and for which
# arguments it holds.
AT_LEAST = {
    0: "ends fine_tuning_steps index last point validation_tasks",
    1: "channels chunk depth evaluation_steps every factor groups heads hidden image_size k l magnitude max_basis "
    "max_matvecs max_points max_probes max_rank meta_batch minibatches num_matvecs num_params num_probes num_rotations "
    "num_tasks outputs patch points queries reference_steps save_every schedule_steps shots size steps target_steps "
    "ways width",
}
# The floating-point numbers that must be above 0, and those that may also be 0.
POSITIVE = "epsilon fine_tuning_step_size learning_rate step_size tau threshold width"
NOT_NEGATIVE = "atol brightness encoder_weight ends_rtol kl_weight l2_weight noise orthogonality_weight rtol shift zoom"
SHAPES = ("input_shape", "sizes", "widths")  # lists of whole numbers, each of them at least 1


class Rule(NamedTuple):
    """What an annotation accepts.

    accepts: the test of a value. expected: what the value should be, in words. tensor: the rule of the tensors among
    the accepted values; None if there are none, or if several rules could apply.
    """

    accepts: Callable[[Any], bool]
    expected: str
    tensor: "TensorRule | None" = None


@dataclass(frozen=True)
class TensorRule:
    """The dtypes of a tensor, and the names of its axes.

    kind: the dtypes in words, such as "floating-point". dims: the axes that are always there. points: the name of all
    axes before these, "" if they have no name; None if there may be no others. In the annotation "*point param", for
    example, dims is ("param",) and points is "point". broadcasts: whether axes of length one may stand for any length.
    """

    dtypes: frozenset[torch.dtype]
    kind: str
    dims: tuple[str, ...]
    points: str | None
    broadcasts: bool

    @cached_property
    def named(self) -> list[tuple[int, str]]:
        """The position in ``dims`` and the name of each axis there that has a name."""
        return [(i, name) for i, name in enumerate(self.dims) if name.isidentifier() and name != "_"]

    def accepts(self, value: Any) -> bool:
        """Whether the value is a tensor with one of the dtypes and with these axes, none of them empty."""
        if not isinstance(value, Tensor) or value.dtype not in self.dtypes or value.numel() == 0:
            return False
        return value.ndim == len(self.dims) if self.points is None else value.ndim >= len(self.dims)

    def sizes(self, value: Tensor) -> list[tuple[str, Any]]:
        """The names and sizes of the axes that must agree in size with axes of the same name of other tensors."""
        shape = value.shape
        first = len(shape) - len(self.dims)
        sizes: list[tuple[str, Any]] = [(name, shape[first + i]) for i, name in self.named]
        if self.points and not self.broadcasts:
            sizes.append((self.points, shape[:first]))
        return sizes

    def __str__(self) -> str:
        axes = [*([] if self.points is None else [f"{self.points or 'any'} ..."]), *self.dims]
        return f"a tensor [{', '.join(axes)}] of {self.kind} numbers, not empty" if axes else "a tensor of one number"


def check_arguments(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise ValueError for the first argument that its annotation does not accept, and for sizes that do not agree.

    Arguments that the function does not have are left to Python, which raises TypeError for them.
    """
    positional, by_name, compares = rules_of(function)
    for (name, rule), value in zip(positional, args, strict=False):
        if not rule.accepts(value):
            _refuse(name, rule, value)
    for name, value in kwargs.items():
        if name in by_name and not by_name[name].accepts(value):
            _refuse(name, by_name[name], value)
    if compares:
        given = {name: value for (name, _), value in zip(positional, args, strict=False)} | dict(kwargs)
        _check_sizes(given, by_name)


def _check_sizes(given: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Raise ValueError where axes of one name differ in size.

    The number of parameters of an operator or of a layout counts as the size of the axis "param".
    """
    sizes: dict[str, tuple[str, Any]] = {}
    if "H" in given:
        sizes["param"] = ("H", given["H"].num_params)
    if "layout" in given:
        sizes["param"] = ("layout", given["layout"].numel)
    for name, value in given.items():
        if not isinstance(value, Tensor) or name not in rules or (rule := rules[name].tensor) is None:
            continue
        for axis, size in rule.sizes(value):
            other, expected = sizes.setdefault(axis, (name, size))
            if size != expected:
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}, so that its axis '{axis}' has the size {_plain(size)}, "
                    f"but {other} has {_plain(expected)} there; give {rule}"
                )


def _plain(size: Any) -> Any:
    """The size of one axis, or of several axes as a tuple, for a message."""
    return tuple(size) if isinstance(size, torch.Size) else size


def _refuse(name: str, rule: Rule, value: Any) -> None:
    """Raise ValueError for an argument: what came, what is expected and, where it is known, how to get it."""
    # check_whole has a more exact message. The rule of a list of whole numbers has these words too, but refuses 1.
    if isinstance(value, Real) and WHOLE[None].expected in rule.expected and rule.accepts(1):
        check_whole(at_least=LEAST.get(name), **{name: value})
    if name in ("theta", "thetas") and not isinstance(value, Tensor | np.ndarray):
        raise ValueError(f"{name} is {described(value)}; give {rule.expected}: theta, layout = ht.flatten(model)")
    if isinstance(value, str | int | float | complex | list | tuple | dict | set):
        raise ValueError(f"{name}={short(value)} must be {rule.expected}")
    fix = f"give {rule.expected}"
    if isinstance(value, np.ndarray) and rule.tensor is not None:
        fix = f"give torch.from_numpy({name}), {rule.expected}"
    if isinstance(value, Tensor) and value.is_complex() and rule.tensor is not None:
        fix = f"give real numbers, such as the parts that torch.view_as_real gives: {rule.expected}"
    raise ValueError(f"{name} is {described(value)}; {fix}")


class Rules(NamedTuple):
    """The rules of a function's positional arguments in their order, and those of all its arguments by name.

    compares: whether the sizes of arguments are to be compared.
    """

    positional: list[tuple[str, Rule]]
    by_name: dict[str, Rule]
    compares: bool


@cache
def rules_of(function: Callable[..., Any]) -> Rules:
    """The rules of a function, read from its annotations once; None is accepted where it is the default."""
    hints = get_type_hints(function)
    rules = Rules([], {}, False)
    for name, parameter in signature(function).parameters.items():
        hint = hints.get(name, Any)
        if parameter.kind is Parameter.VAR_KEYWORD:
            options = get_args(hint)  # Unpack[a TypedDict]
            if options and is_typeddict(options[0]):
                rules.by_name.update((key, _rule(kind, key)) for key, kind in get_type_hints(options[0]).items())
        elif parameter.kind is not Parameter.VAR_POSITIONAL:
            rule = _rule(hint, name)
            rules.by_name[name] = rule if parameter.default is not None or rule.accepts(None) else _any_of([rule, NONE])
            if parameter.kind is not Parameter.KEYWORD_ONLY:
                rules.positional.append((name, rules.by_name[name]))
    # Sizes are compared only where two arguments can disagree: if the name of an axis occurs twice, or if an argument H
    # or layout states the number of parameters. Every tensor may have axes of points, for which "" stands here.
    axes = [axis for rule in rules.by_name.values() if rule.tensor is not None for axis in (*rule.tensor.dims, "")]
    states_size = "H" in rules.by_name or "layout" in rules.by_name
    return rules._replace(compares=len(axes) > len(set(axes)) or (bool(axes) and states_size))


def _is_whole(value: Any) -> bool:
    # The first test is the quicker one, and answers most calls. A bool is an Integral, but no whole number here.
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)


def _is_device(value: Any) -> bool:
    try:
        return isinstance(value, str | torch.device) and bool(torch.device(value))
    except RuntimeError:
        return False


ANYTHING = Rule(lambda value: True, "anything")
LEAST = {name: least for least, names in AT_LEAST.items() for name in names.split()}
WHOLE = {
    None: Rule(_is_whole, "a whole number"),
    0: Rule(lambda v: _is_whole(v) and v >= 0, "a whole number, 0 or more"),
    1: Rule(lambda v: _is_whole(v) and v >= 1, "a whole number, 1 or more"),
}
FLOATS = {
    "confidence": Rule(lambda v: _is_number(v) and 0 < v < 1, "a number between 0 and 1, such as 0.95"),
    **dict.fromkeys(POSITIVE.split(), Rule(lambda v: _is_number(v) and v > 0, "a finite number above 0")),
    "max_memory": Rule(lambda v: _is_number(v) and v >= 1, "a number of bytes, such as 4e9"),
    **dict.fromkeys(NOT_NEGATIVE.split(), Rule(lambda v: _is_number(v) and v >= 0, "a finite number, 0 or more")),
}
NONE = Rule(lambda v: v is None, "None")
SCALARS: dict[Any, Rule] = {
    Any: ANYTHING,
    float: Rule(_is_number, "a finite number"),
    bool: Rule(lambda v: isinstance(v, bool | np.bool_), "True or False"),
    str: Rule(lambda v: isinstance(v, str), "a str"),
    Path: Rule(lambda v: isinstance(v, str | Path) and "\0" not in str(v), "a path without a NUL character"),
    type(None): NONE,
    Tensor: Rule(  # any dtype and any axes
        lambda v: isinstance(v, Tensor) and v.numel() > 0,
        "a tensor, not empty",
        TensorRule(frozenset(), "", (), "", broadcasts=True),
    ),
}


def _rule(hint: Any, name: str = "") -> Rule:
    """The rule of an annotation; an annotation that is not known accepts everything. name: that of the argument."""
    if hint in (int, SupportsIndex):
        return WHOLE[LEAST.get(name)]
    if hint is str and name == "device":
        return Rule(_is_device, "a device of torch, such as 'cpu' or 'cuda'")
    if hint is float and name in FLOATS:
        return FLOATS[name]
    if hint in SCALARS:
        return SCALARS[hint]
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        # A float may be written as an int, and a path as a str.
        kinds = [
            each for each in inside if not (each is int and float in inside) and not (each is str and Path in inside)
        ]
        return _any_of([_rule(each, name) for each in kinds])
    if origin is Literal:
        return Rule(lambda v: isinstance(v, str | bool) and v in inside, f"one of {', '.join(map(str, inside))}")
    if origin in (tuple, list, Sequence):
        whole_sizes = name in SHAPES
        parts = [WHOLE[1] if each is int and whole_sizes else _rule(each) for each in inside if each is not ...]
        # The entries of a tuple have one kind in all functions of the library.
        return _list_rule(parts[0], None if inside[-1:] == (...,) or origin is not tuple else len(parts))
    if origin is Iterable:
        return _iterable_rule(_rule(inside[0]))
    if origin is Mapping:
        return Rule(lambda v: isinstance(v, Mapping), "a dict")
    if origin is Callable:
        return _callable_rule(*inside)
    if hasattr(hint, "dim_str"):
        return _tensor_rule(hint)
    # The protocol is recognised by its name, because ``hessian_tools.loss`` is in a higher layer and not imported here.
    if getattr(hint, "__name__", "") == "LossFunction":
        return LOSS_FUNCTION
    if isinstance(hint, type) and hint is not object:
        made = f", such as {MADE_BY[hint.__name__]}" if hint.__name__ in MADE_BY else ""
        article = "an" if hint.__name__[0] in "AEIOU" else "a"
        return Rule(_is_object_of(hint), f"{article} {hint.__name__}{made}")
    return ANYTHING


def _is_loss_function(value: Any) -> bool:
    """Whether a value may be called as loss(theta, batch): no criterion of torch, and no network with one input."""
    if not callable(value) or isinstance(value, type | nn.modules.loss._Loss):
        return False
    if getattr(value, "__module__", "") in ("torch.nn.functional", "torch._C._nn"):
        return False
    try:
        signature(value.forward if isinstance(value, nn.Module) else value).bind(None, None)
    except ValueError:  # some functions that are written in C have no signature
        return True
    except TypeError:
        return False
    return True


LOSS_FUNCTION = Rule(
    _is_loss_function,
    "a function loss(theta, batch), such as ht.make_loss(model, criterion, layout) makes of a network",
)


def _list_rule(part: Rule, length: int | None) -> Rule:
    """The rule of a list with entries of one kind; length: how many entries it has, or None for any number."""

    def accepts(v: Any) -> bool:
        return isinstance(v, tuple | list | range) and length in (None, len(v)) and all(map(part.accepts, v))

    kind = "a list, each entry" if length is None else f"{length} values, each"
    return Rule(accepts, f"{kind} {part.expected}")


def _iterable_rule(part: Rule) -> Rule:
    """The rule of an iterable. A tensor is an iterable of its rows, and must itself pass the rule of the entries."""
    return Rule(
        # Only a list is looked into, because looking into an iterator would use it up.
        lambda v: (
            hasattr(v, "__iter__")
            and (part.accepts(v) if isinstance(v, Tensor) else not isinstance(v, np.ndarray | nn.Module | str))
            and (not isinstance(v, list | tuple) or all(map(part.accepts, v)))
        ),
        f"a list, each entry {part.expected}",
    )


def _is_object_of(kind: type) -> Callable[[Any], bool]:
    """The test whether a value is an object of a class or of a protocol."""
    known: set[type] = set()  # types that have passed, because the test of a protocol takes microseconds

    def accepts(value: Any) -> bool:
        if type(value) in known:
            return True
        # A class has the methods of a protocol as its objects do, but it is not such an object.
        passes = isinstance(value, kind) and not isinstance(value, type)
        if passes:
            known.add(type(value))
        return passes

    return accepts


def _any_of(rules: Sequence[Rule]) -> Rule:
    """The rule that accepts what one of the rules accepts."""
    accepts = [rule.accepts for rule in rules]
    expected = " or ".join(dict.fromkeys(rule.expected for rule in rules))
    tensors = [rule.tensor for rule in rules if rule.tensor is not None]
    tensor = tensors[0] if len(tensors) == 1 else None
    return Rule(lambda v: any(accept(v) for accept in accepts), expected, tensor)


def _callable_rule(arguments: Any, result: Any) -> Rule:
    """The rule of a function.

    For a function that builds an object, the object itself is refused; for any other, a class of networks is refused.
    """
    result = result if isinstance(result, type) else object
    builds = arguments == [] and result is not object
    expected = f"a function that builds a {result.__name__}" if builds else "a function"

    def accepts(value: Any) -> bool:
        if not callable(value):
            return False
        if builds:
            return not isinstance(value, result)
        if arguments is not ... and isinstance(value, type) and issubclass(value, nn.Module):
            return False
        return result is Tensor or not isinstance(value, nn.Module)  # a criterion may be a module

    return Rule(accepts, expected)


def _tensor_rule(hint: Any) -> Rule:
    """The rule of a jaxtyping annotation, such as ``Float[Tensor, "*point param"]``."""
    axes = hint.dim_str.split()  # in jaxtyping, "*" is any number of axes, and "#" an axis that may have length one
    points = axes[0] if axes and (axes[0] == "..." or axes[0].startswith("*")) else None
    dtypes = frozenset(getattr(torch, name) for name in hint.dtypes if hasattr(torch, name))
    # The kind by (whether floating-point, whether whole numbers are allowed); "such" for neither, such as booleans.
    kinds = {(True, True): "real", (True, False): "floating-point", (False, True): "whole", (False, False): "such"}
    tensor = TensorRule(
        dtypes,
        kinds[torch.float32 in dtypes, torch.int64 in dtypes],
        tuple(axis for axis in axes if axis != points),
        points.strip("*#.") if points is not None else None,
        "#" in (points or ""),
    )
    return Rule(tensor.accepts, str(tensor), tensor)
