"""Tables that put a study's accuracies beside those of the method's paper (``paper_numbers``).

The paper's data are not those of a study, and its budgets are larger; every caption says so. What can be compared is
the direction and the size of the differences, not the accuracies.

SHOT is the penalty on the distance between the ends of few large inner steps (the target) and of many small ones (the
reference).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from analysis import paper_numbers as paper
from analysis.config import LearnerConfig, StudyConfig
from analysis.drawing import selection
from analysis.drawing.style import method_label
from analysis.evaluation import has_accuracy, percent_scores
from analysis.report.page import DASH, MINUS, Html, element, row, section, table
from analysis.schema import learner_names, setting, shot_pairs
from analysis.statistics import Interval, mean_interval, seed_means

DISTANCES = {
    "kl_reference_target": "KL divergence",
    "cross_entropy": "cross-entropy",
    "l2_parameters": "L2 of parameters",
}
SHOT_LABELS = {"": "without SHOT", "SHOT_r": "SHOT as a penalty (SHOT_r)", "SHOT_p": "SHOT in pre-training (SHOT_p)"}


def paper_section(ds: xr.Dataset, config: StudyConfig, *, confidence: float = 0.95) -> list[Html]:
    """The heading and those tables for which the study has learners; [] for regression, and if there is no table.

    ds: the measurements of the study. config: its settings, from which the learners are recognised.
    """
    if not has_accuracy(ds):
        return []
    study = _Accuracies(ds, config, confidence)
    # A study with ``data.test_path`` is tested on other data than it is trained on, as in the paper's Table 3.
    makers = (_transfer,) if config.data.test_path else (_learners, _distances, _weights, _steps, _distance_alone, _leo)
    tables = [made for made in (make(study) for make in makers) if made is not None]
    if not tables:
        return []
    return [section("Beside the paper's numbers"), element("p", study.budgets()), *tables]


class _Accuracies:
    """A study's accuracies and settings, as the tables need them."""

    def __init__(self, ds: xr.Dataset, config: StudyConfig, confidence: float) -> None:
        self.ds, self.config, self.confidence = ds, config, confidence
        self.scores = percent_scores(ds).transpose("learner", "seed", "checkpoint", "evaluation_task")
        # A control or a learner with the penalty on the curvature is none of the paper's.
        self.names = [
            name
            for name in learner_names(ds)
            if not selection.is_control(ds, name) and not setting(ds, "penalty", name)
        ]
        self.shots = config.data.shots  # support images per class

    def settings(self, name: str) -> LearnerConfig:
        """The settings of a learner."""
        return self.config.learners[name]

    def method(self, name: str) -> str:
        """The name of the method in the paper: the algorithm, or fomaml for first-order MAML."""
        settings = self.settings(name)
        return "fomaml" if settings.algorithm == "maml" and settings.first_order else settings.algorithm

    def use_of_shot(self, name: str) -> str:
        """How a learner uses SHOT; see ``SHOT_LABELS``."""
        settings = self.settings(name)
        if settings.start and self.settings(settings.start).pretraining is not None:
            return "SHOT_p"
        return "SHOT_r" if settings.shot is not None else ""

    def accuracy(self, name: str, *, first: bool = False) -> Interval:
        """The mean accuracy over tasks and seeds at the last checkpoint (or the first one), in %."""
        scores = self.scores.sel(learner=name)
        known = scores.notnull().any(["seed", "evaluation_task"]).values.nonzero()[0]  # positions of checkpoints
        if not known.size:
            return mean_interval(np.array([]), confidence=self.confidence)  # an interval that rests on no value
        at = scores.isel(checkpoint=int(known[0 if first else -1]))
        return mean_interval(seed_means(at.values), confidence=self.confidence)

    def cell(self, name: str, *, first: bool = False) -> Html:
        """The mean accuracy of a learner, ± half the width of its interval over seeds."""
        return _number_cell(self.accuracy(name, first=first))

    def paper_accuracy(self, pair: paper.Pair | None) -> str:
        """The paper's accuracy for as many support images per class as in the study.

        The pair has the accuracies for 1 and for 5. Any other number of support images gives both of them.
        """
        if pair is None:
            return DASH
        return f"{pair[(1, 5).index(self.shots)]:.2f}" if self.shots in (1, 5) else f"{pair[0]:.2f} / {pair[1]:.2f}"

    @property
    def paper_shots(self) -> str:
        """The number of support images per class to which the paper's accuracies belong."""
        return f"{self.shots}-shot" if self.shots in (1, 5) else "1-shot / 5-shot"

    @property
    def data(self) -> str:
        """The name of the study's data."""
        return Path(self.config.data.source).stem

    def paper_head(self, data: str) -> str:
        """The heading of a column of the paper's numbers on one of its data sets."""
        same = data.lower() in self.data.lower()
        return f"Paper, {data}, {self.paper_shots}" + ("" if same else " (other data)")

    @property
    def our_head(self) -> str:
        """The heading of the column of our numbers."""
        return f"Here, {self.data}, {self.shots}-shot, %"

    def budgets(self) -> str:
        """The sentences on what the numbers of the paper and of this study rest on."""
        config, network_config = self.config, self.config.network
        width = f" of width {network_config.width}" if network_config.name == "conv4" else ""
        seeds = self.scores.sizes["seed"]
        of_paper = paper.BUDGETS["resnet12" if network_config.name == "resnet12" else "conv4"]
        return (
            f"The paper (Lee, Yoo, Kwak 2023): {of_paper}; the number of seeds is not given. Here: "
            f"{network_config.name}{width}, {int(self.ds['checkpoint'][-1]):,} meta-iterations of "
            f"{config.train.meta_batch} tasks, {self.scores.sizes['evaluation_task']:,} held-out tasks of each of "
            f"{seeds} seeds; mean ± half the width of the {100 * self.confidence:g} % Student t interval over seeds. "
            "Compare differences, not accuracies."
        )


