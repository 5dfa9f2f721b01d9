"""From YAML to a checked configuration; every mistake is answered in a line or two."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from analysis.config import DataConfig, StudyConfig
from analysis.errors import UserError

BUNDLED = ("demo", "micro", "quickdraw", "regression", "omniglot", "cifar-fs", "transfer")
UNION_PARTS = ("constrained-float", "float", "StepSizeSearch")  # pydantic's names for the alternatives of a union


class _OnceLoader(yaml.SafeLoader):
    """YAML without its silence about a key that stands twice, of which the last would win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep=deep)


def load_study(source: str | Path) -> StudyConfig:
    """The study of a YAML file, or a bundled one by its name in ``BUNDLED``."""
    return parse_study(study_text(source), source=str(source))


def study_text(source: str | Path) -> str:
    """The YAML text of a file or of a bundled study."""
    if str(source) in BUNDLED:
        return (resources.files("analysis") / "studies" / f"{source}.yaml").read_text(encoding="utf-8")
    path = Path(source)
    if not path.is_file():
        raise UserError(f"there is no study file {path}; give a YAML file or one of the bundled: {', '.join(BUNDLED)}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file; a study is YAML in UTF-8") from None


def parse_study(text: str, *, source: str) -> StudyConfig:
    """A checked configuration; the first mistake is named with its place and what is allowed."""
    try:
        raw = yaml.load(text, Loader=_OnceLoader)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark else ""
        raise UserError(f"{source} is not YAML{place}: {getattr(e, 'problem', None) or 'cannot be parsed'}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{source} holds no settings; a study is a YAML mapping with name, learners, seeds, ...")
    try:
        return StudyConfig.model_validate(raw)
    except ValidationError as e:
        raise UserError(f"{source}: {_first_mistake(e)}") from None


def _first_mistake(error: ValidationError) -> str:
    # An unknown key is likelier to be the cause than a value that then seems missing or odd.
    mistakes = sorted(error.errors(), key=lambda m: m["type"] != "extra_forbidden")
    mistake = mistakes[0]
    place = ".".join(str(part) for part in mistake["loc"] if part not in UNION_PARTS)
    if mistake["type"] == "extra_forbidden":
        known = _known_keys(mistake["loc"][:-1])
        near = get_close_matches(str(mistake["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"allowed are {', '.join(known)}"
        return f"unknown key {place!r}; {hint}"
    if mistake["type"] == "value_error":
        return f"{place + ': ' if place else ''}{mistake['msg'].removeprefix('Value error, ')}"
    got = "" if mistake["type"] == "missing" else f" (got {mistake['input']!r})"
    return f"{place}: {mistake['msg'][:1].lower()}{mistake['msg'][1:]}{got}"


def _known_keys(path: Iterable[Any]) -> list[str]:
    """Keys allowed at a place; parts of the path that are no field are names of learners or alternatives of a union."""
    model: type[BaseModel] = StudyConfig
    for part in path:
        if part in model.model_fields:
            inner = _model_in(model.model_fields[part].annotation)
            if inner is None:
                return []
            model = inner
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for found in map(_model_in, get_args(annotation)) if found), None)


def with_data(config: StudyConfig, path: str | None) -> StudyConfig:
    """The study on other data: what lies at a path, noted in full, for a study may be resumed from elsewhere."""
    if path is None:
        return config
    known = get_args(DataConfig.model_fields["name"].annotation)
    place = Path(path).expanduser()
    found = path if path in known and not place.exists() else str(place.resolve())
    return overridden(config, {"data": config.data.model_dump(mode="json") | {"path": found}})


def overridden(config: StudyConfig, changes: Mapping[str, Any]) -> StudyConfig:
    """The study with top-level settings replaced, checked again."""
    raw = config.model_dump(mode="json") | {k: v for k, v in changes.items() if v is not None}
    try:
        return StudyConfig.model_validate(raw)
    except ValidationError as e:
        raise UserError(_first_mistake(e)) from None
