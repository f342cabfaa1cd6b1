"""Settings, read strictly: YAML files and mappings, and dataclasses that check their fields.

What is not understood is an error that names the field, its value and what is allowed, in YAML as in Python.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import lru_cache
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import yaml
from pydantic import ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic_core import CoreSchema, core_schema

from graphbuild.config.lookup import suggestion
from graphbuild.errors import GraphError

MOST_BYTES = 1 << 20
MOST_VALUES = 100_000
DEEPEST = 50

Share = Annotated[float, Field(ge=0, le=1)]
"""A field with a value of 0..1."""

T = TypeVar("T", bound="Strict")

# ---- files ---------------------------------------------------------------------------------------------------------


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the C one is absent where libyaml was
    """YAML 1.1 as PyYAML reads it, but `1e-4` is a number, and an unquoted date is text: no setting is a date."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@contextmanager
def reading(file: str | os.PathLike[str]) -> Iterator[Any]:
    """What a YAML file says. A ValueError inside, too, is raised as one that names the file.

    Raises:
        GraphError: as `parse_yaml`.
        OSError: the file cannot be read.
    """
    with open(file, "rb") as opened:
        data = opened.read(MOST_BYTES + 1)
    try:
        yield parse_yaml(data)
    except ValueError as error:
        raise GraphError(f"{os.fspath(file)}: {error}") from error


def parse_yaml(data: bytes | str) -> Any:
    """What a YAML document says; None if it is empty.

    Raises:
        ValueError: not YAML, not UTF-8, a key used twice, larger than 1 MiB, nested deeper than 50, or more than
            100,000 values once its aliases are written out.
    """
    if len(data) > MOST_BYTES:
        raise ValueError(f"larger than {MOST_BYTES >> 20} MiB; allowed: a settings file, not data")
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        _check_nodes(yaml.compose(text, Loader=_Loader))
        return yaml.load(text, Loader=_Loader)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}{error.problem or error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"not YAML: {error}") from error


def _check_nodes(root: yaml.Node | None) -> None:
    """Refuse keys used twice, of which PyYAML would keep the last, and aliases that multiply."""
    waiting, seen = [(root, 0)] if root else [], 0
    while waiting:
        node, depth = waiting.pop()
        line, seen = f"line {node.start_mark.line + 1}", seen + 1
        if seen > MOST_VALUES or depth > DEEPEST:
            most = f"{MOST_VALUES:,} values" if seen > MOST_VALUES else f"{DEEPEST} levels"
            raise ValueError(f"{line}: more than {most}, aliases written out; allowed: a settings file, not data")
        children = node.value if isinstance(node, yaml.CollectionNode) else ()
        if isinstance(node, yaml.MappingNode):
            _refuse_repeated_keys(line, node)
            children = [part for pair in node.value for part in pair]
        waiting.extend((child, depth + 1) for child in children)


def _refuse_repeated_keys(line: str, node: yaml.MappingNode) -> None:
    keys = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in keys:
                raise ValueError(f"{line}: key {key.value!r} used twice; allowed: once")
            keys.add(key.value)


# ---- mappings ------------------------------------------------------------------------------------------------------


def mapping(value: object, allowed: Sequence[str] | None, needed: Sequence[str] = ()) -> dict[str, Any]:
    """A mapping with text keys out of `allowed` (None: any), with all of `needed`.

    Raises:
        ValueError: it is something else; the message lists the keys that are allowed.
    """
    choices = "text" if allowed is None else ", ".join(allowed)
    if not isinstance(value, Mapping):
        keys = "" if allowed is None else f" with the keys {choices}"
        raise ValueError(f"{_shown(value)}; allowed: a mapping{keys}")
    for key in value:
        if not isinstance(key, str) or (allowed is not None and key not in allowed):
            hint = suggestion(str(key), allowed or ())
            raise ValueError(f"unknown key {key!r}; allowed: {choices or 'none'}{hint}")
    if missing := [key for key in needed if key not in value]:
        raise ValueError(f"{missing[0]!r} is missing; allowed: {choices}")
    return dict(value)


