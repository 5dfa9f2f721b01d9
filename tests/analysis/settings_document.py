"""Writes docs/settings.md, the table of every key of a study's YAML, from the models that read the YAML.

Run ``python tests/analysis/settings_document.py`` after a change of a setting or of its description. Keys, types and
defaults are those of the models, and the meanings are those of their docstrings.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from analysis.config import LEARNER_SETTINGS, DataConfig, LearnerConfig, StudyConfig
from analysis.config.base import LARGEST, LARGEST_INTEGER, SMALLEST, OneOf, settings_of
from analysis.config.learner import LatentConfig, RuleConfig
from analysis.config.study import TrainSettings
from hessian_tools.data import open_data
from hessian_tools.inner.learners import ALGORITHMS, Latent, Learner
from hessian_tools.inner.steps import Preconditioned
from hessian_tools.train import TrainConfig

DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"
INTRODUCTION = """# Every setting of a study

A study is a YAML file, and this table has every key that it may hold. A dot stands for a nested key, so
`measure.full.probes` is

```yaml
measure: {full: {probes: 20}}
```

`NAME` stands for a name of your own. Keys that must be given have no default, and all others may be left out; where a
mapping is given in part, the rest of it takes the defaults of its keys. A key that is not in this table is refused by
name. `hessian-tools new NAME` writes a commented study to start from, and `hessian-tools study FILE --dry-run` checks
one and says what it would take.

What costs time: training takes longer with the last number of `train.checkpoints`, with `train.meta_batch`, with
`inner.steps`, and with each learner and seed. Measuring takes longer with `measure.tasks`, with `max_matvecs` and
`probes` of both levels, and with the number of checkpoints. `measure.evaluation_tasks` and `train.validation_tasks`
are cheap.

"""
HEADER = "| key | type | default | allowed | meaning |\n|---|---|---|---|---|\n"
# Where the meaning of a setting stands if its own model does not describe it.
DESCRIBED_IN: Mapping[type, tuple[Any, ...]] = {
    DataConfig: (open_data,),
    LearnerConfig: (Learner, TrainConfig),
    LatentConfig: (Latent,),
    RuleConfig: (Preconditioned,),
    TrainSettings: (TrainConfig,),
}
KINDS = {bool: "true or false", int: "whole number", float: "number", str: "text"}


def document() -> str:
    """The text of the page."""
    return INTRODUCTION + HEADER + "".join(f"{row}\n" for row in rows(StudyConfig))


def rows(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """The rows of a model's settings, each followed by those of the settings below it.

    above: the keys above the model, with a dot after each.
    """
    for name, field in model.model_fields.items():
        key = f"{above}{name}"
        if get_origin(field.annotation) is dict and _below(field.annotation):
            key += ".NAME"
        below = _below(field.annotation)
        cells = (
            f"`{key}`",
            _kind(field.annotation),
            _default(field, below),
            _allowed(model, name, field),
            _meaning(model, name),
        )
        # A bar would end a cell. ``chr(92)`` is a backslash, which an f-string cannot hold before Python 3.12.
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
        if below is not None:
            yield from rows(below, f"{key}.")


def _below(annotation: Any) -> type[BaseModel] | None:
    """The model of the settings below a setting, if it has any."""
    if isinstance(annotation, type):
        if issubclass(annotation, BaseModel):
            return annotation
        return settings_of(annotation) if is_dataclass(annotation) else None
    return next((model for part in get_args(annotation) if (model := _below(part)) is not None), None)


def _kind(annotation: Any) -> str:
    """The type of a setting in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation in KINDS:
        return KINDS[annotation]
    if origin is Annotated:
        return _kind(parts[0])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_kind(part) for part in parts if part is not type(None)))
    if origin is Literal:
        return _kind(type(parts[0]))
    if origin is tuple:
        return f"list of {_kind(parts[0])}s"
    return "mapping"


