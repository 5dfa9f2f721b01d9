"""Full float32 precision for derivatives of second order, even where the process is set to a lower precision.

Curvature is off by 5 to 20 % where convolutions or matrix products run in TF32 or bfloat16. No residual shows it,
because a residual says how well an eigenpair fits the operator as it was computed. TF32 is torch's default for
convolutions on CUDA, and a script may have asked for less than float32 by ``torch.autocast`` or
``torch.set_float32_matmul_precision``.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

# An object of torch and the name of its attribute that says how float32 products are computed.
Attribute = tuple[Any, str]
BACKENDS: Any = torch.backends
# Since torch 2.9 each kind of product has such an attribute. Before that there were two, both for CUDA.
# (torch.__version__ compares itself with text as a version: 2.10 is above "2.9".)
HAS_ATTRIBUTES = torch.__version__ >= "2.9"
ON_CPU: tuple[Attribute, ...] = ()
ON_CUDA: tuple[Attribute, ...] = ((BACKENDS.cudnn, "allow_tf32"), (BACKENDS.cuda.matmul, "allow_tf32"))
if HAS_ATTRIBUTES:
    ON_CPU = tuple((owner, "fp32_precision") for owner in (BACKENDS.mkldnn.conv, BACKENDS.mkldnn.matmul))
    ON_CUDA = tuple(
        (owner, "fp32_precision") for owner in (BACKENDS.cudnn.conv, BACKENDS.cuda.matmul, BACKENDS.cudnn.rnn)
    )
# Values of these attributes under which float32 products are computed in float32. An attribute without a value of its
# own gives that of the general setting, such as torch.backends.fp32_precision, and "none" where that has none either.
FULL_PRECISION = ("ieee", "none", False)

# Whether this thread is inside a function that has switched to full precision already.
_thread = threading.local()


# A switch: how to set it, its current value, and its full-precision value.
Switch = tuple[Callable[[Any], object], Any, Any]


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Makes a function run with autocast off and float32 products in float32, and restores every switch afterwards.

    All switches except autocast belong to the process, so that other threads have full precision meanwhile, too.
    """

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        if getattr(_thread, "full", False):
            return function(*args, **kwargs)
        on_cuda = torch.cuda.is_initialized()
        devices, attributes = (("cpu", "cuda"), ON_CPU + ON_CUDA) if on_cuda else (("cpu",), ON_CPU)
        autocast = [device for device in devices if torch.is_autocast_enabled(device)]
        lowered = [attribute for attribute in attributes if getattr(*attribute) not in FULL_PRECISION]
        _thread.full = True
        try:
            if not autocast and not lowered:  # the usual case on a CPU
                return function(*args, **kwargs)
            with _switched(autocast, lowered):
                return function(*args, **kwargs)
        finally:
            _thread.full = False

    return called


@contextmanager
def _switched(autocast: list[str], lowered: list[Attribute]) -> Iterator[None]:
    """A context in which autocast is off on these devices and the lowered attributes are at full precision."""
    # All values to restore are read before anything is changed, because Ctrl-C may come after any call below. Since
    # torch 2.9 all attributes are read, because an older switch changes several of them, those of the CPU and of CUDA.
    before = [(owner, name, getattr(owner, name)) for owner, name in (ON_CPU + ON_CUDA if HAS_ATTRIBUTES else lowered)]
    switches: list[Switch] = [(partial(torch.set_autocast_enabled, device), True, False) for device in autocast]
    switches += _older_switches(lowered) if HAS_ATTRIBUTES else []
    try:
        for write, _, full in switches:
            write(full)
        for owner, name in lowered:
            setattr(owner, name, "ieee" if HAS_ATTRIBUTES else False)
        yield
    finally:
        for write, current, _ in switches:
            write(current)
        for owner, name, value in before:
            if getattr(owner, name) != value and HAS_ATTRIBUTES:
                # An attribute without a value of its own follows the general setting, and "none" makes it follow again.
                # If that does not give the value from before, the attribute had a value of its own, which is set below.
                setattr(owner, name, "none")
            if getattr(owner, name) != value:
                setattr(owner, name, value)


def _older_switches(lowered: list[Attribute]) -> list[Switch]:
    """The older names of the lowered attributes, which must be switched with them.

    If an older name disagrees with the new one, torch raises an error when the older one is read.
    ``torch.backends.cudnn.flags`` reads it, and is needed for second derivatives of recurrent networks; compiled
    networks read it, too. If the two disagree beforehand, reading raises here as well, and the older name is left as
    it is.
    """
    owners, switches = [owner for owner, _ in lowered], list[Switch]()
    with suppress(RuntimeError):
        if BACKENDS.cuda.matmul in owners:
            current = torch.get_float32_matmul_precision()
            switches.append((torch.set_float32_matmul_precision, current, "highest"))
    with suppress(RuntimeError):
        if BACKENDS.cudnn.conv in owners or BACKENDS.cudnn.rnn in owners:
            allow_tf32 = partial(setattr, BACKENDS.cudnn, "allow_tf32")
            switches.append((allow_tf32, BACKENDS.cudnn.allow_tf32, False))
    return switches
