"""Puts the check of arguments before the public functions, in one place, where a call enters the library.

The arguments of every public function are checked against its annotations (``hessian_tools.arguments``). Calls inside
the library go to the functions themselves and are not checked. A wrong argument raises ValueError with its name, what
came and what is expected. Where a loss fails on the batch that it is given, the error says so. The functions of
``hessian_tools.curvature`` run in full float32 precision (``hessian_tools.torch_fixes.precision``), too.
"""

from collections.abc import Callable, Mapping
from functools import wraps
from inspect import Parameter, signature
from types import FunctionType, ModuleType
from typing import Any, TypeVar, cast

from torch import Tensor
from torch.utils.data import DataLoader

from hessian_tools import curvature, data, nets, train, trajectory
from hessian_tools.arguments import check_arguments, rules_of
from hessian_tools.curvature import Operator
from hessian_tools.failures import says_enough, why_loss_fails
from hessian_tools.inner import collapse, learners, penalty, pretraining, shot, steps
from hessian_tools.layout import flatten
from hessian_tools.loss import make_loss
from hessian_tools.processes import Share
from hessian_tools.result import Result
from hessian_tools.torch_fixes.precision import full_precision

F = TypeVar("F", bound=Callable[..., Any])
# Every function that these packages export is checked, and in three modules of the package ``inner`` the functions that
# FUNCTIONS names.
PACKAGES = (curvature, nets, data, train, trajectory)
FUNCTIONS = {
    learners: "maml anil boil meta_sgd reptile leo supervised untrained",
    shot: "longer_reference",
    collapse: "homogeneity",
}
# A function that is not checked: a stream is made in microseconds, of which the check would be a large part, and
# ``stream`` checks its seed itself.
UNCHECKED = ("stream",)
# The only function of curvature without full precision: the product of another tool has to run as its user runs it.
USERS_PRECISION = ("audit",)
# The methods that are checked; "__init__" is the constructor. The methods by which an operator multiplies are not among
# them, because this check would slow products down; they check their vectors themselves.
METHODS: dict[type, str] = {
    **dict.fromkeys((nets.MLP, nets.Conv4, nets.ResNet12, nets.VisionTransformer), "__init__"),
    **dict.fromkeys((learners.Learner, learners.Latent, shot.Shot, steps.Momentum, steps.Preconditioned), "__init__"),
    **dict.fromkeys((penalty.CurvaturePenalty, pretraining.Augmentation, pretraining.ShotPretraining), "__init__"),
    **dict.fromkeys((train.TrainConfig, trajectory.SaveAt, data.Sine, data.Line), "__init__"),
    **dict.fromkeys((data.ImageTasks, data.SineLineTasks, data.CrossDomainTasks), "__init__ episode"),
    trajectory.Recorder: "__init__ trajectory",
    Operator: "restrict scaled to_scipy",
    **dict.fromkeys((curvature.Estimate, curvature.Jackknife), "interval"),
    Result: "save",
}
# The arguments that hold parameter vectors at which a loss is evaluated.
POINTS = ("thetas", "theta", "states")
BATCHES = ("batch", "data", "support", "query")


def checked(function: F, *, module: str) -> F:
    """A function that checks its arguments by the annotations of the given one, and then calls it.

    module: the package that is to hold the result under the function's name. Pickle looks it up there.
    """

    @wraps(function)
    def entry(*args: Any, **kwargs: Any) -> Any:
        check_arguments(function, args, kwargs)
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if says_enough(error):  # memory ran out, or the library itself has raised the error in its own words
                raise
            _refuse_surplus_arguments(function, args)
            given = dict(zip(rules_of(function).by_name, args, strict=False)) | kwargs
            explanation = _why_the_loss_fails(function, given) or _why_tensors_do_not_mix(given, error)
            if explanation is None:
                raise
            raise ValueError(explanation) from error

    entry.__module__ = module
    return cast(F, entry)


