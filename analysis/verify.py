"""Finds the faults of a study's folder, and mends those that can be mended.

A fault is a file that is missing, was changed or is out of date, or data that are not those with which the study was
begun. The command ``verify`` lists all faults. The other commands refuse to go on from a fault, except for the command
``study``, which mends those that training or measuring again can mend.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from analysis import kept, store
from analysis.errors import UserError
from analysis.folder import (
    CLAIMS,
    DRAWN,
    REPORT,
    STUDY,
    VERDICTS,
    command_of,
    measurements,
    open_verdicts,
    plan_of,
    stale_parts,
)
from analysis.progress import Reporter
from analysis.record import record_of
from analysis.study import Study
from analysis.training import (
    STEP_SIZE_TRIALS,
    WARM_START,
    refuse_changed_data,
    refuse_other_step_size,
    run_settings,
)
from hessian_tools.runs import checkpoints, metrics
from hessian_tools.runs.files import DamagedFileError, file_digest, read_json, set_aside
from hessian_tools.runs.manifest import NAME as MANIFEST
from hessian_tools.runs.manifest import num_parameters, read_manifest, training_digest
from hessian_tools.train import DIVERGED


@dataclass(frozen=True)
class Check:
    """One file of a run: ``read`` raises DamagedFileError if it is damaged, and ``discard`` lets it be made again."""

    read: Callable[[], object]
    discard: Callable[[], object]


def refuse_damaged_training(study: Study) -> None:
    """Raise DamagedFileError with the first damaged file that a training run has written."""
    for check in _training_checks(study):
        check.read()


def refuse_changed_plan(study: Study) -> None:
    """Raise UserError if the plan of the claims was changed after a run was begun."""
    plan = plan_of(study)
    folders = [study.run(*run) for run in study.runs]
    digests = [read_manifest(run)["claims_digest"] for run in folders if (run / MANIFEST).exists()]
    digests += [kept.seed_facts(study.path, seed)["claims_digest"] for seed in study.kept]
    if any(digest != plan.digest for digest in digests):
        raise UserError(
            f"{study.path / CLAIMS} was changed after the runs were begun, and a plan is fixed before them;"
            " put it back, or begin a study with --claims and another --out"
        )


def refuse_changed_figures(study: Study) -> None:
    """Raise DamagedFileError if the file of a figure is not the one that was drawn."""
    drawn = study.figures / DRAWN
    for name, digest in _drawn_files(drawn).items() if drawn.exists() else ():
        _refuse_changed_figure(drawn.parent / name, digest)


def refuse_incomplete(study: Study) -> None:
    """Raise UserError if a run is not measured, or only in part."""
    for learner, seed in study.runs_to_measure:
        path = study.run(learner, seed) / store.NAME
        if not path.exists() or not store.is_complete(path):
            part = "only in part" if path.exists() else "not yet"
            raise UserError(
                f"{learner} seed {seed} is {part} measured, and results from a part of the runs would be taken for"
                " those of the whole study;"
                f" run 'hessian-tools measure {study.path}' first"
            )


def mend(study: Study, reporter: Reporter) -> None:
    """Set aside what is damaged and can be made again by training and measuring, and say so."""
    # Lists, because setting a file aside changes the folders that the generators are reading.
    for check in list(_training_checks(study)):
        try:
            check.read()
        except DamagedFileError as e:
            check.discard()
            fault, _, _remedy = str(e).partition(";")  # the remedy of the message is what happens here by itself
            reporter.say(f"{fault}; it is renamed and made again")
    for run in study.runs:
        path = study.run(*run) / store.NAME
        for damage in list(store.faults(path)) if path.exists() else []:
            store.discard(path, damage)
            reporter.say(f"{damage.file} {damage.problem}; what belongs to it is measured again")


def faults(study: Study) -> Iterator[str]:
    """A line for each fault of a study's folder, with its remedy."""
    begun = [run for run in study.runs if any(study.run(*run).glob("[!.]*"))]  # their folders hold a visible file
    damaged_manifests = [*_errors(partial(read_manifest, study.run(*run)) for run in begun)]
    yield from damaged_manifests
    if damaged_manifests:
        return  # a run's other files can be checked only with the help of its manifest
    # Whether the settings, the plan and the data are those with which the runs were begun.
    unchanged_inputs: tuple[Callable[[], object], ...] = (
        partial(refuse_other_step_size, study),
        *(partial(_refuse_other_settings, study, *run) for run in begun),
        partial(refuse_changed_plan, study),
        partial(refuse_changed_data, study, study.runs_to_measure),
    )
    step_size_trials = (
        partial(read_json, file, "step_size") for file in sorted((study.path / STEP_SIZE_TRIALS).glob("*.json"))
    )
    yield from _errors([*unchanged_inputs, *step_size_trials, *(check.read for check in _training_checks(study))])
    yield from _lost_checkpoints(study)
    stores = [study.run(*run) / store.NAME for run in begun if (study.run(*run) / store.NAME).exists()]
    damaged = [
        f"{fault.file} {fault.problem}; 'hessian-tools study {study.path}' measures anew what is damaged"
        for path in stores
        for fault in store.faults(path)
    ]
    damaged += _errors(partial(kept.refuse_damaged, study.path, seed) for seed in study.kept)
    damaged += _errors(_checks_of_parts(study))
    yield from damaged
    if (stores or study.kept) and not damaged:
        try:
            yield from _stale(study)
        except (DamagedFileError, UserError) as e:
            yield str(e).replace("\n", " ")


