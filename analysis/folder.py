"""A study's folder: the files in it, the study to which it belongs, and the lock of the command that writes in it."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import xarray as xr
import yaml

from analysis import store
from analysis.claims import Plan, Verdict, load_plan, verdicts_from_json
from analysis.claims.plan import BUNDLED as PLAN
from analysis.config import StudyConfig
from analysis.errors import UserError
from analysis.schema import VARIABLES, describe_learners, stack_runs, with_codes
from analysis.study import Study, build
from analysis.study_file import parse_study
from hessian_tools.runs import files
from hessian_tools.runs.files import read_json, write_text

STUDY, CLAIMS, VERDICTS, REPORT = "study.yaml", "claims.yaml", "verdicts.json", "report.html"
STEP_SIZE = "step_size.json"  # the result of the search for the step size
DRAWN = "drawn.json"  # in the folder of the figures: the digest of the measurements that they show


def open_folder(path: str | Path, *, device: str = "cpu", trust: bool = False) -> Study:
    """The study that was begun in a folder, with the step size that its search has chosen, if there was one.

    trust: whether modules that the study names may be imported; nothing is imported by opening it.
    """
    path = Path(path)
    if not (path / STUDY).is_file():
        problem = "is no study folder" if path.exists() else "does not exist"
        raise UserError(f"{path} {problem}: there is no {STUDY} in it; 'hessian-tools demo' makes one")
    return study_in_folder(parse_study(_text(path / STUDY), source=str(path / STUDY)), path, device=device, trust=trust)


def study_in_folder(config: StudyConfig, path: Path, *, device: str = "cpu", trust: bool = False) -> Study:
    """The study of a configuration in a folder, with the step size that an earlier search has left there, if any."""
    chosen = read_json(path / STEP_SIZE)["step_size"] if (path / STEP_SIZE).exists() else None
    return build(config, path, device=device, step_size=chosen, trust=trust)


def refuse_occupied(study: Study) -> None:
    """Raise UserError if the study's folder holds another study or other files; nothing is written."""
    path = study.path
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, but --out needs a folder; choose another --out")
    if (path / STUDY).exists():
        _refuse_another(study, open_folder(path).config)
    elif path.exists() and any(p for p in path.iterdir() if not p.name.startswith(".")):
        raise UserError(f"{path} is not empty and holds no {STUDY}; choose another --out")


def begin(study: Study, *, claims: str | None = None) -> None:
    """Write the files with which a study's folder starts, and remove what a killed process left half-written.

    The caller holds the lock of the folder.
    claims: the text of a checked plan, or None for the bundled one. A folder keeps the plan with which it was begun.
    """
    plan_file = study.path / CLAIMS
    plan = _text(plan_file) if plan_file.exists() else claims
    if claims not in (None, plan):
        raise UserError(
            f"{study.path} was begun with another plan of the claims, and a plan is fixed before anything is measured;"
            " leave --claims out, or choose another --out"
        )
    store.remove_half_written(study.path)
    # study.yaml is written first, because a folder that holds other files but no study.yaml is refused.
    write_text(study.path / STUDY, yaml.safe_dump(study.config.model_dump(mode="json"), sort_keys=False))
    write_text(plan_file, plan or PLAN.read_text(encoding="utf-8"))


def open_study(path: str | Path) -> xr.Dataset:
    """Everything that was measured in a study: its runs stacked over ``learner`` (names) and ``seed``.

    ``analysis.schema`` describes the variables with their dimensions and units.
    """
    return measurements(open_folder(path))


def measurements(study: Study) -> xr.Dataset:
    """Everything that was measured in a study; see :func:`open_study`."""
    stores = {run: study.run(*run) / store.NAME for run in study.runs}
    runs = {run: store.open_run(path) for run, path in stores.items() if path.exists()}
    if not runs:
        raise UserError(f"nothing is measured yet in {study.path}; run 'hessian-tools measure {study.path}' first")
    ds = describe_learners(
        stack_runs(runs, list(study.learners)),
        trained={name: learner.settings.trained for name, learner in study.learners.items()},
        without_shot=study.without_shot,
        untrained_start=study.untrained_start,
        no_alpha={name: learner.learner.why_no_alpha for name, learner in study.learners.items()},
    )
    ds.attrs = {"study": study.config.name, "split": "test"}  # the attributes that all runs have in common
    if study.config.data.source != "sine-line":
        ds.attrs["ways"] = study.config.data.ways
    return ds.sortby("checkpoint")[[variable.name for variable in VARIABLES]]  # zarr has no fixed order


def open_verdicts(path: str | Path) -> list[Verdict]:
    """The verdicts on the claims, which the command ``test`` drew from a study's measurements."""
    file = open_folder(path).path / VERDICTS
    if not file.exists():
        raise UserError(f"{file} does not exist yet; run 'hessian-tools test {file.parent}' first")
    try:
        return verdicts_from_json(_text(file))
    except (KeyError, TypeError, ValueError):
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
    """The names of those parts, "verdicts" and "figures", that were made from other measurements than the present ones.

    A part that does not exist is not named.
    """
    parts = {
        "verdicts": ((study.path / VERDICTS).exists(), study.path / VERDICTS),
        "figures": (any(study.figures.glob("*.png")), study.figures / DRAWN),
    }
    present = content_digest(ds)
    # DRAWN is written after the last figure, so figures without it come from a drawing that was cut short.
    records = {part: read_json(record) if record.exists() else {} for part, (_, record) in parts.items()}
    return [part for part, (exists, _) in parts.items() if exists and records[part].get("measurements") != present]


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


def _refuse_another(study: Study, begun: StudyConfig) -> None:
    """Raise UserError unless the study is the one that was begun, perhaps with more seeds or learners."""
    old, new = begun.model_dump(mode="json"), study.config.model_dump(mode="json")
    for key in old:
        same = old[key] == new[key]
        if key == "seeds":
            same = set(old[key]) <= set(new[key])
        if key == "learners":
            same = all(new[key].get(name) == learner for name, learner in old[key].items())
        if not same:
            raise UserError(
                f"{study.path} holds another study: its {key} is {_short(old[key])}, yours {_short(new[key])};"
                " choose another --out (only seeds and learners may be added)"
            )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 70 else text[:67] + "..."


def _text(path: Path) -> str:
    """The text of a file of the folder; raises UserError where it is damaged."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged: it is not a text in UTF-8; put it back, or begin another study") from None
