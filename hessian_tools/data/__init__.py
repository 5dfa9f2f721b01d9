"""Tasks to meta-learn from: the bundled drawings, generated regression, and the episode sampler."""

from hessian_tools.data.episodes import Episode, ImageClasses, ImageTasks, TaskSource, check_choice
from hessian_tools.data.quickdraw import load_quickdraw
from hessian_tools.data.regression import Line, Sine, SineLineTasks

__all__ = [
    "Episode",
    "ImageClasses",
    "ImageTasks",
    "Line",
    "Sine",
    "SineLineTasks",
    "TaskSource",
    "load_quickdraw",
    "open_tasks",
]

TASK_NAMES = ("quickdraw", "sine-line")


def open_tasks(name: str, *, ways: int = 5, shots: int = 1, queries: int = 15) -> TaskSource:
    """A supply of tasks by name: ``"quickdraw"`` or ``"sine-line"``; needs no download.

    ways, shots and queries shape image tasks. Regression has no classes and leaves them aside: its
    tasks keep the paper's 5 support and 45 query points; make ``SineLineTasks`` for others.

    >>> open_tasks("quickdraw", ways=3).outputs
    3
    """
    if check_choice("name", name, TASK_NAMES) == "quickdraw":
        return ImageTasks(load_quickdraw(), ways=ways, shots=shots, queries=queries)
    return SineLineTasks()
