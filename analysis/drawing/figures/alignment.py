"""Whether the inner gradients point in the same direction, compared with orthogonal gradients.

The left panel is the left half of figure 3 of Lee, Yoo, Kwak (2023), with the range of values for orthogonal gradients.
In the labels, g_k is the gradient at inner step k, theta_0 is the network before the K inner steps, and theta_K the
network after them.
"""

import xarray as xr
from matplotlib.figure import Figure

from analysis.drawing import curves, legend, panels, references, selection
from analysis.drawing.figures.study_figure import Choice
from analysis.drawing.summary import Summary, diverged_units, mean_over, measured, summarise
from analysis.paper_numbers import MEAN_COSINES
from analysis.schema import learner_names


def needs(ds: xr.Dataset) -> str | None:
    """The reason why the figure cannot be drawn; None if it can."""
    return selection.lacks(ds, "cos_displacement")


def learners(ds: xr.Dataset) -> list[str]:
    """The learners that are shown by default: all of a small study, or as many as share a panel legibly."""
    return learner_names(selection.for_lines(ds))


def numbers(ds: xr.Dataset, choice: Choice) -> dict[str, Summary]:
    """The mean cosine and the alignment of each learner at each checkpoint."""
    ds = choice.part(ds)
    # The axis inner_step has the K + 1 points theta_0 to theta_K. No step follows theta_K, where the cosine is NaN and
    # the mean leaves it out. The axis step_i, of which other functions here take the length, has the K inner steps.
    cosine = mean_over(measured(ds, "cos_displacement"), "inner_step")
    return {"mean cosine": summarise(cosine), "alignment": summarise(measured(ds, "alignment"))}


def draw(ds: xr.Dataset, choice: Choice) -> Figure:
    """Draw two panels over meta-training: the mean cosine and the alignment A, which the caption defines.

    The cosine between inner gradients and displacement is that of Lee, Yoo, Kwak (2023). The values of both quantities
    for orthogonal gradients are drawn for comparison: a band for the cosine, and a line at 0 for A.
    """
    cosine, alignment = numbers(ds, choice).values()
    ds, steps = choice.part(ds), ds.sizes["step_i"]  # K
    num_diverged, num_tried = diverged_units(ds)
    with panels.grid(2, xlabel="meta-iteration", share_y=False, width=choice.width) as (figure, (left, right)):
        untrained_lines = []
        for ax, summary in ((left, cosine), (right, alignment)):
            curves.over_training(ds, ax, summary, num_diverged=num_diverged)
            untrained_lines += curves.untrained_levels(ds, ax, summary)
        low, high = left.get_ylim()
        null = references.cosine_null(left, steps)
        # For orthogonal gradients the mean cosine lies between 1/K and 1/sqrt(K). The axis is widened until it shows
        # this band with some room on both sides, but it ends just above 1, which no cosine exceeds.
        left.set_ylim(min(low, 0.9 / steps), min(max(high, 1.1 * steps**-0.5), 1.02))
        left.set_title("mean cosine along the inner loop")
        left.set_ylabel(r"$\cos(-g_k,\ \theta_K-\theta_0)$, mean over $k$")
        references.zero(right)
        right.set_title("alignment of the inner gradients (0: orthogonal, 1: equal)")
        right.set_ylabel("alignment $A$")
        if steps == 1:
            right.set_ylim(-0.1, 1.1)
            right.text(0.5, 0.5, "one inner step: $A$ is not defined", transform=right.transAxes, ha="center")
        notes = [null, *legend.notes(cosine.per_seed, num_diverged, num_tried)]
        panels.outside_legends(figure, legend.training_entries(ds, untrained_lines), notes)
    return figure


def caption(ds: xr.Dataset, choice: Choice) -> str:
    """Return the caption, which also gives the values for orthogonal gradients and says what means and bands are."""
    steps = ds.sizes["step_i"]
    if steps == 1:
        return (
            "With one inner step the displacement is the step, so the cosine is 1 by definition and the alignment A is "
            "not defined: this figure shows nothing."
        )
    shown = choice.part(ds)
    of_the_paper = "; ".join(f"for {learner} {values}" for learner, values in MEAN_COSINES.items())
    return legend.caption_of(
        shown,
        mean_over(measured(shown, "cos_displacement"), "inner_step"),
        "Left: the cosine between each inner step's descent direction -g_k and the displacement theta_K - theta_0 of "
        f"the whole inner loop, averaged over the {steps} inner steps of a task.",
        f"Orthogonal inner gradients already give a mean between 1/K = {1 / steps:.3f} and 1/sqrt(K) = "
        f"{steps**-0.5:.3f} (hatched).",
        "Right: the alignment A = (|sum g|^2 / sum |g|^2 - 1) / (K - 1), which is 0 for orthogonal gradients whatever "
        "their norms, 1 for equal gradients, and negative for gradients that alternate in direction.",
        "Dotted lines are untrained networks. At a small inner learning rate their A is near 1 as well, so the effect "
        "of training is the difference from this line, not from 0.",
        f"The left half of figure 3 of Lee, Yoo and Kwak (2023), on other data, has {of_the_paper}. In the "
        "paper an epoch is 100 meta-iterations, and K = 3.",
        selection.shown_sentence(ds, choice.learners),
    )
