"""A study's folder: what lies where, whose it is, and who may write in it."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
import yaml

from analysis import store
from analysis.algorithms import untrained_start, why_no_alpha
from analysis.claims import Plan, Verdict, load_plan, verdicts_from_json
from analysis.claims.plan import BUNDLED as PLAN
from analysis.config import StudyConfig, trained, without_shot
from analysis.errors import UserError
from analysis.schema import VARIABLES, describe_learners, stack_runs
from analysis.study_file import parse_study
from hessian_tools.runs.files import read_json, write_text

STUDY, CLAIMS, VERDICTS, REPORT = "study.yaml", "claims.yaml", "verdicts.json", "report.html"
STEP_SIZE, DRAWN = "step_size.json", "drawn.json"


@dataclass(frozen=True)
class StudyFolder:
    """Paths of a study and its configuration."""

    path: Path
    config: StudyConfig

    def run(self, learner: str, seed: int) -> Path:
        """The folder of one learner with one seed."""
        return self.path / "runs" / f"{learner}-seed{seed}"

    @property
    def runs(self) -> list[tuple[str, int]]:
        """Every (learner, seed) of the study."""
        return [(learner, seed) for learner in self.config.learners for seed in self.config.seeds]

    @property
    def figures(self) -> Path:
        """Where figures are drawn."""
        return self.path / "figures"

    @property
    def step_size(self) -> float:
        """The inner learning rate of all learners: given, or as chosen."""
        given = self.config.inner.step_size
        if isinstance(given, float):
            return given
        path = self.path / STEP_SIZE
        if not path.exists():
            raise UserError(f"the inner step size of {self.path} is not chosen yet; run 'hessian-tools train' first")
        return float(read_json(path)["step_size"])


def plan_folder(config: StudyConfig, path: Path) -> StudyFolder:
    """The folder of a new study, or of the same one begun before; only looks, and refuses what it must not touch."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; --out names a folder")
    if (path / STUDY).exists():
        _refuse_another(config, open_folder(path))
    elif path.exists() and any(p for p in path.iterdir() if not p.name.startswith(".")):
        raise UserError(f"{path} is not empty and holds no {STUDY}; choose another --out")
    return StudyFolder(path, config)


def begin(folder: StudyFolder, *, claims: str | None = None) -> None:
    """Write what a study's folder starts with, and sweep what a killed process left; hold the lock.

    claims: the text of a checked plan, the bundled one if None; a folder keeps the one it was begun with.
    """
    place = folder.path / CLAIMS
    kept = _text(place) if place.exists() else claims
    if claims not in (None, kept):
        raise UserError(
            f"{folder.path} was begun with another plan of the claims, and a plan is fixed before the data;"
            " leave --claims out, or choose another --out"
        )
    store.sweep(folder.path)
    # study.yaml first: a folder without it is somebody else's.
    write_text(folder.path / STUDY, yaml.safe_dump(folder.config.model_dump(mode="json"), sort_keys=False))
    write_text(place, kept or PLAN.read_text(encoding="utf-8"))


def open_folder(path: str | Path) -> StudyFolder:
    """A study that exists."""
    path = Path(path)
    if not (path / STUDY).is_file():
        what = "is no study folder" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}: there is no {STUDY} in it; 'hessian-tools demo' makes one")
    return StudyFolder(path, parse_study(_text(path / STUDY), source=str(path / STUDY)))


def open_study(path: str | Path) -> xr.Dataset:
    """Everything measured in a study, all runs over dims learner and seed; see ``analysis.schema``."""
    folder = open_folder(path)
    stores = {run: folder.run(*run) / store.NAME for run in folder.runs}
    runs = {run: store.open_run(place) for run, place in stores.items() if place.exists()}
    if not runs:
        raise UserError(f"nothing is measured yet in {path}; run 'hessian-tools measure {path}' first")
    ds = stack_runs(runs, list(folder.config.learners))
    ds = describe_learners(
        ds,
        trained=trained(folder.config),
        without_shot=without_shot(folder.config),
        untrained_start=untrained_start(folder.config),
        no_alpha={name: why_no_alpha(folder.config, name) for name in folder.config.learners},
    )
    ds.attrs = {"study": folder.config.name, "split": "test"}  # what is the same in every run
    if folder.config.data.source != "sine-line":
        ds.attrs["ways"] = folder.config.data.ways
    return ds.sortby("checkpoint")[[variable.name for variable in VARIABLES]]  # zarr lists them in no fixed order


def plan_of(folder: StudyFolder) -> Plan:
    """The plan the study was begun with."""
    place = folder.path / CLAIMS
    if not place.exists():
        raise UserError(f"{place} is gone; put it back, or begin another study")
    _text(place)
    return load_plan(place)


def content_digest(ds: xr.Dataset) -> str:
    """SHA-256 of every number of a study: what verdicts and figures say they rest on."""
    content = hashlib.sha256()
    for name in sorted(map(str, ds.variables)):
        content.update(name.encode() + np.ascontiguousarray(ds[name].values).tobytes())
    return content.hexdigest()


def stale(folder: StudyFolder, ds: xr.Dataset) -> list[str]:
    """Which of "verdicts" and "figures" were made from other measurements than are there now."""
    made = {"verdicts": (folder.path / VERDICTS).exists(), "figures": any(folder.figures.glob("*.png"))}
    told = {"verdicts": folder.path / VERDICTS, "figures": folder.figures / DRAWN}
    now = content_digest(ds)
    # Figures without a word on what they show are of a drawing that was cut short.
    facts = {part: read_json(path) if path.exists() else {} for part, path in told.items()}
    return [part for part in made if made[part] and facts[part].get("measurements") != now]


def open_verdicts(path: str | Path) -> list[Verdict]:
    """What was concluded from a study's measurements."""
    place = open_folder(path).path / VERDICTS
    if not place.exists():
        raise UserError(f"{place} does not exist yet; run 'hessian-tools test {place.parent}' first")
    try:
        return verdicts_from_json(_text(place))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{place} is damaged; run 'hessian-tools test {place.parent}' to make it again") from None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One writer at a time; the lock goes with the process, however it ends."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"the folder {path} cannot be made ({e.strerror}); choose another --out") from None
    try:
        import fcntl
    except ImportError:  # no such locks on Windows: the user is trusted there
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


def _refuse_another(wanted: StudyConfig, found: StudyFolder) -> None:
    old, new = found.config.model_dump(mode="json"), wanted.model_dump(mode="json")
    for key in old:
        same = old[key] == new[key]
        if key == "seeds":
            same = set(old[key]) <= set(new[key])
        if key == "learners":
            same = all(new[key].get(name) == learner for name, learner in old[key].items())
        if not same:
            raise UserError(
                f"{found.path} holds another study: its {key} is {_short(old[key])}, yours {_short(new[key])};"
                " choose another --out (only seeds and learners may be added)"
            )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 70 else text[:67] + "..."


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged: it is no text in UTF-8; put it back or begin another study") from None
