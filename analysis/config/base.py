"""The building blocks of a configuration: checked numbers, strict models, and fields that hold library dataclasses."""

from collections.abc import Iterable
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    SerializerFunctionWrapHandler,
    create_model,
    model_serializer,
)
from pydantic_core import CoreSchema, core_schema

# Integers and booleans are strict, because pydantic would otherwise accept true as 1 and "3" as 3. The bounds keep
# integers within 64 bits, and other numbers well within the range of float32, so that torch can hold them.
LARGEST_INTEGER, LARGEST, SMALLEST = 2**63 - 1, 1e30, 1e-30
Positive = Annotated[int, Field(gt=0, le=LARGEST_INTEGER, strict=True)]  # 1, 2, 3, ...
Natural = Annotated[int, Field(ge=0, le=LARGEST_INTEGER, strict=True)]  # 0, 1, 2, ...
Flag = Annotated[bool, Field(strict=True)]
Rate = Annotated[float, Field(ge=SMALLEST, le=LARGEST)]  # a positive number, such as a step size or a tolerance
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # names of studies and learners, which become names of folders


class Strict(BaseModel):
    """A model that refuses unknown keys, infinite numbers and NaN, and that cannot be changed once it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)

    # The settings that version 0.1 did not have. At its default, such a setting is not written. A folder that was begun
    # before the setting existed therefore still holds the same settings, and its study can be resumed.
    later_settings: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_later_settings(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        defaults = {name: type(self).model_fields[name].default for name in self.later_settings}
        at_default = {name for name, default in defaults.items() if getattr(self, name) == default}
        return {name: value for name, value in serialise(self).items() if name not in at_default}


class OneOf:
    """Annotates a string field that must be one of the given names, such as the keys of a registry of the library."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.literal_schema(self.names)


class FromLibrary:
    """Annotates a field whose value is a dataclass of the library, written in YAML as a mapping of its fields.

    pydantic checks keys and types, and the dataclass itself checks the values. The configuration therefore does not
    repeat the fields, defaults and checks of the library.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # ``source`` is the annotated dataclass. Its strict model reads the mapping, and the dataclass is made of that.
        return core_schema.no_info_after_validator_function(
            lambda settings: source(**dict(settings)),
            handler(settings_of(source)),
            serialization=core_schema.plain_serializer_function_ser_schema(asdict),
        )


@cache
def settings_of(kind: type) -> type[Strict]:
    """A strict model with the fields, the defaults and the docstring of a dataclass of the library."""
    hints = get_type_hints(kind)
    described: dict[str, Any] = {f.name: (_strict(hints[f.name]), f.default) for f in fields(kind)}
    return create_model(kind.__name__, __base__=Strict, __doc__=kind.__doc__, **described)


def _strict(annotation: Any) -> Any:
    """The annotation of a dataclass's field, made strict: pydantic then converts neither integers nor booleans."""
    if annotation is bool:
        return Flag
    if annotation is int:
        return Annotated[int, Field(ge=-LARGEST_INTEGER, le=LARGEST_INTEGER, strict=True)]
    if annotation is float:
        return Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
    if is_dataclass(annotation):
        return Annotated[annotation, FromLibrary]
    if get_origin(annotation) in (Union, UnionType):
        return Union[tuple(_strict(alternative) for alternative in get_args(annotation))]  # noqa: UP007
    return annotation


def listed(names: Iterable[str]) -> str:
    """Names joined as in a sentence.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
