"""Two states of one learner, the first and the last checkpoint it was measured at, drawn along its inner loop."""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from analysis.plots.along_steps import along_steps, task_values
from analysis.plots.summary import measured, probe_error, summarise
from analysis.schema import learner_names, trained_learners
from analysis.style import GREY, Line, MethodStyle, method_style

SHIFT = 0.12


@dataclass(frozen=True)
class State:
    """One learner at one checkpoint; ``first`` is drawn grey with open markers, the last in the method's colour."""

    learner: int
    checkpoint: int
    first: bool
    name: str

    @property
    def color(self) -> str:
        """Grey for the first checkpoint, the method's own for the last."""
        return GREY if self.first else method_style(self.name).color

    def look(self, marker: str, linestyle: Line) -> MethodStyle:
        """Marker and line tell quantities apart here, colour tells states apart."""
        return MethodStyle(self.color, marker, ":" if self.first else linestyle)

    @property
    def where(self) -> dict[str, int]:
        """Positions of this learner and checkpoint."""
        return {"learner": self.learner, "checkpoint": self.checkpoint}

    @property
    def shift(self) -> float:
        """First to the left of the step's tick, last to the right."""
        return -SHIFT if self.first else SHIFT


def states(values: xr.DataArray, ds: xr.Dataset, name: str) -> list[State]:
    """First and last checkpoint at which the learner has values: two states, one, or none."""
    learner = learner_names(ds).index(name)
    mine = values.isel(learner=learner)
    there = np.flatnonzero(mine.notnull().any([dim for dim in mine.dims if dim != "checkpoint"]).values)
    if there.size == 0:
        return []
    first = State(learner, int(there[0]), True, name)
    return [first] if there.size == 1 else [first, State(learner, int(there[-1]), False, name)]


def panel_learners(ds: xr.Dataset) -> list[str]:
    """Learners with a panel of their own: untrained controls only when alone, as they are each one's start."""
    return trained_learners(ds) or learner_names(ds)


EXTREMES: dict[str, tuple[str, Line, str]] = {
    "max": ("^", "-", "largest eigenvalue"),
    "min": ("v", "--", "smallest eigenvalue"),
}


def extremes(ds: xr.Dataset, ax: Axes, *, state: State) -> Axes:
    """Largest and smallest algebraic eigenvalue with residuals as bars, and the largest by magnitude as dots.

    The mean of residuals bounds the error of the mean of eigenvalues, as each bounds its own. Of the eigenvalues by
    magnitude, only tasks that have more than the first are shown: those measured in full.
    """
    kind = "first" if state.first else "last"
    for end, (marker, line, _) in EXTREMES.items():
        residual = summarise(measured(ds, f"eigenvalue_{end}_residual")).at(**state.where).mean
        along_steps(
            ax,
            summary=summarise(measured(ds, f"eigenvalue_{end}")).at(**state.where),
            style=state.look(marker, line),
            name=f"{end}:{kind}:{state.name}",
            error=residual,
            shift=state.shift,
            filled=not state.first,
        )
    by_magnitude = full_spectra(measured(ds, "eigenvalue").isel(state.where))
    return task_values(ax, values=by_magnitude, color=state.color, name=f"{kind}:{state.name}", shift=state.shift * 2.2)


def full_spectra(eigenvalues: xr.DataArray) -> xr.DataArray:
    """Eigenvalues of the tasks that have all of them; NaN for tasks where only the first was measured."""
    return eigenvalues.where(eigenvalues.notnull().all("eigen_index"))


DIRECTIONS: dict[str, tuple[str, Line, str]] = {
    "top": ("^", "-.", r"$\alpha\lambda_{\max}$: sharpest direction"),
    "gradient": ("o", "-", r"$\alpha\rho$: along the gradient"),
    "random": ("s", "--", r"$\alpha\rho_{\mathrm{random}}$: random directions"),
}


def curvatures(ds: xr.Dataset) -> dict[str, xr.DataArray]:
    """alpha times curvature in the sharpest direction, along the gradient, and along random directions."""
    return {
        "top": ds["step_size"] * measured(ds, "eigenvalue_max"),
        "gradient": measured(ds, "alpha_rho"),
        "random": ds["step_size"] * measured(ds, "rho_random"),
    }


def directions(ds: xr.Dataset, ax: Axes, *, state: State) -> Axes:
    """The three curvatures along one learner's inner loop; bars on the random one are the probes' standard error."""
    kind = "first" if state.first else "last"
    error = probe_error(ds["step_size"] * measured(ds, "rho_random_stderr")).isel(state.where)
    for quantity, values in curvatures(ds).items():
        marker, line, _ = DIRECTIONS[quantity]
        along_steps(
            ax,
            summary=summarise(values).at(**state.where),
            style=state.look(marker, line),
            name=f"{quantity}:{kind}:{state.name}",
            error=error if quantity == "random" else None,
            shift=state.shift,
            filled=not state.first,
        )
    return ax
