"""Figure 3: whether inner gradients point where the inner loop goes, against what orthogonal gradients would give."""

import xarray as xr
from matplotlib.figure import Figure

from analysis.drawing import curves, legend, panels, references
from analysis.drawing.summary import diverged_units, mean_over, measured, summarise


def draw(ds: xr.Dataset) -> Figure:
    """Draw the cosine of SHOT's paper with its null, and the alignment A, whose null is 0 whatever the norms are."""
    steps = ds.sizes["step_i"]
    missing, tried = diverged_units(ds)
    cosine = summarise(mean_over(measured(ds, "cos_displacement"), "inner_step"))
    alignment = summarise(measured(ds, "alignment"))
    with panels.grid(2, xlabel="meta-iteration", share_y=False) as (figure, (left, right)):
        starts = []
        for ax, summary in ((left, cosine), (right, alignment)):
            curves.over_training(ds, ax, summary, incomplete=missing)
            starts += curves.common_start(ds, ax, summary)
        low, high = left.get_ylim()
        null = references.cosine_null(left, steps)
        left.set_ylim(min(low, 0.9 / steps), min(max(high, 1.1 * steps**-0.5), 1.02))
        left.set_title("mean cosine along the inner loop")
        left.set_ylabel(r"$\cos(-g_k,\ \theta_K-\theta_0)$, mean over $k$")
        references.zero(right)
        right.set_title("alignment of the inner gradients (0: orthogonal, 1: equal)")
        right.set_ylabel("alignment $A$")
        if steps == 1:
            right.set_ylim(-0.1, 1.1)
            right.text(0.5, 0.5, "one inner step: $A$ is not defined", transform=right.transAxes, ha="center")
        notes = [null, *legend.notes(cosine.num_seeds, missing, tried)]
        panels.outside_legends(figure, [*starts[:1], *legend.learner_entries(ds)], notes)
    return figure


def caption(ds: xr.Dataset) -> str:
    """What is drawn, its nulls, over how many seeds and tasks, and what the bands are."""
    steps = ds.sizes["step_i"]
    if steps == 1:
        return (
            "With one inner step the displacement is the step, so the cosine is 1 by definition and the alignment A is "
            "not defined: there is nothing to see here."
        )
    return legend.caption_of(
        ds,
        mean_over(measured(ds, "cos_displacement"), "inner_step"),
        "Left: cosine between each inner step's descent direction -g_k and the whole displacement theta_K - theta_0, "
        f"mean over the {steps} inner steps of a task.",
        f"Orthogonal inner gradients already give a mean between 1/K = {1 / steps:.3f} and 1/sqrt(K) = "
        f"{steps**-0.5:.3f} (hatched).",
        "Right: alignment A = (|sum g|^2 / sum |g|^2 - 1) / (K - 1), which is 0 for orthogonal gradients whatever "
        "their norms, 1 for equal ones, and negative when they oscillate.",
        "The dotted line is the untrained network: at a small inner learning rate its A is near 1 too, so it is the "
        "level to beat.",
    )
