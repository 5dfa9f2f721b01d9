"""The score of each evaluation on the further held-out tasks: the query accuracy or, for regression, the query loss."""

import numpy as np
import xarray as xr

from hessian_tools.trajectory.trajectory import exploded


def has_accuracy(ds: xr.Dataset) -> bool:
    """True if the tasks have an accuracy; those of a regression have none."""
    return "evaluation_accuracy" in ds and bool(np.isfinite(ds["evaluation_accuracy"]).any())


def score_name(ds: xr.Dataset) -> str:
    """What ``evaluation_scores`` returns for a study, in words."""
    return "query accuracy" if has_accuracy(ds) else "query loss"


def evaluation_scores(ds: xr.Dataset) -> xr.DataArray:
    """The query accuracy (for regression, the query loss) of every evaluation; NaN where the inner loop diverged."""
    name = "evaluation_accuracy" if has_accuracy(ds) else "evaluation_loss"
    # Divergence is read from the loss, because outputs that are NaN still have an accuracy: their argmax is some class.
    # An evaluation keeps no loss from before adaptation; the mean of that loss over the measured tasks stands for it.
    loss, first_losses = ds["evaluation_loss"], ds["query_loss"].isel(inner_step=0)
    first_loss = first_losses.where(np.isfinite(first_losses)).mean("task")
    return ds[name].where(np.isfinite(loss) & ~exploded(loss, first_loss) & np.isfinite(ds[name]))
