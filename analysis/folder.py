"""A study's folder: the files in it, the study to which it belongs, and the lock of the command that writes in it.

Kept results are the small files into which the command ``keep`` writes what was measured with a seed; see
``analysis.kept``. A folder of kept results has no runs. A study may go on from it without making those runs again.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import yaml

from analysis import kept, networks, store
from analysis.claims import Plan, Verdict, load_plan, verdicts_from_json
from analysis.claims.plan import BUNDLED as PLAN
from analysis.config import StudyConfig
from analysis.config.base import LARGEST, SMALLEST
from analysis.errors import UserError
from analysis.record import record_of
from analysis.schema import describe_learners, stack_runs, with_codes
from analysis.study import Study, build
from analysis.study_file import parse_study, with_own_files
from hessian_tools.runs import files
from hessian_tools.runs.files import ASIDE, DamagedFileError, file_digest, read_json, write_atomic, write_text

STUDY, CLAIMS, VERDICTS, REPORT = "study.yaml", "claims.yaml", "verdicts.json", "report.html"
EXPLORER = "explorer.html"  # written beside the report, and by the command explore; no other file is made from it
STEP_SIZE = "step_size.json"  # the result of the search for the step size
README = "README.md"  # only a folder of kept results has one; see analysis.keep
DATA_PATHS = ("path", "test_path")  # the settings that say where the data are, which differs between machines
DRAWN = "drawn.json"  # in the folder of the figures: the digest of the measurements that they show


def open_folder(path: str | Path, *, device: str = "cpu", trust: bool = False) -> Study:
    """The study that was begun in a folder, with the step size that its search has chosen, if there was one.

    trust: whether modules that the study names may be imported; nothing is imported by opening it.
    """
    path = Path(path)
    if not (path / STUDY).is_file():
        if path.is_file():
            raise UserError(
                f"{path} is a file; give the folder of a study, which is runs/NAME unless --out named another"
            )
        problem = f"is no study folder: there is no {STUDY} in it" if path.exists() else "does not exist"
        raise UserError(f"{path} {problem}; 'hessian-tools demo' makes a study")
    config = parse_study(_text(path / STUDY), source=str(path / STUDY))
    config = with_own_files(config, lambda file: Path(os.path.realpath(path / file)))
    return study_in_folder(config, path, device=device, trust=trust)


def study_in_folder(config: StudyConfig, path: Path, *, device: str = "cpu", trust: bool = False) -> Study:
    """The study of a configuration in a folder, with what earlier commands have left there.

    That is the step size that a search has chosen, the kept results, and the folder whose networks are taken over.
    """
    study = build(
        config, path, device=device, step_size=chosen_step_size(path), kept=kept.kept_learners(path), trust=trust
    )
    return replace(study, networks_from=networks.source_of(path))


def chosen_step_size(path: Path) -> float | None:
    """The step size that a search has left in a folder, if any."""
    file = path / STEP_SIZE
    if not file.exists():
        return None
    step_size: Any = read_json(file, "step_size")["step_size"]
    if type(step_size) not in (int, float) or not SMALLEST <= step_size <= LARGEST:
        raise DamagedFileError(f"{file} holds no step size; {ASIDE}")
    return float(step_size)


def going_on_from(study: Study, path: Path) -> Study:
    """The study with the kept results in another folder, or with the trained networks in that of another study.

    Kept results are those of the same study, whose runs need not be made again. Where the folder has runs instead,
    their networks need not be trained again, and this study measures them by its own settings.

    Raises UserError where that folder holds neither, or kept results of another study.
    """
    has_runs = any((path / "runs").glob("*/*"))
    if not (path / STUDY).is_file() or not (kept.kept_learners(path) or has_runs):
        raise UserError(
            f"--from {path}: it holds neither kept results, which 'hessian-tools keep FOLDER --out {path}' writes, nor"
            " the runs of a study"
        )
    before = open_folder(path)
    with_its_step_size = study if before.step_size is None else study.with_step_size(before.step_size)
    if not kept.kept_learners(path):
        if study.config.inner != before.config.inner:
            raise UserError(
                f"--from {path}: its networks were trained with the inner loop {_short(before.config.inner)}, yours is"
                f" {_short(study.config.inner)};\ntake its settings, or leave --from out, which trains networks anew"
            )
        return replace(with_its_step_size, networks_from=path)
    refuse_other_settings(study, before, advice="leave --from out, or take the settings that are kept")
    present = study_in_folder(study.config, study.path, device=study.device)  # with what its own folder keeps already
    return replace(with_its_step_size, kept={**present.kept, **before.kept}, goes_on_from=path)


def refuse_occupied(study: Study) -> None:
    """Raise UserError if the study's folder holds another study or other files; nothing is written."""
    path = study.path
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, but --out needs a folder; choose another --out")
    if (path / STUDY).exists():
        if (path / README).exists():
            raise UserError(
                f"{path} holds kept results, beside which nothing is run; choose another --out, with --from {path} to"
                " go on from them"
            )
        _refuse_another(study, open_folder(path).config)
    elif path.exists() and any(p for p in path.iterdir() if not p.name.startswith(".")):
        raise UserError(f"{path} is not empty and holds no {STUDY}; choose another --out")


