"""Query accuracy (for regression, query loss) after adaptation on held-out tasks, over meta-training.

The figure is the right half of figure 3 of Lee, Yoo, Kwak (2023).
"""

import xarray as xr
from matplotlib.figure import Figure

from analysis.drawing import curves, legend, panels, references, selection
from analysis.drawing.figures.study_figure import Choice, Numbers
from analysis.drawing.style import method_label
from analysis.drawing.summary import lost_evaluations, summarise
from analysis.evaluation import evaluation_scores, has_accuracy, score_name
from analysis.paper_numbers import DATA, LEARNERS
from analysis.schema import learner_names


def needs(ds: xr.Dataset) -> str | None:
    """The reason why the figure cannot be drawn; None if it can."""
    return selection.lacks(ds, "evaluation_loss")


def learners(ds: xr.Dataset) -> list[str]:
    """The learners that are shown by default."""
    return [name for part in selection.families(ds) for name in learner_names(part)]


def numbers(ds: xr.Dataset, choice: Choice) -> Numbers:
    """The accuracy (for regression, the loss) of each learner at each checkpoint."""
    return {score_name(ds): summarise(evaluation_scores(choice.part(ds)))}


def draw(ds: xr.Dataset, choice: Choice) -> Figure:
    """Draw one panel, with lines for the untrained networks and for the accuracy of guessing.

    In a study of many learners, each family has a panel of its own.
    """
    drawn = choice.part(ds)
    num_diverged, num_tried = lost_evaluations(drawn)
    scores = summarise(evaluation_scores(drawn))
    parts = selection.families(drawn)
    with panels.grid(len(parts), xlabel="meta-iteration", width=choice.width) as (figure, axes):
        untrained_lines = []
        for part, ax in zip(parts, axes, strict=True):
            names = learner_names(part)
            summary = scores.select(names)
            curves.over_training(part, ax, summary, num_diverged=num_diverged.sel(learner=names))
            untrained_lines += curves.untrained_levels(part, ax, summary)
            # The lines of all panels are alike, so that of the last panel serves as the legend entry.
            chance = references.chance(ds, ax) if has_accuracy(ds) else []
            if len(parts) > 1:
                family = [name for name in names if not selection.is_control(ds, name)]
                ax.set_title(method_label(family[0]) if family else "controls")
        panels.left_labels(axes, score_name(ds))
        notes = legend.notes(scores.per_seed, num_diverged, num_tried, what="evaluations")
        panels.outside_legends(figure, legend.training_entries(drawn, untrained_lines), [*chance, *notes])
    return figure


def caption(ds: xr.Dataset, choice: Choice) -> str:
    """Return the caption, which also says what the means and bands are and how many evaluations diverged."""
    drawn = choice.part(ds)
    num_diverged, num_tried = lost_evaluations(drawn)
    total = int(num_diverged.sum())
    return legend.caption_of(
        drawn,
        evaluation_scores(drawn),
        f"{score_name(ds).capitalize()} after the inner loop on held-out tasks, against the meta-iteration.",
        "Dotted lines are untrained networks.",
        _of_the_paper() if has_accuracy(ds) else "",
        selection.shown_sentence(ds, choice.learners),
        diverged=f"{total} of {num_tried} evaluations diverged and are not in the means (crosses)." if total else "",
    )


def _of_the_paper() -> str:
    """The sentence on the paper's figure, with the accuracies at the end of its curves, which the paper's table gives.

    "SHOT_r" is the paper's name for SHOT as a penalty in the outer loss.
    """
    # ``LEARNERS`` has a pair for each data set of ``DATA``: the accuracies with one and five support images per class.
    ends = [
        "{} and {} %".format(*LEARNERS["maml", shot][DATA.index("mini")]) + words
        for shot, words in (("", " for MAML"), ("SHOT_r", " with SHOT as a penalty"))
    ]
    return (
        "The right half of figure 3 of Lee, Yoo and Kwak (2023) has validation accuracies, on other data. Their tables "
        f"have, for miniImageNet with one and with five support images per class, {ends[0]} and {ends[1]}, after "
        "30,000 meta-iterations."
    )
