"""Full precision for derivatives of second order, whatever the process has been set to.

Curvature is off by 5 to 20 % where convolutions or matrix products run in TF32 or bfloat16, and no residual shows it:
that says how well a pair belongs to the operator as computed. TF32 is torch's default for convolutions on CUDA, and a
script may have asked for less than float32 by ``torch.autocast`` or ``torch.set_float32_matmul_precision``.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

# Objects with an attribute that tells torch how to do float32 products; before torch 2.9 there were two.
Switch = tuple[Any, str]
BACKENDS: Any = torch.backends
ON_CPU: tuple[Switch, ...] = ()
ON_CUDA: tuple[Switch, ...] = ((BACKENDS.cudnn, "allow_tf32"), (BACKENDS.cuda.matmul, "allow_tf32"))
NEW_NAMES = torch.__version__ >= "2.9"
if NEW_NAMES:
    ON_CPU = tuple((owner, "fp32_precision") for owner in (BACKENDS.mkldnn.conv, BACKENDS.mkldnn.matmul))
    ON_CUDA = tuple(
        (owner, "fp32_precision") for owner in (BACKENDS.cudnn.conv, BACKENDS.cuda.matmul, BACKENDS.cudnn.rnn)
    )
# How to write what is a function, what it says, and what it says where float32 is float32.
Turned = tuple[Callable[[Any], None], Any, Any]
# What the objects say there.
FULL = ("ieee", "none", False)

_here = threading.local()


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """The function with autocast off and float32 products done in float32; every switch is put back as it was found.

    But for autocast they are switches of the process: another thread at work meanwhile has full precision too.
    """

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        if getattr(_here, "full", False):
            return function(*args, **kwargs)
        devices, switches = (("cpu", "cuda"), ON_CPU + ON_CUDA) if torch.cuda.is_initialized() else (("cpu",), ON_CPU)
        autocast = [device for device in devices if torch.is_autocast_enabled(device)]
        lowered = [switch for switch in switches if getattr(*switch) not in FULL]
        _here.full = True
        try:
            if not autocast and not lowered:  # as nearly always on a CPU
                return function(*args, **kwargs)
            with _raised(autocast, lowered):
                return function(*args, **kwargs)
        finally:
            _here.full = False

    return called


@contextmanager
def _raised(autocast: list[str], lowered: list[Switch]) -> Iterator[None]:
    # What is to be put back is written down before anything is changed: Ctrl-C may come after any call.
    before = [(switch, getattr(*switch)) for switch in (ON_CPU + ON_CUDA if NEW_NAMES else lowered)]
    turned: list[Turned] = [(partial(torch.set_autocast_enabled, device), True, False) for device in autocast]
    turned += _older_names(lowered) if NEW_NAMES else []
    try:
        for write, _, full in turned:
            write(full)
        for owner, name in lowered:
            setattr(owner, name, "ieee" if NEW_NAMES else False)
        yield
    finally:
        for write, said, _ in turned:
            write(said)
        for switch, said in before:
            _put_back(*switch, said)


def _older_names(lowered: list[Switch]) -> list[Turned]:
    """Those of the same switches.

    Where they and the new ones disagree torch raises when asked for them, as ``torch.backends.cudnn.flags`` does, by
    which recurrent networks get a second derivative, and compiled networks; where they do already, that is left.
    """
    owners, found = [owner for owner, _ in lowered], list[Turned]()
    with suppress(RuntimeError):
        if BACKENDS.cuda.matmul in owners:
            found.append((torch.set_float32_matmul_precision, torch.get_float32_matmul_precision(), "highest"))
    with suppress(RuntimeError):
        if BACKENDS.cudnn.conv in owners or BACKENDS.cudnn.rnn in owners:
            found.append((partial(setattr, BACKENDS.cudnn, "allow_tf32"), BACKENDS.cudnn.allow_tf32, False))
    return found


def _put_back(owner: Any, name: str, said: Any) -> None:
    if getattr(owner, name) != said and NEW_NAMES:
        setattr(owner, name, "none")  # what the general switches say, where nothing was said here
    if getattr(owner, name) != said:
        setattr(owner, name, said)
