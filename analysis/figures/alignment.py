"""Figure 3: do inner gradients point where the inner loop goes, against what orthogonal gradients would give."""

import xarray as xr
from matplotlib.figure import Figure

from analysis import style
from analysis.figures import words
from analysis.figures.grid import panels
from analysis.plots.legend import (
    band_handle,
    diverged_handles,
    learner_handles,
    null_handle,
    outside_legends,
    untrained_handle,
)
from analysis.plots.over_training import over_training, shared_start
from analysis.plots.references import cosine_null, untrained_line, zero
from analysis.plots.summary import diverged_units, mean_over, measured, summarise

NAME = "alignment"


def draw(ds: xr.Dataset) -> Figure:
    """Left: the paper's cosine with its null. Right: alignment A, whose null is 0 whatever the gradients' norms."""
    steps = ds.sizes["step_i"]
    missing, _ = diverged_units(ds)
    cosine = summarise(mean_over(measured(ds, "cos_displacement"), "inner_step"))
    alignment = summarise(measured(ds, "alignment"))
    with style.context(width="double"):
        figure, axes = panels(2, xlabel="meta-iteration", row_height=2.1, share_y=False)
        levels = []
        for ax, summary in zip(axes, (cosine, alignment), strict=True):
            over_training(ds, ax, summary=summary, incomplete=missing)
            levels.append(untrained_line(ax, shared_start(ds, summary)))
        start = [untrained_handle()] if any(levels) else []
        low, high = axes[0].get_ylim()
        cosine_null(axes[0], steps).set_ylim(min(low, 0.9 / steps), min(max(high, 1.1 * steps**-0.5), 1.02))
        axes[0].set_title("mean cosine along the inner loop")
        axes[0].set_ylabel(r"$\cos(-g_k,\ \theta_K-\theta_0)$, mean over $k$")
        zero(axes[1]).set_title("alignment of the inner gradients (0: orthogonal, 1: equal)")
        axes[1].set_ylabel("alignment $A$")
        if steps == 1:
            axes[1].set_ylim(-0.1, 1.1)
            axes[1].text(0.5, 0.5, "one inner step: $A$ is not defined", transform=axes[1].transAxes, ha="center")
        null = null_handle(r"orthogonal gradients: $[1/K,\ 1/\sqrt{K}]$, " + f"$K={steps}$")
        notes = [null, band_handle(cosine.num_seeds), *diverged_handles(ds)]
        outside_legends(figure, [*start, *learner_handles(ds)], notes)
    return figure


def caption(ds: xr.Dataset) -> str:
    """What is drawn, its nulls, over how many seeds and tasks, and what the bands are."""
    values = mean_over(measured(ds, "cos_displacement"), "inner_step")
    steps = ds.sizes["step_i"]
    if steps == 1:
        return (
            "With one inner step the displacement is the step, so the cosine is 1 by definition and the alignment A is "
            "not defined: there is nothing to see here."
        )
    return (
        "Left: cosine between each inner step's descent direction -g_k and the whole displacement theta_K - theta_0, "
        f"mean over the {steps} inner steps of a task. Orthogonal inner gradients already give a mean between 1/K = "
        f"{1 / steps:.3f} and 1/sqrt(K) = {steps**-0.5:.3f} (hatched). Right: alignment A = (|sum g|^2 / sum |g|^2 - "
        "1) / (K - 1), 0 for orthogonal gradients whatever their norms, 1 for equal ones, negative when they oscillate."
        " The dotted line is the untrained network: at a small inner learning rate its A is near 1 too, so it is the "
        f"level to beat. {words.sample(values)} {words.band(values)} {words.diverged(ds)}{words.begun(ds)}"
    )
