"""Helpers that the tests of drawings share: a study to draw, axes to draw on, and access to a line by its gid."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from simulated_studies import Effect, simulated_study

from analysis.quantities.alpha_sweep import FACTORS
from analysis.quantities.loss_surface import PLACES
from analysis.schema import LEVEL_MEANINGS

OTHERS = ("anil", "boil", "meta-sgd", "reptile")
GRID = 0.1 * np.sinh(np.linspace(-6.4, 6.4, 65))  # the alpha lambda of the cells of the spectral density


def study_to_draw() -> xr.Dataset:
    """A simulated study of untrained, maml, maml-shot and fomaml, in this order, with seeds 0, 1 and 2.

    Two of its inner loops diverged: one of maml in seed 0, and one of fomaml in seed 1.
    """
    diverged = [("maml", 0, 3), ("fomaml", 1, 2)]  # (learner, seed, task)
    study = simulated_study(tasks=6, evaluation_tasks=8, diverged=diverged)
    study.attrs["ways"] = 5
    return study


def line(ax: Axes, gid: str) -> Line2D:
    """The line with this gid, the name that a drawing gave to it. Fails unless there is exactly one."""
    lines = [line for line in ax.lines if line.get_gid() == gid]
    assert len(lines) == 1, f"{len(lines)} lines have the gid {gid}, not 1"
    return lines[0]


def axes() -> Axes:
    """Axes of a new figure."""
    return Figure(layout="constrained").subplots()


# The learners of ``large_study``: (name, base without SHOT and penalty, family, weight of SHOT, weight of the penalty).
LARGE = [
    *[("untrained", "", "untrained", 0.0, 0.0), ("supervised", "", "supervised", 0.0, 0.0)],
    *[("shuffled", "", "shuffled", 0.0, 0.0), ("maml", "", "maml", 0.0, 0.0), ("maml-shot", "maml", "maml", 0.1, 0.0)],
    *[("fomaml", "", "maml", 0.0, 0.0), ("fomaml-shot", "fomaml", "maml", 0.1, 0.0)],
    *[(name + end, name if end else "", name, 0.1 * bool(end), 0.0) for name in OTHERS for end in ("", "-shot")],
    *[(f"maml-shot-{weight:g}", "maml", "maml", weight, 0.0) for weight in (-0.1, -0.01, 0.01, 1.0)],
    *[(f"maml-penalty-{weight:g}", "maml", "maml", 0.0, weight) for weight in (0.01, 0.1)],
]


def large_study(seeds: int = 5, tasks: int = 4) -> xr.Dataset:
    """A simulated study of 21 learners with every variable that a figure can draw, some of them with a planted change.

    ANIL and BOIL adapt by inner loops of their own, so that their untrained networks have other numbers than MAML's.
    """
    names = [name for name, *_ in LARGE]
    effects = {name: Effect(first=-0.4, later=-0.2, alignment=0.2) for name in names if name != "untrained"}
    study = simulated_study(learners=names, seeds=range(seeds), tasks=tasks, evaluation_tasks=8, effects=effects)
    study.attrs["ways"] = 5
    # Factors on some of the numbers, by which the learners with an inner loop of their own differ from the others.
    own_loop = xr.where(study["learner"].isin(["anil", "anil-shot"]), 0.7, 1.0)
    own_loop = own_loop * xr.where(study["learner"].isin(["boil", "boil-shot"]), 1.3, 1.0)
    # The base, the family, the weight of SHOT and that of the penalty, each of all learners.
    columns = [np.array([learner[index] for learner in LARGE]) for index in range(1, 5)]
    study = study.assign_coords(
        without_intervention=("learner", columns[0].astype(object)),
        family=("learner", columns[1].astype(object)),
        dose=("learner", columns[2]),
        penalty=("learner", columns[3]),
        # The first three learners of ``LARGE`` are the controls. Each is named after its kind; the others get "".
        control=("learner", np.array([name * (index < 3) for index, name in enumerate(names)], dtype=object)),
    )
    for name in ("alpha_rho", "alignment", "evaluation_accuracy"):
        study[name] = study[name] * own_loop
    return with_further_variables(study)


def with_further_variables(study: xr.Dataset) -> xr.Dataset:
    """The study with plain numbers in the variables that ``simulated_study`` does not fill."""
    weight = study.coords["dose"] + 10 * study.coords["penalty"] if "dose" in study.coords else 0.0
    study["alpha_hg_ratio"] = study["step_size"] * study["hg_ratio"] * np.exp(-weight)
    study["rho_layer"] = study["layer_norm"] * (0.3 * study["rho"] - 0.1 * study["layer"])
    study["hg_ratio_layer"] = study["layer_norm"] * (0.2 * study["hg_ratio"] + 0.1 * study["layer"])
    study["trace_layer"] = study["layer_norm"] * (5 * study["rho"] - study["layer"])
    for name in ("rho_layer", "hg_ratio_layer", "trace_layer"):
        study[f"{name}_normalised"] = 2 * study[name] / study["layer_norm"]
    progress = study["checkpoint"] / study["checkpoint"].max()
    study["meta_gradient_cosine"] = 0.5 + 0.3 * progress + 0.1 * study["alignment"]
    study["meta_gradient_ratio"] = 2.0 - 0.8 * progress + 0.1 * study["alignment"]
    grid = xr.DataArray(GRID, dims="grid", coords={"grid": GRID})
    width = 0.3 + 0.1 * study["inner_step"]
    is_full = study["level"] == LEVEL_MEANINGS.index("full")
    density = np.exp(-np.abs(np.arcsinh(grid / 0.1)) / width) + 1e-3 * np.exp(-((grid - study["alpha_rho"]) ** 2))
    study["density"] = density.where(is_full & (density > 1e-5), 0.0).where(is_full)
    study["density"].attrs["long_name"] = "share of eigenvalues per unit of asinh(alpha lambda / 0.1), by alpha lambda"
    factors = xr.DataArray(np.array(FACTORS), dims="alpha_factor", coords={"alpha_factor": np.array(FACTORS)})
    study["swept_query_accuracy"] = 0.4 + 0.2 * progress + 0.1 * study["alignment"] - 0.05 * np.log(factors) ** 2
    axes = {name: xr.DataArray(PLACES, dims=name, coords={name: PLACES}) for name in ("surface_x", "surface_y")}
    x, y = axes.values()
    start = {"inner_step": 0}
    surface = study["support_loss"].isel(start) - x + 0.5 * study["alpha_rho"].isel(start) * x**2 + 0.1 * y**2
    study["loss_surface"] = surface.where(is_full)
    study["loss_surface_normalised"] = (surface + 3 * x**2 + 2 * y**2).where(is_full)
    return study
