"""The spectral density of the Hessian, over its eigenvalues lambda times the inner step size alpha."""

import math

import numpy as np
import torch

from analysis.quantities.points import Points, Values
from analysis.quantities.quantity import Quantity
from analysis.schema import Sizes, point_variable
from hessian_tools.curvature import spectral_density

# The cells are equally wide in s = asinh(alpha lambda / LINEAR), which is linear in the bulk of the spectrum (where
# alpha lambda is well below LINEAR) and logarithmic at the outliers, so that both show.
LINEAR, LARGEST, CELLS = 0.1, 30.0, 129
# The number of Lanczos runs at each point, and of the products of each run.
RUNS, PRODUCTS = 4, 24
# The cells reach from -END to END in s, and each is CELL_WIDTH wide.
END = math.asinh(LARGEST / LINEAR)
CELL_WIDTH = 2 * END / CELLS


def coords(_sizes: Sizes) -> dict[str, np.ndarray]:
    """The value of alpha lambda in the middle of each cell."""
    end = END - CELL_WIDTH / 2
    return {"grid": LINEAR * np.sinh(np.linspace(-end, end, CELLS))}


def measure(points: Points) -> Values:
    """The share of eigenvalues per unit of s = asinh(alpha lambda / 0.1), in 129 cells with |alpha lambda| <= 30.

    The coordinate ``grid`` holds the alpha lambda in the middle of each cell. The values times the width of a cell in s
    add up to the share of all eigenvalues with |alpha lambda| <= 30. The error is the standard error over the
    first four probes of the trace. It does not cover the blur of the kernel, whose standard deviation is
    ``density_width``: two peaks nearer than that are not told apart. All values are NaN for a learner whose inner steps
    are not alpha times the gradient.
    """
    if math.isnan(points.step_size):
        undefined = points.thetas.new_full((*points.thetas.shape[:2], CELLS), math.nan)
        return {"density": undefined, "density_stderr": undefined.clone(), "density_width": undefined[..., 0].clone()}
    density = spectral_density(
        points.hessian,
        probes=points.probes[..., :RUNS].repeat_interleave(points.thetas.shape[1], dim=0),
        num_matvecs=min(PRODUCTS, points.thetas.shape[-1]),
        seed=points.seed,
    )
    edges = LINEAR * torch.linspace(-END, END, CELLS + 1, dtype=torch.float64).sinh() / points.step_size
    shares, stderr = density.shares(edges)
    return {
        "density": points.unflatten(shares) / CELL_WIDTH,
        "density_stderr": points.unflatten(stderr) / CELL_WIDTH,
        "density_width": points.step_size * points.unflatten(density.width),
    }


QUANTITY = Quantity(
    name="spectral_density",
    title="spectral density",
    formula="share of eigenvalues per unit of asinh(alpha lambda / 0.1), smoothed by a normal kernel",
    variables=(
        point_variable(
            "density",
            "share of eigenvalues per unit of asinh(alpha lambda / 0.1), by alpha lambda",
            "grid",
            error="density_stderr",
        ),
        point_variable(
            "density_stderr", "standard error of the density over probes, without the kernel's blur", "grid"
        ),
        point_variable("density_width", "standard deviation of the density's normal kernel, in units of alpha lambda"),
    ),
    measure=measure,
    library="hessian_tools.spectral_density",
    cost=f"{RUNS * PRODUCTS} products with the Hessian, {PRODUCTS} for each of {RUNS} probes",
    reference="Lin, Saad, Yang 2016; Ubaru, Chen, Saad 2017",
    level="full",
    coords=coords,
)