def _checks_of_parts(study: Study) -> Iterator[Callable[[], object]]:
    """The checks of the verdicts, the figures and the report, as far as they exist."""
    drawn = study.figures / DRAWN
    if (study.path / VERDICTS).exists():
        yield partial(open_verdicts, study.path)
    if drawn.exists():
        yield partial(_drawn_files, drawn)
        with suppress(DamagedFileError):  # the check before this one reports it
            yield from (
                partial(_refuse_changed_figure, drawn.parent / name, digest)
                for name, digest in _drawn_files(drawn).items()
            )
    if (study.path / REPORT).exists():
        yield partial(record_of, study.path / REPORT)


def _drawn_files(drawn: Path) -> dict[str, str]:
    """The digests of the files of the figures by their names; version 0.1 recorded none."""
    digests: dict[str, str] = read_json(drawn).get("files", {})
    if not isinstance(digests, dict):
        raise DamagedFileError(f"{drawn} is damaged; run 'hessian-tools figures {drawn.parents[1]}'")
    return digests


def _refuse_changed_figure(file: Path, digest: str) -> None:
    """Raise DamagedFileError if the file of a figure is not the one that was drawn."""
    if not file.is_file() or file_digest(file) != digest:
        problem = "was changed after it was drawn" if file.exists() else "is missing"
        raise DamagedFileError(f"{file} {problem}; run 'hessian-tools figures {file.parents[1]}'")


def _stale(study: Study) -> Iterator[str]:
    """A line for each part of a study that was made from other files than the present ones."""
    for part in stale_parts(study, measurements(study)):
        verb, basis = ("rests", "measurements, verdicts or figures") if part == "report" else ("rest", "measurements")
        yield (
            f"the {part} of {study.path} {verb} on other {basis} than the present ones; run"
            f" 'hessian-tools {command_of(part)} {study.path}'"
        )


def _refuse_other_settings(study: Study, learner: str, seed: int) -> None:
    """Raise UserError if a run was begun with other settings than those in the study's file."""
    path = study.run(learner, seed)
    recorded = read_manifest(path)["config"]
    for key, value in json.loads(json.dumps(run_settings(study, learner, seed))).items():
        if recorded.get(key) != value:
            raise UserError(
                f"{study.path / STUDY} was changed after {path} was begun: {key} is not as it was; put the file back"
            )


def _lost_checkpoints(study: Study) -> Iterator[str]:
    """A line for each checkpoint that training has reached and that is not there."""
    for learner, seed in study.runs_to_train:
        folder = study.run(learner, seed)
        reached = _trained_to(folder)
        with suppress(DamagedFileError):  # damaged metrics are a fault of their own
            # A meta-iteration gets its line before its checkpoint is written, so the last line does not show that the
            # last checkpoint was written.
            reached = max(reached, len(metrics.read(folder / metrics.NAME)) - 1)
        for step in study.learners[learner].checkpoints:
            file = checkpoints.checkpoint_path(folder, step)
            # At a meta-iteration with a checkpoint, training first writes its state, from which it can go on, and then
            # the checkpoint, which is measured later. A process that was killed in between leaves the same files as a
            # lost checkpoint, and the remedy is the same.
            if step <= reached and not file.exists():
                yield f"{file} is missing; run 'hessian-tools study {study.path}', which makes it again"


def _trained_to(folder: Path) -> int:
    """The meta-iteration up to which a run was trained, as its checkpoints and its state say; -1 if there are none."""
    reached = max((int(file.stem) for file in (folder / checkpoints.FOLDER).glob("[0-9]*.safetensors")), default=-1)
    with suppress(DamagedFileError):  # a damaged state is a fault of its own
        reached = max(reached, int(checkpoints.load(checkpoints.state_path(folder))["meta_step"]))
    return reached


def _check_metrics(study: Study, learner: str, folder: Path) -> None:
    """Raise DamagedFileError if a line of a run's metrics was changed or lost."""
    file, reached = folder / metrics.NAME, max(_trained_to(folder), 0)
    steps = [row["meta_step"] for row in metrics.read(file)[:reached]]
    if study.learners[learner].settings.trained and steps != list(range(1, reached + 1)):
        raise DamagedFileError(
            f"{file} lacks lines of the {reached} meta-iterations that were trained; put it back, or run"
            f" 'hessian-tools study {study.path}', which trains that run again"
        )


def _errors(checks: Iterable[Callable[[], object]]) -> Iterator[str]:
    """The message of each check that raises."""
    for check in checks:
        try:
            check()
        except (DamagedFileError, UserError, ValueError) as e:
            yield str(e).replace("\n", " ")


def _training_checks(study: Study) -> Iterator[Check]:
    """A check of every file that a training run has written."""
    for learner, seed in study.runs:
        folder = study.run(learner, seed)
        digest = training_digest(folder)
        for name in (DIVERGED, WARM_START):
            if (folder / name).exists():
                yield Check(partial(read_json, folder / name, "meta_step"), partial(set_aside, folder / name))
        saved = folder / checkpoints.FOLDER
        for file in sorted(saved.glob("*.safetensors")):
            if file.stem.isdigit():  # a checkpoint, which is named after its meta-iteration
                yield Check(partial(checkpoints.load_checkpoint, folder, int(file.stem)), partial(set_aside, file))
            else:  # the training state; its theta holds the network's parameters, and some learners add more to them
                at_least = num_parameters(folder)
                yield Check(partial(checkpoints.load, file, at_least=at_least, run=digest), partial(set_aside, file))
        # A line of the metrics is written only while its meta-iteration is trained. If the file is damaged, the run is
        # therefore trained from its beginning.
        yield Check(partial(_check_metrics, study, learner, folder), partial(_start_again, folder))


def _start_again(run: Path) -> None:
    """Set aside what training has written into a run's folder, so that the run is trained from its beginning."""
    for name in (checkpoints.FOLDER, metrics.NAME, DIVERGED):
        if (run / name).exists():
            set_aside(run / name)
