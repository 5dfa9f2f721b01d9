"""Old public names: they keep working until version 0.3, with a warning that says where the name is now."""

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def old_names(package: str, renamed: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's ``__getattr__`` that finds its old names where they are now.

    renamed: by old name, the full path of what it stands for, such as ``"hessian_tools.inner.steps.Momentum"``.
    """

    def find(name: str) -> Any:
        if name not in renamed:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, new_name = renamed[name].rpartition(".")
        warn_deprecated(f"{package}.{name}", renamed[name], stacklevel=2)
        return getattr(import_module(module), new_name)

    return find


def warn_deprecated(old: str, new: str, *, stacklevel: int) -> None:
    """Warns that ``old`` goes in version 0.3, and names what to write instead; stacklevel as in ``warnings.warn``."""
    message = f"{old} is deprecated and will be removed in version 0.3; use {new}"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel + 1)
