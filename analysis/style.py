"""The former place of ``analysis.drawing.style``, whose names can be imported from here until version 0.3."""

from typing import Any

from hessian_tools.deprecation import warn_deprecated


def __getattr__(name: str) -> Any:
    from analysis.drawing import style

    if name.startswith("__") or not hasattr(style, name):
        raise AttributeError(f"module 'analysis.style' has no attribute {name!r}")
    warn_deprecated(f"analysis.style.{name}", f"analysis.drawing.style.{name}", stacklevel=2)
    return getattr(style, name)