def _learners(study: _Accuracies) -> Html | None:
    """The paper's main result: every learner without and with SHOT.

    For ResNet-12 the paper has only MAML, on three data sets.
    """
    resnet = study.config.network.name == "resnet12"
    data = paper.DATA[:3] if resnet else paper.DATA
    learners: dict[tuple[str, str], str] = {}  # by method and use of SHOT
    for name in study.names:
        if study.settings(name).pretraining is None:
            learners.setdefault((study.method(name), study.use_of_shot(name)), name)
    known = {key: pairs for key, pairs in paper.LEARNERS.items() if key in learners}
    if resnet:
        known = {("maml", use): pairs for use, pairs in paper.RESNET12.items() if ("maml", use) in learners}  # type: ignore[misc]
    if not known:
        return None
    rows = [
        row((_learner_label(*key), *map(study.paper_accuracy, pairs), *_cells(study, learners[key])))
        for key, pairs in known.items()
    ]
    caption = (
        "Accuracy of each learner without and with SHOT: the paper's main result (its Table 1) and its results for "
        "other learners. The last column is the mean difference, over paired tasks, from the same learner without "
        "SHOT. "
        if not resnet
        else "Accuracy of MAML with ResNet-12, without and with SHOT. "
    )
    header = ("Learner", *map(study.paper_head, data), study.our_head, "Here, SHOT minus without, % points")
    return table(header, rows, caption=caption.rstrip(), wide=True)


