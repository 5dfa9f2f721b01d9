"""Finds the faults of a study's folder, and mends those that can be mended.

A fault is a file that is missing, was changed or is out of date, or data that are not those with which the study was
begun. The command ``verify`` lists all faults. The other commands refuse to go on from a fault, except for the command
``study``, which mends those that training or measuring again can mend.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from analysis import kept, store
from analysis.errors import UserError
from analysis.folder import CLAIMS, VERDICTS, measurements, open_verdicts, plan_of, stale_parts
from analysis.progress import Reporter
from analysis.study import Study
from analysis.training import STEP_SIZE_TRIALS, WARM_START, refuse_changed_data
from hessian_tools.runs import checkpoints, metrics
from hessian_tools.runs.files import DamagedFileError, read_json
from hessian_tools.runs.manifest import NAME as MANIFEST
from hessian_tools.runs.manifest import read_manifest, training_digest
from hessian_tools.train.loop import DIVERGED


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


def mend(study: Study, reporter: Reporter) -> None:
    """Remove what is damaged and can be made again by training and measuring, and say so."""
    for check in list(_training_checks(study)):
        try:
            check.read()
        except DamagedFileError as e:
            check.discard()
            reporter.say(f"{str(e).partition(';')[0]}; it is made again")
    for run in study.runs:
        path = study.run(*run) / store.NAME
        for fault in list(store.faults(path)) if path.exists() else []:
            store.discard(path, fault)
            reporter.say(f"{fault.file} {fault.problem}; what belongs to it is measured again")


def faults(study: Study) -> Iterator[str]:
    """A line for each fault of a study's folder, with its remedy."""
    runs = [study.run(*run) for run in study.runs if study.run(*run).exists()]
    damaged = [*_errors(partial(read_manifest, run) for run in runs)]
    yield from damaged
    if damaged:
        return  # a run's other files can be checked only with the help of its manifest
    plan_and_data = (partial(refuse_changed_plan, study), partial(refuse_changed_data, study, study.runs_to_measure))
    step_size_trials = (partial(read_json, file) for file in sorted((study.path / STEP_SIZE_TRIALS).glob("*.json")))
    yield from _errors([*plan_and_data, *step_size_trials, *(check.read for check in _training_checks(study))])
    stores = [run / store.NAME for run in runs if (run / store.NAME).exists()]
    damaged = [f"{fault.file} {fault.problem}" for path in stores for fault in store.faults(path)]
    for line in damaged:
        yield f"{line}; 'hessian-tools study {study.path}' measures anew what is damaged"
    of_seeds = [*_errors(partial(kept.refuse_damaged, study.path, seed) for seed in study.kept)]
    yield from of_seeds
    damaged += of_seeds
    if (study.path / VERDICTS).exists():
        yield from _errors([partial(open_verdicts, study.path)])
    for part in stale_parts(study, measurements(study)) if (stores or study.kept) and not damaged else ():
        command = part.replace("verdicts", "test")
        yield f"the {part} rest on other measurements than the present ones; run 'hessian-tools {command} {study.path}'"


def _errors(checks: Iterable[Callable[[], object]]) -> Iterator[str]:
    """The message of each check that raises."""
    for check in checks:
        try:
            check()
        except (DamagedFileError, UserError, ValueError) as e:
            yield str(e).replace("\n", " ")


def _training_checks(study: Study) -> Iterator[Check]:
    """A check of every file that a training run has written."""
    for run in study.runs:
        folder = study.run(*run)
        digest = training_digest(folder)
        for name in (DIVERGED, WARM_START):
            if (folder / name).exists():
                yield Check(partial(read_json, folder / name), (folder / name).unlink)
        saved = folder / checkpoints.FOLDER
        for file in sorted(saved.glob("*.safetensors")):
            facts = {"run": digest} | ({"meta_step": int(file.stem)} if file.stem.isdigit() else {})
            yield Check(partial(checkpoints.load, file, **facts), file.unlink)
        # A line of the metrics is written only while its meta-iteration is trained. If the file is damaged, the run is
        # therefore trained from its beginning.
        yield Check(partial(metrics.read, folder / metrics.NAME), partial(_start_again, folder))


def _start_again(run: Path) -> None:
    """Remove what training has written into a run's folder, so that the run is trained from its beginning."""
    shutil.rmtree(run / checkpoints.FOLDER, ignore_errors=True)
    for name in (metrics.NAME, DIVERGED):
        (run / name).unlink(missing_ok=True)
