"""Studies of learners: what is measured along inner loops, which claims the numbers support, and how they are shown.

``run_study(source)`` trains, measures, tests, draws and reports a study. ``open_study(path)`` opens everything that was
measured in a study, and ``open_verdicts(path)`` the verdicts on the claims. ``open_checkpoint`` opens the network of a
run, for measurements of one's own. ``to_xarray(result)`` labels any result of the library, and ``plot(result)`` draws
it. The figures of a study are in ``analysis.figures``.
"""

import os
import sys
from importlib import import_module
from types import FunctionType
from typing import TYPE_CHECKING, Any

# torch's idle threads must be told, before torch is loaded, to wait without spinning. ``hessian_tools.threads`` does
# so, but it comes too late here, because the modules of this package import torch before hessian_tools. Importing
# hessian_tools at this point would take seconds, so this line repeats what that module does.
if "torch" not in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from analysis import figures as figures
    from analysis.checkpoint import open_checkpoint as open_checkpoint
    from analysis.drawing.labelled import to_xarray as to_xarray
    from analysis.drawing.results import plot as plot
    from analysis.errors import UserError as UserError
    from analysis.explorer import explore as explore
    from analysis.folder import open_study as open_study
    from analysis.folder import open_verdicts as open_verdicts
    from analysis.pipeline import StudyResult as StudyResult
    from analysis.pipeline import run_study as run_study
    from analysis.study_file import load_study as load_study

_MODULES = {
    "StudyResult": "analysis.pipeline",
    "UserError": "analysis.errors",
    "explore": "analysis.explorer",
    "load_study": "analysis.study_file",
    "open_checkpoint": "analysis.checkpoint",
    "open_study": "analysis.folder",
    "open_verdicts": "analysis.folder",
    "plot": "analysis.drawing.results",
    "run_study": "analysis.pipeline",
    "to_xarray": "analysis.drawing.labelled",
}
__all__ = [*_MODULES, "figures"]


def __getattr__(name: str) -> Any:
    # Names are imported on first use, because the command line must answer --help without loading torch.
    if name == "figures":
        return import_module("analysis.figures")
    if name in _MODULES:
        value = getattr(import_module(_MODULES[name]), name)
        if isinstance(value, FunctionType):
            # Before a call, ``checked`` checks the arguments, as for all public functions of hessian_tools.
            value = import_module("hessian_tools.entries").checked(value, module=__name__)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'analysis' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