def _transfer(study: _Accuracies) -> Html | None:
    """Table 3 of the paper: MAML without and with SHOT, trained on one data set and tested on another."""
    learners: dict[str, str] = {}  # by use of SHOT
    for name in study.names:
        if study.method(name) == "maml":
            learners.setdefault(study.use_of_shot(name), name)
    if not {"", "SHOT_r"} <= set(learners):
        return None
    rows = [
        row(
            (
                f"{source} → {target}",
                "paper, 5-shot (other data)",
                f"{without:.2f}",
                f"{with_shot:.2f}",
                f"{with_shot - without:+.2f}",
            )
        )
        for (source, target), (without, with_shot) in paper.TRANSFER.items()
    ]
    test_data = Path(study.config.data.test_path or "").stem
    ours = (
        f"{study.data} → {test_data}",
        f"here, {study.shots}-shot",
        study.cell(learners[""]),
        study.cell(learners["SHOT_r"]),
    )
    rows.append(row((*ours, _difference(study, learners["SHOT_r"])), css="total"))
    caption = (
        "MAML without and with SHOT, trained on one data set and tested on the classes of another, accuracy in % "
        "(Table 3 of the paper). miniImageNet and tieredImageNet share classes, so the paper's rows between them are "
        "contaminated."
    )
    header = ("Trained → tested", "Whose", "MAML", "MAML + SHOT", "Difference, % points")
    return table(header, rows, caption=caption)


def _distances(study: _Accuracies) -> Html | None:
    """The paper's comparison of SHOT's distances, for the first learner that has two or more of them."""
    base, by_distance = _variants(study, lambda shot: shot.distance)
    rows = [
        row(
            (
                DISTANCES.get(kind, kind.replace("_", " ")),
                study.paper_accuracy(paper.DISTANCES.get(kind)),
                *_cells(study, name),
            )
        )
        for kind, name in by_distance.items()
    ]
    return _variant_table(study, base, "SHOT's distance", "the distance that SHOT penalises", rows)


def _weights(study: _Accuracies) -> Html | None:
    """The paper's sweep over the weight of SHOT, for the first learner that has two or more weights beside 0."""
    base, by_weight = _variants(study, lambda shot: shot.weight, of_base=0.0)
    rows = []
    for weight in sorted(by_weight.keys() | paper.WEIGHTS.keys()) if by_weight else ():
        number = f"{paper.WEIGHTS[weight]:.2f}" if weight in paper.WEIGHTS else DASH
        ours = _cells(study, by_weight[weight]) if weight in by_weight else (DASH, DASH)
        # The sign of a weight becomes a real minus sign, and that of its exponent, as in 1e-05, does not.
        rows.append(row((f"{weight:g}".replace("-", MINUS, 1) if weight < 0 else f"{weight:g}", number, *ours)))
    what = "the weight of SHOT, of which the paper has the positive ones"
    return _variant_table(study, base, "Weight", what, rows, paper_shots="5-shot")


def _steps(study: _Accuracies) -> Html | None:
    """The paper's variation of the numbers of steps of SHOT's target and reference.

    It is shown for the first learner that has two or more pairs of these numbers.
    """
    base, by_steps = _variants(study, lambda shot: shot.counts(study.config.inner.steps))
    rows = [
        row((f"T = {steps[0]}, R = {steps[1]}", study.paper_accuracy(paper.STEPS.get(steps)), *_cells(study, name)))
        for steps, name in sorted(by_steps.items())
    ]
    what = "the numbers of steps of SHOT's target (T) and reference (R)"
    return _variant_table(study, base, "Steps", what, rows)


def _distance_alone(study: _Accuracies) -> Html | None:
    """The paper's training by SHOT's distance alone, without query labels."""
    name = next((name for name in study.names if study.settings(name).pretraining is not None), None)
    if name is None:
        return None
    untrained, alone = paper.DISTANCE_ALONE
    rows = [
        row(("untrained network", study.paper_accuracy(untrained), study.cell(name, first=True))),
        row(("after training by SHOT's distance alone", study.paper_accuracy(alone), study.cell(name))),
    ]
    caption = (
        "One of the paper's further results: the untrained network, and the network after training by SHOT's distance "
        "alone, which sees no query labels."
    )
    return table(("Network", study.paper_head("mini"), study.our_head), rows, caption=caption)


