"""Draws figures of a study with learners, steps, labels and a width of the user's own, for the command ``figures``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr
from matplotlib.figure import Figure

from analysis.claims import Verdict
from analysis.drawing.figures import FIGURES, StudyFigure, figures_of, save, variable
from analysis.drawing.figures.study_figure import check_labels
from analysis.drawing.figures.variable import drawable_variables
from analysis.drawing.forest import forest
from analysis.drawing.panels import FORMATS
from analysis.drawing.style import inches_of, labelled
from analysis.errors import UserError
from analysis.folder import VERDICTS, measurements, open_verdicts
from analysis.progress import Reporter
from analysis.study import Study
from analysis.verify import refuse_incomplete
from hessian_tools.validation import check_choice, did_you_mean

FOREST = "forest"  # the figure of all verdicts, which is a function of these and not of the measurements


@dataclass(frozen=True)
class _OwnForest:
    """The forest plot of a study's verdicts, with those methods of a ``StudyFigure`` that ``own_figures`` calls.

    The methods get the measurements and all options, as those of a ``StudyFigure`` do. ``**_`` takes the options that a
    forest plot does not use.
    """

    verdicts: Sequence[Verdict]

    def choice(self, ds: xr.Dataset, *, learners: Any, steps: Any, labels: Any, **_: Any) -> None:
        if steps is not None:
            raise ValueError(f"steps={list(steps)}: the figure {FOREST} has no choice of steps; leave steps out")
        check_labels(ds, labels)
        forest.data(self.verdicts, learners=learners)  # called for its error

    def __call__(self, ds: xr.Dataset, *, learners: Any, width: Any, labels: Any, **_: Any) -> Figure:
        with labelled(labels):
            return forest(self.verdicts, learners=learners, width=width)

    def save_data(self, ds: xr.Dataset, path_stem: Path, *, learners: Any, **_: Any) -> Path:
        return forest.save_data(self.verdicts, path_stem, learners=learners)


def own_figures(
    study: Study,
    reporter: Reporter,
    *,
    only: Sequence[str] | None,
    formats: Sequence[str] | None,
    out: Path,
    learners: Sequence[str] | None,
    steps: Sequence[int] | None,
    width: str | None,
    labels: Mapping[str, str] | None = None,
) -> list[Path]:
    """Draw figures with learners, steps and a width of the user's own into the folder ``out``; returns the files.

    only: names of figures, or of variables that are drawn over meta-training; None stands for all figures that can be
        drawn with these options. The reporter says which cannot.
    formats: pdf, png, svg, and csv for the numbers; None for pdf and png.
    The other arguments are those of ``analysis.figures``.
    """
    refuse_incomplete(study)
    choice: dict[str, Any] = {"learners": learners, "steps": steps, "width": width, "labels": labels}
    saved: list[Path] = []
    try:
        chosen_formats = [check_choice("--format", form, (*FORMATS, "csv")) for form in formats or ("pdf", "png")]
        if width is not None:
            inches_of(width)
        ds = measurements(study)
        picture_formats = [form for form in chosen_formats if form != "csv"]
        drawable = _drawable(_chosen_figures(study, ds, only), ds, choice, reporter, all_or_none=only is not None)
        with reporter.stage("draw", len(drawable), "figures") as advance:
            for name, figure in drawable.items():
                if picture_formats:
                    saved += save(figure(ds, **choice), out / name, formats=picture_formats)
                if "csv" in chosen_formats:
                    saved.append(figure.save_data(ds, out / name, **choice))
                advance(1, name)
    except ValueError as e:
        raise UserError(str(e)) from None
    return saved


def _chosen_figures(study: Study, ds: xr.Dataset, only: Sequence[str] | None) -> dict[str, StudyFigure | _OwnForest]:
    """The figures that the user has named or, if ``only`` is None, all whose variables the study has.

    Without ``only`` the forest plot comes last, because the error of the first figure is the one that the user reads.
    """
    if only is not None:
        return {name: _OwnForest(open_verdicts(study.path)) if name == FOREST else _figure(ds, name) for name in only}
    verdicts = open_verdicts(study.path) if (study.path / VERDICTS).exists() else []
    return {**figures_of(ds), **({FOREST: _OwnForest(verdicts)} if verdicts else {})}


def _drawable(
    figures: Mapping[str, StudyFigure | _OwnForest],
    ds: xr.Dataset,
    choice: Mapping[str, Any],
    reporter: Reporter,
    *,
    all_or_none: bool,
) -> dict[str, StudyFigure | _OwnForest]:
    """The figures that can be drawn with the user's choice; the reporter says why others cannot.

    Raises ValueError where none can and, if ``all_or_none``, where one cannot.
    """
    refused: dict[str, ValueError] = {}
    for name, figure in figures.items():
        try:
            figure.choice(ds, **choice)
        except ValueError as e:
            refused[name] = e
    if refused and (all_or_none or len(refused) == len(figures)):
        raise next(iter(refused.values()))
    for name, reason in refused.items():
        reporter.say(f"not drawn: {name}; {reason}")
    return {name: figure for name, figure in figures.items() if name not in refused}


def _figure(ds: xr.Dataset, name: str) -> StudyFigure:
    """The figure with a name: one of the package's figures, or the figure of a variable of the study."""
    if name in FIGURES:
        return FIGURES[name]
    if name in ds.data_vars:
        return variable(ds, name)
    near = did_you_mean(name, [*FIGURES, FOREST, *drawable_variables(ds)])
    raise ValueError(f"--only={name!r} is none of {', '.join([*FIGURES, FOREST])}, nor a variable of the study{near}")
