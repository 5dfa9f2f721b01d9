"""Reads a study from YAML into a checked configuration; a mistake raises UserError with at most two lines."""

import os
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from analysis.config import DataConfig, StudyConfig
from analysis.config.mistakes import first_mistake
from analysis.config.yaml_reader import parse_yaml, read_settings
from analysis.errors import UserError
from hessian_tools.runs.files import write_text
from hessian_tools.validation import did_you_mean

STUDIES = resources.files("analysis") / "studies"
BUNDLED = tuple(sorted(file.name.removesuffix(".yaml") for file in STUDIES.iterdir() if file.name.endswith(".yaml")))


def load_study(source: str | Path) -> StudyConfig:
    """The configuration in a YAML file, or a bundled one by its name in ``BUNDLED``.

    The paths of the user's own files, which count from the folder of the YAML file, are made absolute.
    """
    config = parse_study(study_text(source), source=str(source))
    return with_own_files(config, lambda path: Path(os.path.realpath(Path(source).parent / path)))


def new_study(path: Path) -> Path:
    """Write a commented study to start from, with the name of the file as its name; returns the file.

    path: the file; ".yaml" is added to a name without it.
    Raises UserError for a file that exists, or a name that no study may have.
    """
    path = path if path.suffix in (".yaml", ".yml") else path.with_name(f"{path.name}.yaml")
    text = resources.files("analysis").joinpath("new_study.yaml").read_text(encoding="utf-8")
    text = text.replace("NAME.yaml", path.name).replace("runs/NAME", f"runs/{path.stem}")
    text = text.replace("name: NAME", f"name: {path.stem}")
    parse_study(text, source=f"{path.stem!r}")
    if path.exists():
        raise UserError(f"{path} exists already; choose another name")
    write_text(path, text)
    return path


def study_text(source: str | Path) -> str:
    """The YAML text of a file or of a bundled study."""
    if str(source) in BUNDLED:
        return (STUDIES / f"{source}.yaml").read_text(encoding="utf-8")
    path = Path(source)
    if not path.is_file():
        raise UserError(
            f"there is no study file {path}; give a YAML file or one of the bundled: {', '.join(BUNDLED)}"
            f"{_nearest(path)}"
        )
    try:
        return read_settings(path)
    except ValueError as e:
        raise UserError(f"{path} {e}") from None


def _nearest(path: Path) -> str:
    """The end of an error message that suggests a file beside a path, or a bundled study; empty if none is near."""
    try:
        files = [file for file in path.parent.iterdir() if file.suffix in (".yaml", ".yml")]
    except OSError:
        files = []
    same = [file for file in files if file.stem in (path.name, path.stem)]
    return f"; did you mean '{same[0]}'?" if same else did_you_mean(str(path), [*map(str, files), *BUNDLED])


def parse_study(text: str, *, source: str) -> StudyConfig:
    """The configuration in a YAML text. Raises UserError, which names the first mistake and what is allowed there."""
    try:
        settings = parse_yaml(text)
    except ValueError as e:
        raise UserError(f"{source} {e}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{source} holds no settings; a study is a YAML mapping with name, learners, seeds, ...")
    return study_of(settings, source=source)


def study_of(settings: Mapping[str, Any], *, source: str | None = None) -> StudyConfig:
    """The configuration in nested mappings.

    source: the name of the file or text from which they were read, with which the message of an error begins.
    Raises UserError, which names the first mistake, its place and what is allowed there.
    """
    try:
        return StudyConfig.model_validate(settings)
    except ValidationError as e:
        mistake = first_mistake(e, StudyConfig)
        raise UserError(f"{source}: {mistake}" if source else mistake) from None


def with_data(config: StudyConfig, path: str | None) -> StudyConfig:
    """The study with its data replaced by those at ``path``; None leaves the study as it is.

    The path is made absolute, because a study may be resumed from another working folder.
    """
    if path is None:
        return config
    bundled = get_args(DataConfig.model_fields["name"].annotation)  # the names of the bundled data sets
    if "\0" in path:
        raise UserError(f"data={path!r} holds a NUL character, which no path does; give the folder or file of the data")
    # The functions of os.path are used because Path's would fail on an unknown user, as in ~nobody, and on a link that
    # points to itself. With them, opening the data later reports that there are no data.
    given = Path(os.path.expanduser(path))
    source = path if path in bundled and not given.exists() else os.path.realpath(given)
    return overridden(config, {"data": config.data.model_dump(mode="json") | {"path": source}})


def with_own_files(config: StudyConfig, place: Callable[[Path], Path]) -> StudyConfig:
    """The study with another path for each file of Python code that it names, of its network, quantities or claims.

    place: a function from the path of a file to its other path.
    """

    def placed(target: str) -> str:
        path, _, name = target.rpartition(":")
        return f"{place(Path(os.path.expanduser(path)))}:{name}" if path.endswith(".py") else target

    settings = config.model_dump(mode="json")
    network = settings["network"] | {"name": placed(config.network.name)}
    quantities = [placed(target) for target in config.measure.quantities]
    claims = {name: placed(target) for name, target in config.claims.items()}
    measure = settings["measure"] | {"quantities": quantities}
    return overridden(config, {"network": network, "measure": measure, "claims": claims})


def overridden(config: StudyConfig, changes: Mapping[str, Any]) -> StudyConfig:
    """The study with some top-level settings replaced by ``changes``, where None leaves a setting as it is."""
    given = {key: value for key, value in changes.items() if value is not None}
    return study_of(config.model_dump(mode="json") | given) if given else config
