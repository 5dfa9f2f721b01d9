"""Reads YAML that may come from a stranger: a file of settings is refused before it costs much time or memory.

A value is a mapping, a list, a text, a number, true, false or null. Other kinds of YAML, such as sets, have no meaning
in settings, and a date is read as a text.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from analysis.config.base import LARGEST_INTEGER

MAX_BYTES = 100_000  # some ten times the largest bundled study
MAX_DEPTH = 50  # levels of mappings and lists within each other; a study has six
# Reading so many values takes two seconds. An alias (*name) counts as all values of the node that it repeats.
MAX_VALUES = 20_000

_TAG = "tag:yaml.org,2002:"
_KINDS = {
    "map": "mapping",
    "seq": "list",
    "str": "text",
    "int": "whole number",
    "float": "number",
    "bool": "truth value",
    "null": "null",
}
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")  # no text and no path needs such characters


def read_settings(path: Path) -> str:
    """The text of a file of settings. Raises ValueError where it is too long, or is not a text in UTF-8."""
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"is longer than {MAX_BYTES} bytes, which no file of settings needs")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("is not a text file; settings are YAML in UTF-8") from None


def parse_yaml(text: str) -> Any:
    """The value that a YAML text holds.

    Raises ValueError. Its message begins with a verb, as in "is not YAML at line 3: ...", and the caller puts the name
    of the text before it.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"is longer than {MAX_BYTES} characters, which no file of settings needs")
    try:
        return yaml.load(text, Loader=_SettingsLoader)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark else ""
        raise ValueError(f"is not YAML{place}: {getattr(e, 'problem', None) or 'cannot be parsed'}") from None


class _SettingsLoader(yaml.SafeLoader):
    """A YAML loader with limits, which refuses a mapping that has a key twice.

    PyYAML's own loader would silently keep the last value of such a key.
    """

    # Without YAML's timestamps, 2001-12-14 is a text.
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        # The number of values in each node that has been read to its end. An alias in it counts as all values of the
        # node that it repeats.
        self._num_values: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark = self.peek_event().start_mark
        if self._depth == MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"more than {MAX_DEPTH} levels within each other", mark)
        is_alias = self.check_event(yaml.AliasEvent)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        if is_alias and node not in self._num_values:  # the node that the alias names has not ended yet
            raise yaml.composer.ComposerError(None, None, "a value contains itself through an alias", mark)
        if not is_alias:
            parts: list[yaml.Node] = []
            if isinstance(node, yaml.SequenceNode):
                parts = node.value
            elif isinstance(node, yaml.MappingNode):
                parts = [part for key_and_value in node.value for part in key_and_value]
            self._num_values[node] = 1 + sum(self._num_values[part] for part in parts)
        # The values of a mapping or a list are counted only at its end. One that is still being read is stopped by the
        # number of all nodes so far.
        if max(self._num_values[node], len(self._num_values)) > MAX_VALUES:
            raise yaml.composer.ComposerError(None, None, f"more than {MAX_VALUES} values", mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _mistake("a key must be a text", key)
            if (key.tag, key.value) in seen:
                raise _mistake(f"{_short(key.value)} stands twice", key)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep=deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        kind = _KINDS.get(node.tag.removeprefix(_TAG))
        if kind is None:
            raise _mistake(f"the kind {_short(node.tag)} has no meaning in settings; write a plain value", node)
        expected = {"mapping": yaml.MappingNode, "list": yaml.SequenceNode}.get(kind, yaml.ScalarNode)
        if not isinstance(node, expected):
            raise _mistake(f"the tag says {kind}, but the value is not a {kind}", node)
        try:
            value = super().construct_object(node, deep=deep)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError):  # what the readers of scalars raise
            raise _mistake(f"{_short(node.value)} is no {kind}", node) from None
        if isinstance(value, str) and _UNPRINTABLE.search(value):
            raise _mistake(f"{_short(value)} holds a character that cannot be printed", node)
        if type(value) is int and abs(value) > LARGEST_INTEGER:
            raise _mistake("a whole number must be below 2^63", node)
        return value


def _mistake(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    """The error that reports a problem at the place of a node."""
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _short(value: object) -> str:
    """The beginning of a text in quotes; for a node's value that is a list, the name of its type."""
    text = value if isinstance(value, str) else type(value).__name__
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
