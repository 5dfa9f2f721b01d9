"""Results of the library as labelled data and as pictures: ``analysis.to_xarray(obj)``, ``analysis.plot(obj)``."""

from analysis.views.drawing import plot
from analysis.views.labelled import to_xarray

__all__ = ["plot", "to_xarray"]
