"""Old public names: they keep working until version 0.3, with a warning that says where the name is now."""

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def old_names(package: str, renamed: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for a package, which warns when an old name is used and returns the renamed object.

    renamed: for each old name, the full path of the object, such as ``"hessian_tools.inner.steps.Momentum"``.
    """

    def find(name: str) -> Any:
        if name not in renamed:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, new_name = renamed[name].rpartition(".")
        warn_deprecated(f"{package}.{name}", renamed[name], stacklevel=2)
        return getattr(import_module(module), new_name)

    return find


def warn_deprecated(old: str, new: str, *, stacklevel: int) -> None:
    """Warn that ``old`` will be removed in version 0.3, and name ``new`` as what to write instead.

    stacklevel: as in ``warnings.warn``, where 1 is the caller of this function.
    """
    message = f"{old} is deprecated and will be removed in version 0.3; use {new}"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel + 1)
