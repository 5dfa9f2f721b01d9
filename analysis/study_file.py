"""Reads a study from YAML into a checked configuration; the message on a mistake has at most two lines."""

from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from analysis.config import DataConfig, StudyConfig
from analysis.config.base import settings_of
from analysis.errors import UserError

STUDIES = resources.files("analysis") / "studies"
BUNDLED = tuple(sorted(file.name.removesuffix(".yaml") for file in STUDIES.iterdir() if file.name.endswith(".yaml")))
UNION_PARTS = (
    "constrained-float",
    "float",
    "StepSizeSearch",
)  # names that pydantic adds to the place of a mistake in a union


class _UniqueKeyLoader(yaml.SafeLoader):
    """A YAML loader that refuses a key that stands twice, where the default one would silently keep the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep=deep)


def load_study(source: str | Path) -> StudyConfig:
    """The configuration in a YAML file, or a bundled one by its name in ``BUNDLED``."""
    return parse_study(study_text(source), source=str(source))


def study_text(source: str | Path) -> str:
    """The YAML text of a file or of a bundled study."""
    if str(source) in BUNDLED:
        return (STUDIES / f"{source}.yaml").read_text(encoding="utf-8")
    path = Path(source)
    if not path.is_file():
        raise UserError(f"there is no study file {path}; give a YAML file or one of the bundled: {', '.join(BUNDLED)}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file; a study is YAML in UTF-8") from None


def parse_study(text: str, *, source: str) -> StudyConfig:
    """The configuration in a YAML text; UserError names the first mistake, its place and what is allowed there."""
    try:
        settings = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark else ""
        raise UserError(f"{source} is not YAML{place}: {getattr(e, 'problem', None) or 'cannot be parsed'}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{source} holds no settings; a study is a YAML mapping with name, learners, seeds, ...")
    return study_of(settings, source=source)


def study_of(settings: Mapping[str, Any], *, source: str | None = None) -> StudyConfig:
    """The configuration in nested mappings; UserError names the first mistake after the ``source``, if one is given."""
    try:
        return StudyConfig.model_validate(settings)
    except ValidationError as e:
        raise UserError(f"{source}: {_first_mistake(e)}" if source else _first_mistake(e)) from None


def with_data(config: StudyConfig, path: str | None) -> StudyConfig:
    """The study with its data replaced by those at ``path``; None leaves the study as it is.

    The path is made absolute, because a study may be resumed from another working folder.
    """
    if path is None:
        return config
    bundled = get_args(DataConfig.model_fields["name"].annotation)
    given = Path(path).expanduser()
    source = path if path in bundled and not given.exists() else str(given.resolve())
    return overridden(config, {"data": config.data.model_dump(mode="json") | {"path": source}})


def overridden(config: StudyConfig, changes: Mapping[str, Any]) -> StudyConfig:
    """The study with some top-level settings replaced by ``changes``, where None leaves a setting as it is."""
    given = {key: value for key, value in changes.items() if value is not None}
    return study_of(config.model_dump(mode="json") | given) if given else config


def _first_mistake(error: ValidationError) -> str:
    """The place of the first mistake in the settings, what is wrong there, and what was given or is allowed."""
    # An unknown key is likelier to be the cause than a value that then seems missing or odd.
    mistake = min(error.errors(), key=lambda mistake: mistake["type"] != "extra_forbidden")
    place = ".".join(str(part) for part in mistake["loc"] if part not in UNION_PARTS)
    if mistake["type"] == "extra_forbidden":
        allowed = _allowed_keys(mistake["loc"][:-1])
        near = get_close_matches(str(mistake["loc"][-1]), allowed, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"allowed are {', '.join(allowed)}"
        return f"unknown key {place!r}; {hint}"
    if mistake["type"] == "value_error":
        return f"{place + ': ' if place else ''}{mistake['msg'].removeprefix('Value error, ')}"
    got = "" if mistake["type"] == "missing" else f" (got {mistake['input']!r})"
    return f"{place}: {mistake['msg'][:1].lower()}{mistake['msg'][1:]}{got}"


def _allowed_keys(path: Iterable[Any]) -> list[str]:
    """The keys allowed at a place, given as a path of keys.

    Parts of the path that are not fields are skipped: they are names of learners, or of the alternatives of a union.
    """
    model: type[BaseModel] = StudyConfig
    for part in path:
        if part in model.model_fields:
            inner = _model_in(model.model_fields[part].annotation)
            if inner is None:
                return []
            model = inner
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The first model in an annotation, such as the ``Model`` of ``Model | None``; None if there is none."""
    if is_dataclass(annotation) and isinstance(annotation, type):
        return settings_of(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for model in map(_model_in, get_args(annotation)) if model), None)