def build(cls: type[T], document: object) -> T:
    """A `Strict` dataclass from a mapping of its fields, nested ones too; fields left out keep their defaults.

    Raises:
        ValueError: an unknown or missing key, or a value of the wrong type or range.
    """
    told = [f for f in fields(cls) if f.init]
    needed = [f.name for f in told if f.default is MISSING and f.default_factory is MISSING]
    return cls(**mapping(document, [f.name for f in told], needed))


def checked(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a dataclass's fields after their declared types and ranges: lists become tuples, integers floats.

    Raises:
        ValueError: an unknown field, or a value of the wrong type or range; the message names field, value and what is
            allowed.
    """
    adapters = _adapters(cls)
    return {name: _valid(name, value, *adapters[name]) for name, value in mapping(values, tuple(adapters)).items()}


@dataclass(frozen=True, kw_only=True)
class Strict:
    """Base of frozen dataclasses that check their fields when they are made. A nested one may be given as a mapping.

    Raises:
        ValueError: as `checked`.
    """

    def __new__(cls, *_: Any, **values: Any) -> Any:
        try:
            mapping(values, [f.name for f in fields(cls) if f.init])
        except ValueError as error:
            raise ValueError(f"{cls.__name__}: {error}") from None
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, value in checked(type(self), {f.name: getattr(self, f.name) for f in fields(self)}).items():
            object.__setattr__(self, name, value)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            lambda value: value if isinstance(value, cls) else build(cls, value)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "object", "properties": {f.name: {} for f in fields(cls)}}


@lru_cache(maxsize=256)
def _adapters(cls: Any) -> dict[str, tuple[Any, TypeAdapter[Any]]]:
    hints = get_type_hints(cls, include_extras=True)
    config = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
    return {
        f.name: (hint := hints[f.name], TypeAdapter(hint, config=None if is_dataclass(hint) else config))
        for f in fields(cls)
        if f.init
    }


def _valid(name: str, value: Any, hint: Any, adapter: TypeAdapter[Any]) -> Any:
    if isinstance(value, list) and any(get_origin(each) is tuple for each in (hint, *get_args(hint))):
        value = tuple(value)
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError as error:
        ours = [str(found["ctx"]["error"]) for found in error.errors() if found["type"] == "value_error"]
        why = ours[0] if ours else f"{_shown(value)}; allowed: {_allowed(adapter, error)}"
        raise ValueError(f"{name}: {why}") from error


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


# ---- what is allowed, in words -------------------------------------------------------------------------------------


def allowed(cls: type, field: str) -> str:
    """What a field of a dataclass may be, in words: `an integer 1..100`, `code, paper`, `text or none`."""
    return _allowed(_adapters(cls)[field][1], None)


def _allowed(adapter: TypeAdapter[Any], error: ValidationError | None) -> str:
    try:
        return _words(adapter.json_schema())
    except PydanticInvalidForJsonSchema:
        return error.errors()[0]["msg"] if error else "a Python object"


_PLAIN = {"integer": "an integer", "number": "a number", "boolean": "true or false", "string": "text", "null": "null"}


def _words(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_words(each) for each in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(map(str, schema.get("enum", [schema.get("const")])))
    kind = schema.get("type")
    if kind == "array":
        return f"a list, each {_words(schema['items'])}" if schema.get("items") else "a list"
    if kind == "object":
        return f"a mapping with the keys {', '.join(schema['properties'])}" if "properties" in schema else "a mapping"
    return f"{_PLAIN.get(str(kind), 'anything')}{_range(schema)}"


def _range(schema: Mapping[str, Any]) -> str:
    if "minimum" in schema and "maximum" in schema:
        return f" {schema['minimum']:g}..{schema['maximum']:g}"
    signs = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    return " and".join(f" {sign} {schema[key]:g}" for key, sign in signs.items() if key in schema)
