"""The look of a learner in a study: by its method when it is trained, grey when it is an untrained control."""

import xarray as xr

from analysis.schema import learner_names, trained_learners
from analysis.style import CONTROL, MethodStyle, method_style


def controls(ds: xr.Dataset) -> list[str]:
    """Learners that are not trained, by what the study says of them: a control may have any name."""
    trained = trained_learners(ds)
    return [name for name in learner_names(ds) if name not in trained]


def learner_style(ds: xr.Dataset, name: str) -> MethodStyle:
    """Colour, marker and line of one learner of the study."""
    return CONTROL if name in controls(ds) else method_style(name)
