"""Tasks for meta-learning, which are sampled from bundled drawings, from generated curves or from data sets on disk."""

from hessian_tools.data.class_sets import ImageClasses, StoredClasses
from hessian_tools.data.episodes import ClassSet, CrossDomainTasks, Episode, ImageTasks, TaskSource
from hessian_tools.data.features import FeatureClasses
from hessian_tools.data.opening import describe, open_data, open_tasks, reshaped, summary
from hessian_tools.data.quickdraw import load_quickdraw
from hessian_tools.data.regression import Line, Sine, SineLineTasks
from hessian_tools.validation import check_choice

# Supplies of tasks.
__all__ = ["open_tasks", "TaskSource", "Episode", "ImageTasks", "CrossDomainTasks", "SineLineTasks", "Sine", "Line"]
# Sets of classes, from which tasks are drawn.
__all__ += ["open_data", "load_quickdraw", "reshaped", "ClassSet", "ImageClasses", "StoredClasses", "FeatureClasses"]
# The descriptions of data, and the check that a name from the user is one of the known names.
__all__ += ["describe", "summary", "check_choice"]