def check_entries(library: ModuleType) -> None:
    """Put the check before all public functions and methods. library: the package ``hessian_tools``."""
    entries: dict[Any, Any] = {}  # for each function, the one that checks its arguments and calls it
    exported = {package: list(package.__all__) for package in (*PACKAGES, library)}
    for module, named in (exported | {module: names.split() for module, names in FUNCTIONS.items()}).items():
        for name in named:
            function = vars(module)[name]
            if isinstance(function, FunctionType) and name not in UNCHECKED:
                if function not in entries:  # if several packages export it, all hold the same entry
                    full = module is curvature and name not in USERS_PRECISION
                    entries[function] = checked(full_precision(function) if full else function, module=module.__name__)
                setattr(module, name, entries[function])
    for each, names in METHODS.items():
        for name in names.split():
            setattr(each, name, checked(vars(each)[name], module=each.__module__))


def _refuse_surplus_arguments(function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Raise TypeError for a call with too many arguments by position, such as a batch given as x, y."""
    by_position = [name for name, _ in rules_of(function).positional]
    has_more = any(p.kind is Parameter.VAR_POSITIONAL for p in signature(function).parameters.values())
    if has_more or len(args) <= len(by_position):
        return
    last = by_position[-1]
    pair = f"; {last} is a single argument: give x and y as a pair, (x, y)" if last in BATCHES else ""
    shown, called = [name for name in by_position if name != "self"], function.__qualname__.removesuffix(".__init__")
    raise TypeError(
        f"{called} takes {len(shown)} arguments by position ({', '.join(shown)}), and the others by name{pair}"
    )


def _why_the_loss_fails(function: Callable[..., Any], given: Mapping[str, Any]) -> str | None:
    """Why a call failed, if its loss fails on one of its batches at the first point; else None."""
    parameters = signature(function).parameters
    # A batch that is None by default, and was not given, is left out.
    names = [name for name in BATCHES if name in given and not (given[name] is parameters[name].default is None)]
    if not names:
        return None
    loss: Any
    points: Any
    if "model" in given and "criterion" in given:  # the function makes its loss itself
        points, own_layout = flatten(given["model"], given.get("where"))
        loss = make_loss(given["model"], given["criterion"], own_layout)
    else:
        points = next((given[name] for name in POINTS if name in given), None)
        loss = given.get("loss")
    theta = points[0] if isinstance(points, list | tuple) and points else points
    layout = getattr(loss, "layout", None)
    if layout is not None and not isinstance(theta, Tensor):  # a state dict or a file
        theta = layout.flatten(dict(loss.model.named_parameters()))
    if not callable(loss) or not isinstance(theta, Tensor):
        return None
    for name in names:
        batch = given[name].batch if isinstance(given[name], Share) else given[name]
        if isinstance(batch, DataLoader):
            continue  # reading it again would draw other random numbers, or continue a stream
        # Whether each point has a batch of its own: so it is for several points, unless shared=True.
        own_batch = theta.ndim > 1 and name == "batch" and not given.get("shared")
        why = why_loss_fails(loss, theta, batch, name=name, own_batch=own_batch)
        if why is not None:
            return why
    return None


def _why_tensors_do_not_mix(given: Mapping[str, Any], error: Exception) -> str | None:
    """Which tensors differ in dtype or device, if torch could not compute with them together; else None."""
    # Torch says "expected ... to have the same dtype" or "... to be on the same device".
    if not isinstance(error, RuntimeError) or "same" not in str(error):
        return None
    tensors = [(name, each) for name, each in given.items() if isinstance(each, Tensor) and each.is_floating_point()]
    for name, each in tensors:
        first, like = tensors[0]
        if (each.dtype, each.device) != (like.dtype, like.device):
            kinds = f"{name} is {each.dtype} on {each.device}, but {first} is {like.dtype} on {like.device}"
            return f"{kinds}; write {name}.to({first})"
    return None
