"""Configurations: typed, validated, and printed as they will be run.

A configuration is a frozen dataclass whose fields each carry a docstring. It is read from YAML, may
build on another file (``defaults: other.yaml``), and takes overrides as ``--a.b=c``. An unknown key
or a value of the wrong type is an error that names the file, the key and the nearest valid name.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, dataclass_transform

import pydantic
import yaml
from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass as _pydantic_dataclass

from wholegrain.errors import ConfigError

T = TypeVar("T")
_MAX_DEPTH = 5  # of `defaults:` chains
# Strict: `true` is no number and "8" is no integer, where a lenient reading would train with them.
_RULES = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, strict=True)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which ``1e-4`` is a number, as it is in YAML 1.2 and in everyone's mind."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


@dataclass_transform(frozen_default=True)
def config(cls: type[T]) -> type[T]:
    """Makes a class a configuration: a frozen, validated dataclass that refuses unknown keys."""
    return cast(type[T], _pydantic_dataclass(config=_RULES, frozen=True)(cls))


def load_config(cls: type[T], path: Path | str, overrides: Sequence[str] = ()) -> T:
    """Reads a YAML file and applies overrides.

    Args:
        cls: the configuration class.
        path: the file; its ``defaults`` key names a file (relative to it) that it builds on.
        overrides: ``--a.b=c`` or ``a.b=c``; the value is parsed as YAML. A number in the key
            names an element of a list that the file holds: ``--data.train.0.path=x``.

    Raises:
        ConfigError: names file, key, value and remedy.
    """
    values = _read(Path(path))
    for override in overrides:
        values = _merge(values, _parse_override(override), f"{path}: {override}")
    return from_dict(cls, values, where=str(path))


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """Validates plain values into a configuration.

    Raises:
        ConfigError: one line for each thing that is wrong.
    """
    try:
        # As JSON, because strict rules then still take a list for a tuple and a string for a path.
        text = json.dumps(values, default=str)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: holds what JSON cannot ({error}); use plain values") from None
    try:
        return TypeAdapter(cls).validate_json(text)
    except ConfigError as error:  # a class's own check, which knows no file
        raise ConfigError(f"{where}: {error}") from None
    except pydantic.ValidationError as error:
        lines = [_explain(cls, detail) for detail in error.errors()]
        raise ConfigError(f"{where}: " + "\n  ".join(dict.fromkeys(lines))) from None


def to_dict(value: Any) -> dict[str, Any]:
    """Plain, JSON-able values of a configuration."""
    plain: dict[str, Any] = TypeAdapter(type(value)).dump_python(value, mode="json")
    return plain


def dump_config(value: Any) -> str:
    """The configuration as YAML, every field shown; `load_config` reads it back."""
    return yaml.safe_dump(to_dict(value), sort_keys=False, allow_unicode=True, width=100)


def _read(path: Path, depth: int = 0) -> dict[str, Any]:
    if depth > _MAX_DEPTH:
        raise ConfigError(f"{path}: `defaults` files form a chain of over {_MAX_DEPTH}; shorten it")
    try:
        values = _parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check --config") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({error})") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds a {type(values).__name__}; write `key: value` lines")
    base = values.pop("defaults", None)
    if base is None:
        return values
    return _merge(_read(path.parent / str(base), depth + 1), values, str(path))


def _parse(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # noqa: S506  _Loader is a SafeLoader


def _merge(base: Mapping[str, Any], over: Mapping[str, Any], where: str) -> dict[str, Any]:
    return {**base, **{key: _over(base.get(key), value, where) for key, value in over.items()}}


def _over(below: Any, value: Any, where: str) -> Any:
    """`value` laid over `below`: mappings key by key, elements of lists by their number."""
    if not isinstance(value, Mapping):
        return value
    if isinstance(below, Mapping):
        # Another `kind` is another class: fields of the old one must not leak into it.
        kinds = {each["kind"] for each in (below, value) if isinstance(each.get("kind"), str)}
        return _merge(below, value, where) if len(kinds) < 2 else value
    if isinstance(below, list) and value and all(str(key).isdecimal() for key in value):
        elements = list(below)
        for key, element in value.items():
            index = int(key)
            if index >= len(elements):
                raise ConfigError(
                    f"{where}: there is no element {index} in a list of {len(elements)}; "
                    "the first is 0"
                )
            elements[index] = _over(elements[index], element, where)
        return elements
    return value


def _parse_override(override: str) -> dict[str, Any]:
    key, separator, text = override.removeprefix("--").partition("=")
    if not separator or not key:
        raise ConfigError(f"override {override!r} is not of the form --section.key=value")
    try:
        value: Any = _parse(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"override {override!r}: the value is not valid YAML ({error})"
        ) from error
    *outer, last = key.split(".")
    nested: dict[str, Any] = {last: value}
    for part in reversed(outer):
        nested = {part: nested}
    return nested


def _explain(cls: type, detail: Any) -> str:
    location = [str(part) for part in detail["loc"]]
    steps = list(_walk(cls, location))
    # A tagged union puts its tag into the path; the user's file has no such level.
    key = ".".join(part for part, _, is_tag in steps if not is_tag) or "(top level)"
    if detail["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        names = sorted({name for candidate in steps[-1][1] for name in _fields(candidate)})
        near = difflib.get_close_matches(location[-1], names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(names)}"
        return f"unknown key {key!r}; {hint}"
    if detail["type"] in {"missing", "missing_argument"}:
        return f"{key!r} is missing; add it"
    if detail["type"] == "union_tag_not_found":
        return f"{key!r} does not say which kind it is; add `{key}.kind`"
    return f"{key!r} is {detail['input']!r}: {detail['msg']}"


def _walk(cls: type, path: Sequence[str]) -> Iterator[tuple[str, list[Any], bool]]:
    """Each part of a path, the classes that it is looked up in, and whether it is a union's tag."""
    candidates: list[Any] = [cls]
    for part in path:
        tagged = [each for each in candidates if _default(each, "kind") == part]
        is_tag = len(candidates) > 1 and bool(tagged)
        yield part, candidates, is_tag
        if is_tag:
            candidates = tagged
            continue
        kinds = [fields[part] for fields in map(_fields, candidates) if part in fields]
        below = [found for kind in kinds for found in _dataclasses_in(kind)]
        # A list's index stays within the classes of its elements.
        candidates = below or candidates


def _fields(cls: Any) -> dict[str, Any]:
    found = getattr(cls, "__pydantic_fields__", {})
    return {name: info.annotation for name, info in found.items()}


def _default(cls: Any, name: str) -> Any:
    return next((f.default for f in dataclasses.fields(cls) if f.name == name), None)


def _dataclasses_in(kind: Any) -> list[Any]:
    if dataclasses.is_dataclass(kind):
        return [kind]
    return [found for part in getattr(kind, "__args__", ()) for found in _dataclasses_in(part)]
