"""A study's folder: where everything in it lies, which study it belongs to, and who may write in it."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
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
from hessian_tools.runs.files import read_json, write_text

STUDY, CLAIMS, VERDICTS, REPORT = "study.yaml", "claims.yaml", "verdicts.json", "report.html"
STEP_SIZE, DRAWN = "step_size.json", "drawn.json"


def open_folder(path: str | Path, *, device: str = "cpu") -> Study:
    """The study that was begun in a folder, with the step size that its search has chosen, if there was one."""
    path = Path(path)
    if not (path / STUDY).is_file():
        what = "is no study folder" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}: there is no {STUDY} in it; 'hessian-tools demo' makes one")
    return in_folder(parse_study(_text(path / STUDY), source=str(path / STUDY)), path, device=device)


def in_folder(config: StudyConfig, path: Path, *, device: str = "cpu") -> Study:
    """The study of a configuration in a folder, where its step size may have been chosen before."""
    chosen = read_json(path / STEP_SIZE)["step_size"] if (path / STEP_SIZE).exists() else None
    return build(config, path, device=device, step_size=chosen)


def refuse_occupied(study: Study) -> None:
    """Refuse a folder that is neither empty nor holds the same study, begun before; nothing is written."""
    path = study.path
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; --out names a folder")
    if (path / STUDY).exists():
        _refuse_another(study, open_folder(path).config)
    elif path.exists() and any(p for p in path.iterdir() if not p.name.startswith(".")):
        raise UserError(f"{path} is not empty and holds no {STUDY}; choose another --out")


def begin(study: Study, *, claims: str | None = None) -> None:
    """Write the files that a study's folder starts with, and remove what a killed process left; the lock is held.

    claims: the text of a checked plan, or None for the bundled one. A folder keeps the plan it was begun with.
    """
    place = study.path / CLAIMS
    kept = _text(place) if place.exists() else claims
    if claims not in (None, kept):
        raise UserError(
            f"{study.path} was begun with another plan of the claims, and a plan is fixed before the data;"
            " leave --claims out, or choose another --out"
        )
    store.sweep(study.path)
    # study.yaml comes first, because a folder without it counts as somebody else's.
    write_text(study.path / STUDY, yaml.safe_dump(study.config.model_dump(mode="json"), sort_keys=False))
    write_text(place, kept or PLAN.read_text(encoding="utf-8"))


def open_study(path: str | Path) -> xr.Dataset:
    """Everything that was measured in a study: its runs stacked over ``learner`` (names) and ``seed``.

    Names, dimensions and units of the variables stand in ``analysis.schema``.
    """
    return measurements(open_folder(path))


def measurements(study: Study) -> xr.Dataset:
    """Everything that was measured in a study; see :func:`open_study`."""
    stores = {run: study.run(*run) / store.NAME for run in study.runs}
    runs = {run: store.open_run(place) for run, place in stores.items() if place.exists()}
    if not runs:
        raise UserError(f"nothing is measured yet in {study.path}; run 'hessian-tools measure {study.path}' first")
    ds = describe_learners(
        stack_runs(runs, list(study.learners)),
        trained={name: one.settings.trained for name, one in study.learners.items()},
        without_shot=study.without_shot,
        untrained_start=study.untrained_start,
        no_alpha={name: one.learner.why_no_alpha for name, one in study.learners.items()},
    )
    ds.attrs = {"study": study.config.name, "split": "test"}  # the attributes that all runs share
    if study.config.data.source != "sine-line":
        ds.attrs["ways"] = study.config.data.ways
    return ds.sortby("checkpoint")[[variable.name for variable in VARIABLES]]  # zarr lists them in no fixed order


def open_verdicts(path: str | Path) -> list[Verdict]:
    """The verdicts that were drawn from a study's measurements."""
    place = open_folder(path).path / VERDICTS
    if not place.exists():
        raise UserError(f"{place} does not exist yet; run 'hessian-tools test {place.parent}' first")
    try:
        return verdicts_from_json(_text(place))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{place} is damaged; run 'hessian-tools test {place.parent}' to make it again") from None


def plan_of(study: Study) -> Plan:
    """The plan of the claims with which the study was begun."""
    place = study.path / CLAIMS
    if not place.exists():
        raise UserError(f"{place} is gone; put it back, or begin another study")
    _text(place)
    return load_plan(place)


def content_digest(ds: xr.Dataset) -> str:
    """SHA-256 of every number of a study: verdicts and figures name by it the measurements on which they rest."""
    content, coded = hashlib.sha256(), with_codes(ds)
    for name in sorted(map(str, coded.variables)):
        content.update(name.encode() + np.ascontiguousarray(coded[name].values).tobytes())
    return content.hexdigest()


def stale(study: Study, ds: xr.Dataset) -> list[str]:
    """Which of "verdicts" and "figures" exist but rest on other measurements than the present ones."""
    parts = {
        "verdicts": ((study.path / VERDICTS).exists(), study.path / VERDICTS),
        "figures": (any(study.figures.glob("*.png")), study.figures / DRAWN),
    }
    now = content_digest(ds)
    # Figures whose note is missing come from a drawing that was cut short.
    notes = {part: read_json(note) if note.exists() else {} for part, (_, note) in parts.items()}
    return [part for part, (made, _) in parts.items() if made and notes[part].get("measurements") != now]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Make the folder and keep every other command out of it; the lock ends with the process, however that ends."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"the folder {path} cannot be made ({e.strerror}); choose another --out") from None
    try:
        import fcntl
    except ImportError:  # Windows has no such locks; there it is up to the user
        yield
        return
    with (path / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"another hessian-tools is at work in {path}; wait for it, or choose another --out"
            ) from None
        os.set_inheritable(file.fileno(), False)
        yield


def _refuse_another(study: Study, begun: StudyConfig) -> None:
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
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged: it is not a text in UTF-8; put it back or begin another study") from None
