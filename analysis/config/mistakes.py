"""Turns the errors of pydantic about a user's settings into one sentence: what is wrong, where, and what is allowed."""

import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel, ValidationError

from analysis.config.base import NAME
from hessian_tools.validation import did_you_mean

# Names of a union's alternatives, which pydantic inserts into the path of a mistake and which a user would not know.
UNION_PARTS = ("constrained-float", "float", "StepSizeSearch")
# pydantic ends the path of a mistake with this part where the key of a mapping is wrong, and not its value.
WRONG_KEY = ".[key]"
# pydantic's types of the error "unknown key", for a model and for a dataclass.
UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")


def first_mistake(error: ValidationError, model: type) -> str:
    """The place of the first mistake in the settings of ``model``, what is wrong there, and what is allowed."""
    # Errors about unknown keys come first (False sorts before True), because an unknown key is likelier to be the cause
    # than a value that then seems missing or odd.
    mistake = min(error.errors(), key=lambda mistake: mistake["type"] not in UNKNOWN_KEY)
    place = _short(".".join(str(part) for part in mistake["loc"] if part not in UNION_PARTS))
    if mistake["type"] in UNKNOWN_KEY:
        allowed = _allowed_keys(mistake["loc"][:-1], model)
        near = get_close_matches(str(mistake["loc"][-1]), allowed, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"allowed are {', '.join(allowed)}"
        return f"unknown key {place!r}; {hint}"
    if mistake["type"] == "value_error":
        return f"{place + ': ' if place else ''}{mistake['msg'].removeprefix('Value error, ')}"
    if mistake.get("ctx", {}).get("pattern") == NAME:
        rule = "a name has letters, digits, '.', '_' and '-', and begins with a letter or a digit"
        return f"{place.removesuffix(WRONG_KEY)}: {rule} (got {_short(repr(mistake['input']))})"
    got = "" if mistake["type"] == "missing" else f" (got {_short(repr(mistake['input']))})"
    if mistake["type"] in ("tuple_type", "list_type"):
        return f"{place}: give a list in brackets, such as [{_short(str(mistake['input']))}]{got}"
    if mistake["type"] == "too_short":
        return f"{place}: give a list of at least {mistake['ctx']['min_length']}{got}"
    hint = ""
    if mistake["type"] == "literal_error":
        # pydantic's text of what it expected holds the allowed values in quotes.
        hint = did_you_mean(str(mistake["input"]), re.findall(r"'([^']+)'", mistake["ctx"]["expected"]))
    return f"{place}: {mistake['msg'][:1].lower()}{mistake['msg'][1:]}{got}{hint}"


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:197]}..."


def _allowed_keys(path: Iterable[Any], model: type) -> list[str]:
    """The keys allowed at a place in ``model``, given as a path of keys.

    Parts of the path that are not fields are skipped: they are names of learners, or of the alternatives of a union.
    """
    for part in path:
        annotations = get_type_hints(model)
        if part in annotations:
            inner = _model_in(annotations[part])
            if inner is None:
                return []
            model = inner
    return list(getattr(model, "model_fields", None) or [field.name for field in fields(model)])


def _model_in(annotation: Any) -> type | None:
    """The first model in an annotation, such as the ``Model`` of ``Model | None``; None if there is none."""
    if isinstance(annotation, type) and (is_dataclass(annotation) or issubclass(annotation, BaseModel)):
        return annotation
    return next((model for model in map(_model_in, get_args(annotation)) if model), None)