def plan_to_begin(study: Study, claims: str | None) -> str | None:
    """The text of the plan with which a study begins or was begun; None for the bundled one.

    claims: as in ``begin``. Raises UserError where the study was begun with another plan.
    """
    begun = (folder / CLAIMS for folder in (study.path, study.goes_on_from) if folder is not None)
    plan = next((_text(file) for file in begun if file.exists()), claims)
    if claims not in (None, plan):
        raise UserError(
            f"{study.path} was begun with another plan of the claims, and a plan is fixed before anything is measured;"
            " leave --claims out, or choose another --out"
        )
    return plan


def begin(study: Study, *, claims: str | None = None) -> None:
    """Write the files with which a study's folder starts.

    The caller holds the lock of the folder.
    claims: the text of a checked plan, or None for the bundled one. A folder keeps the plan with which it was begun.

    The kept results from which the study goes on are copied into the folder, and so is the chosen step size of the
    study whose trained networks it takes over.
    """
    plan = plan_to_begin(study, claims)
    write_settings(study.config, study.path, plan=plan or PLAN.read_text(encoding="utf-8"))
    networks.write_source(study)
    source = study.goes_on_from or study.networks_from
    if source is not None:
        for file in [*(source / kept.FOLDER).glob("seed-*.*"), source / STEP_SIZE]:
            if file.exists():  # there is no file of the step size where no search has chosen it
                write_atomic(study.path / file.relative_to(source), partial(shutil.copyfile, file))