def _default(field: FieldInfo, below: type[BaseModel] | None) -> str:
    """The default of a setting; "as below" where it has the defaults of the settings below it."""
    if field.is_required():
        return "must be given"
    if field.default is None:
        return "none"
    if isinstance(field.default, BaseModel) or is_dataclass(field.default):
        assert below is not None
        given = field.default.model_dump(mode="json") if isinstance(field.default, BaseModel) else asdict(field.default)
        usual = {name: setting.default for name, setting in below.model_fields.items()}
        return "as below" if given == below(**usual).model_dump(mode="json") else _yaml(given)
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return _yaml(value)


def _yaml(value: Any) -> str:
    """A value as YAML writes it on one line; yaml ends a plain number or text with "..."."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000).removesuffix("...\n").strip()
    return f"`{text}`"


def _allowed(model: type, name: str, field: FieldInfo) -> str:
    """The values that are allowed, and the algorithms that have the setting if not all of them do."""
    parts = list(dict.fromkeys(_limits([*field.metadata, field.annotation])))
    if model is LearnerConfig and len(algorithms := LEARNER_SETTINGS.get(name, tuple(ALGORITHMS))) < len(ALGORITHMS):
        parts.append(f"only of {', '.join(algorithms)}")
    return "; ".join(parts)


def _limits(annotations: list[Any]) -> Iterator[str]:
    """Each limit on a setting in words, from the annotations of its type."""
    for annotation in annotations:
        if isinstance(annotation, FieldInfo):
            yield from _limits(annotation.metadata)
        elif isinstance(annotation, OneOf):
            yield ", ".join(f"`{name}`" for name in annotation.names)
        elif isinstance(annotation, Gt):
            yield "1 or more" if annotation.gt == 0 else f"above {annotation.gt}"
        elif isinstance(annotation, Ge) and annotation.ge not in (-LARGEST, -LARGEST_INTEGER):
            yield "above 0" if annotation.ge == SMALLEST else f"{annotation.ge} or more"
        elif isinstance(annotation, Le) and annotation.le not in (LARGEST, LARGEST_INTEGER):
            yield f"at most {annotation.le}"
        elif isinstance(annotation, Lt):
            yield f"below {annotation.lt}"
        elif isinstance(annotation, MinLen):
            yield f"{annotation.min_length} or more of them"
        elif get_origin(annotation) is Literal:
            yield ", ".join(f"`{value}`" for value in get_args(annotation))
        elif get_origin(annotation) in (Annotated, Union, UnionType, tuple):
            yield from _limits(list(get_args(annotation)))


def _meaning(model: type, name: str) -> str:
    """What a setting means, by the docstring of its model or of the part of the library that takes the setting.

    Raises LookupError for a setting that is described nowhere.
    """
    for source in (model, *DESCRIBED_IN.get(model, ())):
        if (text := meanings(source).get(name)) is not None:
            return re.sub(r"docs/(\w+\.md)", r"[\1](\1)", text)
    raise LookupError(
        f"no docstring says what {model.__name__}.{name} means; add a line '{name}: ...' to that of its model"
    )


def meanings(source: Any) -> dict[str, str]:
    """What a docstring says of each name: the text from "name: " or "name, other: " to the next one."""
    found: dict[str, str] = {}
    for paragraph in re.split(r"\n\s*\n", source.__doc__ or ""):
        lines = " ".join(line.strip() for line in paragraph.strip().splitlines())
        starts = [*re.finditer(r"(?:^|(?<=[.;] ))([a-z0-9_]+(?:, [a-z0-9_]+)*): ", lines)]
        ends = [match.start() for match in starts[1:]] + [len(lines)]
        for start, end in zip(starts, ends, strict=False):
            text = lines[start.end() : end].strip().replace("``", "`")
            for name in start.group(1).split(", "):
                found.setdefault(name, text[:1].upper() + text[1:])
    return found


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
