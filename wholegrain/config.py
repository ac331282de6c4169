"""Configurations: typed, validated, and printed as they will be run.

A configuration is a frozen dataclass whose fields each carry a docstring. It is read from YAML, may
build on another file (``defaults: other.yaml``), and takes overrides as ``--a.b=c``. An unknown key
or a value of the wrong type is an error that names the file, the key and the nearest valid name.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import pydantic
import yaml
from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass as _pydantic_dataclass

from wholegrain.errors import ConfigError

T = TypeVar("T")
_MAX_DEPTH = 5  # of `defaults:` chains
_RULES = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


@dataclass_transform(frozen_default=True)
def config(cls: type[T]) -> type[T]:
    """Makes a class a configuration: a frozen, validated dataclass that refuses unknown keys."""
    return _pydantic_dataclass(config=_RULES, frozen=True)(cls)  # type: ignore[call-overload, no-any-return]


def load_config(cls: type[T], path: Path | str, overrides: Sequence[str] = ()) -> T:
    """Reads a YAML file and applies overrides.

    Args:
        cls: the configuration class.
        path: the file; its ``defaults`` key names a file (relative to it) that it builds on.
        overrides: ``--a.b=c`` or ``a.b=c``; the value is parsed as YAML.

    Raises:
        ConfigError: names file, key, value and remedy.
    """
    values = _read(Path(path))
    for override in overrides:
        values = _merge(values, _parse_override(override))
    return from_dict(cls, values, where=str(path))


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """Validates plain values into a configuration.

    Raises:
        ConfigError: one line for each thing that is wrong.
    """
    try:
        return TypeAdapter(cls).validate_python(values)
    except pydantic.ValidationError as error:
        lines = [_explain(cls, detail) for detail in error.errors()]
        raise ConfigError(f"{where}: " + "\n  ".join(dict.fromkeys(lines))) from None


def to_dict(value: Any) -> dict[str, Any]:
    """Plain, JSON-able values of a configuration."""
    return TypeAdapter(type(value)).dump_python(value, mode="json")  # type: ignore[no-any-return]


def dump_config(value: Any) -> str:
    """The configuration as YAML, every field shown; `load_config` reads it back."""
    return yaml.safe_dump(to_dict(value), sort_keys=False, allow_unicode=True, width=100)


def _read(path: Path, depth: int = 0) -> dict[str, Any]:
    if depth > _MAX_DEPTH:
        raise ConfigError(f"{path}: `defaults` files form a chain of over {_MAX_DEPTH}; shorten it")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
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
    return _merge(_read(path.parent / str(base), depth + 1), values)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        # Another `kind` is another class: fields of the old one must not leak into it.
        same = isinstance(below, Mapping) and isinstance(value, Mapping)
        if same and value.get("kind", below.get("kind")) == below.get("kind"):
            merged[key] = _merge(below, value)
        else:
            merged[key] = value
    return merged


def _parse_override(override: str) -> dict[str, Any]:
    key, separator, text = override.removeprefix("--").partition("=")
    if not separator or not key:
        raise ConfigError(f"override {override!r} is not of the form --section.key=value")
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"override {override!r}: the value is not valid YAML ({error})"
        ) from error
    for part in reversed(key.split(".")):
        value = {part: value}
    return value  # type: ignore[no-any-return]


def _explain(cls: type, detail: Any) -> str:
    location = [str(part) for part in detail["loc"]]
    key = ".".join(location) or "(top level)"
    if detail["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        names = _names_at(cls, location[:-1])
        near = difflib.get_close_matches(location[-1], names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(names)}"
        return f"unknown key {key!r}; {hint}"
    if detail["type"] in {"missing", "missing_argument"}:
        return f"{key!r} is missing; add it"
    return f"{key!r} is {detail['input']!r}: {detail['msg']}"


def _names_at(cls: Any, path: Sequence[str]) -> list[str]:
    """Field names of the class that a path of keys leads to; follows unions by `kind`."""
    candidates = [cls]
    for part in path:
        below: list[Any] = []
        for candidate in candidates:
            for name, kind in _fields(candidate).items():
                if name == part:
                    below.extend(_dataclasses_in(kind))
        # A tagged union puts its tag into the path; it narrows the candidates, not the depth.
        tagged = [c for c in candidates if _fields_default(c, "kind") == part]
        candidates = below or tagged or candidates
    return sorted({name for candidate in candidates for name in _fields(candidate)})


def _fields(cls: Any) -> dict[str, Any]:
    found = getattr(cls, "__pydantic_fields__", {})
    return {name: info.annotation for name, info in found.items()}


def _fields_default(cls: Any, name: str) -> Any:
    return next((f.default for f in dataclasses.fields(cls) if f.name == name), None)


def _dataclasses_in(kind: Any) -> list[Any]:
    if dataclasses.is_dataclass(kind):
        return [kind]
    return [found for part in getattr(kind, "__args__", ()) for found in _dataclasses_in(part)]