def write_settings(config: StudyConfig, path: Path, *, plan: str) -> None:
    """Write the settings of a study and the text of its plan of the claims into a folder."""
    # study.yaml is written first, because a folder that holds other files but no study.yaml is refused.
    write_text(path / STUDY, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    write_text(path / CLAIMS, plan)


def open_study(path: str | Path) -> xr.Dataset:
    """Everything that was measured in a study: its runs stacked over ``learner`` (names) and ``seed``.

    ``analysis.schema`` describes the variables with their dimensions and units.
    """
    return measurements(open_folder(path))


def measurements(study: Study) -> xr.Dataset:
    """Everything that was measured in a study; see :func:`open_study`."""
    stores = {run: study.run(*run) / store.NAME for run in study.runs_to_measure}
    runs = {run: store.open_run(path) for run, path in stores.items() if path.exists()}
    for run, ds in runs.items():
        if run != (ds.attrs["learner"], ds.attrs["seed"]):
            raise DamagedFileError(f"{stores[run]} is that of {ds.attrs['learner']} seed {ds.attrs['seed']}; {ASIDE}")
    kept_runs = kept.runs_of(study.path, [run for run in study.runs if run not in study.runs_to_measure])
    if kept_runs:  # kept results hold less than a store, so the other runs are reduced to the same variables
        runs = kept_runs | {run: kept.reduced(ds) for run, ds in runs.items()}
    if not runs:
        raise UserError(f"nothing is measured yet in {study.path}; run 'hessian-tools measure {study.path}' first")
    ds = describe_learners(
        stack_runs(runs, list(study.learners), planned=study.runs),
        trained={name: learner.settings.trained for name, learner in study.learners.items()},
        without_shot=study.without_shot,
        untrained_start=study.untrained_start,
        no_alpha={name: learner.learner.why_no_alpha for name, learner in study.learners.items()},
        **study.relations,
    )
    ds.attrs = {"study": study.config.name, "split": "test"}  # the attributes that all runs have in common
    if study.config.data.source != "sine-line":
        ds.attrs["ways"] = study.config.data.ways
    # A store keeps the order of its variables as an attribute, because zarr keeps none; kept results have that order.
    orders = [run.attrs.get("variables", list(run.data_vars)) for run in runs.values()]
    return ds.sortby("checkpoint")[list(dict.fromkeys(name for order in orders for name in order))]


def open_verdicts(path: str | Path) -> list[Verdict]:
    """The verdicts on the claims, which the command ``test`` has made from a study's measurements."""
    file = open_folder(path).path / VERDICTS
    if not file.exists():
        raise UserError(f"{file} does not exist yet; run 'hessian-tools test {file.parent}' first")
    try:
        read_json(file)  # called for its error, where the file was changed after it was written
        return verdicts_from_json(_text(file))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{file} is damaged; run 'hessian-tools test {file.parent}' to make it again") from None


def plan_of(study: Study) -> Plan:
    """The plan of the claims with which the study was begun."""
    file = study.path / CLAIMS
    if not file.exists():
        raise UserError(f"{file} is gone; put it back, or begin another study")
    _text(file)  # called for its error, which says that the file is damaged
    return load_plan(file)


def content_digest(ds: xr.Dataset) -> str:
    """The SHA-256 of all numbers of a study.

    Verdicts and figures keep the digest of the measurements from which they were made; see :func:`stale_parts`.
    """
    content, coded = hashlib.sha256(), with_codes(ds)
    for name in sorted(map(str, coded.variables)):
        content.update(name.encode() + np.ascontiguousarray(coded[name].values).tobytes())
    return content.hexdigest()


def stale_parts(study: Study, ds: xr.Dataset) -> list[str]:
    """The parts of a study ("verdicts", "figures", "report") that were made from other files than the present ones.

    All parts rest on the measurements, the verdicts also on the plan of the claims, and the report also on the verdicts
    and the figures. A part that does not exist is not named, and neither is a report of version 0.1, which kept no
    record of what it rests on.
    """
    verdicts, drawn, report = study.path / VERDICTS, study.figures / DRAWN, study.path / REPORT
    measured, plan = {"measurements": content_digest(ds)}, plan_of(study).digest
    stale = []
    # A file of verdicts that does not hold the digest of its plan is compared by its measurements alone.
    if verdicts.exists() and _differs({"plan": plan} | read_json(verdicts), measured | {"plan": plan}):
        stale.append("verdicts")
    # DRAWN is written after the last figure, so figures without it come from a drawing that was cut short.
    if any(study.figures.glob("*.png")) and (not drawn.exists() or _differs(read_json(drawn), measured)):
        stale.append("figures")
    record = record_of(report) if report.exists() else {}
    if record and _differs(record, measured | report_basis(study)):
        stale.append("report")
    return stale


def command_of(part: str) -> str:
    """The command that makes a part of a study anew; parts are called like their commands, except for the verdicts."""
    return part.replace("verdicts", "test")


def report_basis(study: Study) -> dict[str, str]:
    """The SHA-256 of the files besides the measurements on which a report rests; an absent file has an empty one."""
    files_below = {"verdicts": study.path / VERDICTS, "figures": study.figures / DRAWN}
    return {part: file_digest(file) if file.exists() else "" for part, file in files_below.items()}


def _differs(record: dict[str, Any], wanted: dict[str, str]) -> bool:
    """True if a record lacks one of the wanted digests, or holds another one."""
    return any(record.get(name) != digest for name, digest in wanted.items())


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Make the folder and lock it against other commands; however the process ends, its lock ends with it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(files.locked(path))
        except files.FolderInUseError:
            raise UserError(
                f"another hessian-tools is at work in {path}; wait until it ends, or choose another --out"
            ) from None
        except OSError as e:
            raise UserError(f"the folder {path} cannot be made ({e.strerror}); choose another --out") from None
        yield


def refuse_other_settings(study: Study, before: Study, *, advice: str) -> None:
    """Raise UserError unless the kept results ``before`` are of the same study, perhaps with other seeds.

    All learners that are kept must be in the study. Where the data are on disk does not matter, because their digest is
    kept too.
    """
    difference = _difference(*(_portable_settings(each.config) for each in (before, study)))
    if difference:
        raise UserError(f"{before.path} holds results of other settings: its {difference}; {advice}")
    if None not in (before.step_size, study.step_size) and before.step_size != study.step_size:
        raise UserError(
            f"{before.path} holds results with the inner step size {before.step_size:g}, but that of {study.path} is"
            f" {study.step_size:g}; {advice}"
        )


def _refuse_another(study: Study, begun: StudyConfig) -> None:
    """Raise UserError unless the study is the one that was begun, perhaps with more seeds, learners or claims."""
    difference = _difference(*(config.model_dump(mode="json") for config in (begun, study.config)))
    if difference:
        raise UserError(
            f"{study.path} holds another study: its {difference}; choose another --out (only seeds, learners and claims"
            " may be added)"
        )


def _portable_settings(config: StudyConfig) -> dict[str, Any]:
    """The settings of a study without its seeds, and without the places of the data and of the user's own files."""
    settings = with_own_files(config, lambda file: Path(file.name)).model_dump(mode="json", exclude={"seeds"})
    for key in DATA_PATHS:
        settings["data"][key] = bool(settings["data"][key])  # only whether a path is given counts
    return settings


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The first setting in which the study ``new`` does not continue the study ``old``, in words; "" if it does."""
    for key in old:
        if not _same(key, old[key], new.get(key)):
            return f"{key} is {_short(old[key])}, yours {_short(new.get(key))}"
    return ""


def _same(key: str, old: Any, new: Any) -> bool:
    """True if a study with the settings ``new`` under a key continues one with the settings ``old``."""
    if key == "seeds":
        return set(old) <= set(new)
    if key == "learners":
        return all(name in new and _continues(learner, new[name]) for name, learner in old.items())
    if key == "claims":
        return all((new or {}).get(name) == target for name, target in old.items())
    return bool(old == new)


def _continues(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """True if a learner's new settings are the old ones, perhaps with more seeds; no list of seeds stands for all."""
    more = new.get("seeds") is None or (old.get("seeds") is not None and set(old["seeds"]) <= set(new["seeds"]))
    return more and {**old, "seeds": None} == {**new, "seeds": None}


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 70 else text[:67] + "..."


def _text(path: Path) -> str:
    """The text of a file of the folder; raises UserError where it is damaged."""
    try:
        files.refuse_unreadable(path, max_bytes=files.MAX_JSON_BYTES)
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        problem = "it is not a text in UTF-8"
    except DamagedFileError:
        problem = "it is no file, or far larger than such a file"
    raise UserError(f"{path} is damaged: {problem}; put it back, or begin another study")
