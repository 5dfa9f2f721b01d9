"""The scores on the evaluation tasks: the query accuracy after adaptation or, for regression, the query loss.

The evaluation tasks are the held-out tasks on which no curvature is measured.
"""

import numpy as np
import xarray as xr

from hessian_tools.trajectory.trajectory import exploded


def has_accuracy(ds: xr.Dataset) -> bool:
    """True if the tasks have an accuracy; those of a regression have none."""
    return "evaluation_accuracy" in ds and bool(np.isfinite(ds["evaluation_accuracy"]).any())


def score_name(ds: xr.Dataset) -> str:
    """What ``evaluation_scores`` returns for a study, in words."""
    return "query accuracy" if has_accuracy(ds) else "query loss"


def percent_scores(ds: xr.Dataset) -> xr.DataArray:
    """The scores of ``evaluation_scores``, with accuracies in %."""
    return evaluation_scores(ds) * (100 if has_accuracy(ds) else 1)


def evaluation_scores(ds: xr.Dataset) -> xr.DataArray:
    """The score on every evaluation task at every checkpoint; NaN where the inner loop diverged."""
    name = "evaluation_accuracy" if has_accuracy(ds) else "evaluation_loss"
    # Divergence is read from the loss, because outputs that are NaN still have an accuracy: their argmax is some class.
    # A loss counts as exploded by comparison with the loss before adaptation, which is not kept for evaluation tasks.
    # The mean of that loss over the tasks with curvature stands for it.
    loss, first_losses = ds["evaluation_loss"], ds["query_loss"].isel(inner_step=0)
    first_loss = first_losses.where(np.isfinite(first_losses)).mean("task")
    return ds[name].where(np.isfinite(loss) & ~exploded(loss, first_loss) & np.isfinite(ds[name]))