def _leo(study: _Accuracies) -> Html | None:
    """The paper's LEO (a learner that adapts a latent code; Rusu et al. 2019), without and with SHOT."""
    # The order is reversed so that, of several learners with the same use of SHOT, the first one is shown.
    learners = {study.use_of_shot(name): name for name in reversed(study.names) if study.method(name) == "leo"}
    rows = [
        row((_learner_label("leo", use), study.paper_accuracy(pair), *_cells(study, learners[use])))
        for use, pair in paper.LEO.items()
        if use in learners
    ]
    if not rows:
        return None
    caption = "One of the paper's further results: LEO without and with SHOT."
    header = ("Learner", study.paper_head("mini"), study.our_head, "Here, SHOT minus without, % points")
    return table(header, rows, caption=caption)


def _variants(
    study: _Accuracies, setting_of: Callable[[Any], Any], *, of_base: Any = None
) -> tuple[str, dict[Any, str]]:
    """The first learner without SHOT of which the study has two or more variants, and the variants by their setting.

    A variant differs from that learner only in SHOT as a penalty; of equal ones, the first stays.
    setting_of: the setting that tells variants apart. of_base: its value for the learner without SHOT, which is then
        one of the results. Without such a learner the results are empty.
    """
    variants: dict[str, dict[Any, str]] = {}
    for name, base in shot_pairs(study.ds):
        shot = study.settings(name).shot
        if name in study.names and study.use_of_shot(name) == "SHOT_r" and shot is not None:
            of_learner = variants.setdefault(base, {} if of_base is None else {of_base: base})
            of_learner.setdefault(setting_of(shot), name)
    least = 2 if of_base is None else 3
    return next(((base, found) for base, found in variants.items() if len(found) >= least), ("", {}))


def _variant_table(
    study: _Accuracies, base: str, column: str, what: str, rows: Sequence[Html], *, paper_shots: str = ""
) -> Html | None:
    """The table of a variation of SHOT, next to the paper's numbers on miniImageNet; None without rows.

    base: the learner without SHOT. column: the heading of the first column. what: the setting that varies, in words.
    paper_shots: "5-shot" if the paper varies this with five support images per class alone.
    """
    if not rows:
        return None
    head = study.paper_head("mini")
    if paper_shots:
        head = head.replace(study.paper_shots, paper_shots)
    caption = (
        f"One of the paper's further results: {what}; the paper's for MAML, ours for {method_label(base)}. The last "
        f"column is the mean difference, over paired tasks, from {method_label(base)} without SHOT."
    )
    header = (column, head, study.our_head, "Here, SHOT minus without, % points")
    return table(header, rows, caption=caption)


def _cells(study: _Accuracies, name: str) -> tuple[Html, Html]:
    """The cells of the study's own numbers: the accuracy, and the difference from the learner without SHOT."""
    return study.cell(name), _difference(study, name)


def _difference(study: _Accuracies, name: str) -> Html:
    """The mean difference from the same learner without SHOT, ± half the width of its interval over seeds."""
    base = dict(shot_pairs(study.ds)).get(name)
    if base is None:
        return element("span", DASH, css="num")
    last = study.scores.isel(checkpoint=-1)
    differences = (last.sel(learner=name) - last.sel(learner=base)).transpose("seed", "evaluation_task").values
    return _number_cell(mean_interval(seed_means(differences), confidence=study.confidence), signed=True)


def _number_cell(interval: Interval, *, signed: bool = False) -> Html:
    """The cell of a mean in %, ± half the width of its interval if it rests on several seeds."""
    if not interval.num:
        return element("span", DASH, css="num")
    text = f"{interval.mean:{'+' if signed else ''}.1f}".replace("-", MINUS)
    return element("span", f"{text} ± {interval.half_width:.1f}" if interval.num > 1 else text, css="num")


def _learner_label(method: str, use: str) -> str:
    """The label of a row: the method, and how it uses SHOT (a key of ``SHOT_LABELS``)."""
    return f"{method_label(method)}, {SHOT_LABELS[use]}"
