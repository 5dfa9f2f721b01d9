"""Tasks to meta-learn from: bundled drawings, generated regression tasks, data sets on disk, and how they are drawn."""

from hessian_tools.data.class_sets import ImageClasses, StoredClasses
from hessian_tools.data.episodes import ClassSet, CrossDomainTasks, Episode, ImageTasks, TaskSource, check_choice
from hessian_tools.data.features import FeatureClasses
from hessian_tools.data.opening import describe, open_data, open_tasks, reshaped, summary
from hessian_tools.data.quickdraw import load_quickdraw
from hessian_tools.data.regression import Line, Sine, SineLineTasks

__all__ = [
    "ClassSet",
    "CrossDomainTasks",
    "Episode",
    "FeatureClasses",
    "ImageClasses",
    "ImageTasks",
    "Line",
    "Sine",
    "SineLineTasks",
    "StoredClasses",
    "TaskSource",
    "check_choice",
    "describe",
    "load_quickdraw",
    "open_data",
    "open_tasks",
    "reshaped",
    "summary",
]
