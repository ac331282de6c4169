"""Typed access to the fields of untrusted JSON, each fault a message with its dotted path."""

from __future__ import annotations

import difflib
import json
import re
from typing import Any, NoReturn, TypeGuard

from wholegrain.errors import RecordError

SCHEMA = 1
MAX_RECORD_BYTES = 4 << 20
MAX_ITEMS = 65_535  # the index counts them in 16 bits
MAX_TEXT_CHARS = 16_384  # a page of prose has 3,000; a model reads the first dozens of words
MAX_SIDE_PX = 1 << 20
BOX_TOLERANCE_PX = 1.0
ENCLOSING_TOLERANCE_PX = 2.0  # of a box around several, each of which may have been clipped

# x + w of a box that ends exactly on the tolerance may come out a rounding error beyond it.
_REACH_PX = BOX_TOLERANCE_PX + 1e-6
SURROGATE = re.compile("[\ud800-\udfff]")
_MISSING = object()
_KEY_SHOWN = 120


def load_json(raw: bytes | str, where: str) -> dict[str, Any]:
    """Parses a JSON object of at most ``MAX_RECORD_BYTES``; refuses NaN and infinity."""
    if len(raw) > MAX_RECORD_BYTES:
        remedy = f"a record holds at most {MAX_RECORD_BYTES} bytes; split or drop the sample"
        raise RecordError(where, "size in bytes", len(raw), remedy)
    try:
        value = json.loads(raw, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        # ValueError covers malformed JSON, bad UTF-8, NaN and integers of thousands of digits.
        remedy = f"not readable as JSON: {error}"
        raise RecordError(where, "record", raw[:80], remedy) from None
    if not isinstance(value, dict):
        raise RecordError(where, "record", _shown(value), "must be a JSON object")
    return value


def _shown(value: object) -> object:
    """``value``, or what to call it where Python itself cannot show it."""
    try:
        repr(value)
    except RecursionError:
        return f"a {type(value).__name__} of too many levels"
    return value


def refuse_constant(name: str) -> NoReturn:
    """For ``parse_constant``: NaN and infinity are none of JSON's."""
    raise ValueError(f"{name} is not a number")


class Fields:
    """One JSON object; remembers which keys were asked for, so that unknown ones can be refused."""

    def __init__(self, values: dict[str, Any], where: str, path: str) -> None:
        self._values, self._where, self._path = values, where, path
        self._known: set[str] = set()

    def error(self, key: str, value: object, remedy: str) -> RecordError:
        """A fault of ``key``, with this object's place in the record."""
        # A misspelt key may be of any length; in a message its beginning is enough.
        return RecordError(self._where, self._path + key[:_KEY_SHOWN], _shown(value), remedy)

    def required(self, key: str) -> Any:
        """The raw value of ``key``."""
        value = self._get(key)
        if value is _MISSING:
            raise self.error(key, None, "the field is missing; add it")
        return value

    def text(self, key: str) -> str:
        """A text that is not blank."""
        return self._check_text(key, self.required(key))

    def optional_text(self, key: str) -> str | None:
        """A text, or None where the field is absent or null."""
        value = self._get(key)
        return None if value is _MISSING or value is None else self._check_text(key, value)

    def integer(self, key: str, low: int, high: int) -> int:
        """An integer in ``[low, high]``."""
        return self._check_integer(key, self.required(key), low, high)

    def sequence(self, key: str) -> list[Any] | tuple[Any, ...]:
        """A list; empty where the field is absent."""
        value = self._get(key)
        if value is _MISSING:
            return []
        if not isinstance(value, list | tuple):
            raise self.error(key, value, "must be a list")
        if len(value) > MAX_ITEMS:
            raise self.error(key, len(value), f"a list holds at most {MAX_ITEMS} items")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, none blank."""
        items = self.sequence(key)
        for i, item in enumerate(items):
            if not is_sound(item):
                self._check_text(f"{key}[{i}]", item)
        return tuple(items)

    def integers(self, key: str, low: int, high: int) -> tuple[int, ...]:
        """A list of integers in ``[low, high]``."""
        items = self.sequence(key)
        return tuple(
            self._check_integer(f"{key}[{i}]", item, low, high) for i, item in enumerate(items)
        )

    def objects(self, key: str) -> list[Fields]:
        """A list of objects."""
        return [self._child(f"{key}[{i}]", item) for i, item in enumerate(self.sequence(key))]

    def optional_object(self, key: str) -> Fields | None:
        """An object, or None where the field is absent or null."""
        value = self._get(key)
        return None if value is _MISSING or value is None else self._child(key, value)

    def refuse_unknown(self) -> None:
        """Call last: a misspelt optional field would otherwise be lost without a word."""
        if self._values.keys() <= self._known:
            return
        for key in self._values:
            if key not in self._known:
                close = difflib.get_close_matches(str(key)[:_KEY_SHOWN], self._known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else "remove it"
                raise self.error(str(key), self._values[key], f"no such field; {hint}")

    def _get(self, key: str) -> Any:
        self._known.add(key)
        return self._values.get(key, _MISSING)

    def _child(self, key: str, value: object) -> Fields:
        if not isinstance(value, dict):
            raise self.error(key, value, "must be an object")
        return Fields(value, self._where, f"{self._path}{key}.")

    def _check_text(self, key: str, value: object) -> str:
        if is_sound(value):
            return value
        if not isinstance(value, str):
            raise self.error(key, value, "must be a text")
        if not value or value.isspace():
            raise self.error(key, value, "must not be blank; leave it out")
        if len(value) > MAX_TEXT_CHARS:
            remedy = (
                f"has {len(value)} characters, above {MAX_TEXT_CHARS}; shorten it or leave it out"
            )
            raise self.error(key, value, remedy)
        raise self.error(key, value, "holds half a surrogate pair; mend the encoding")

    def _check_integer(self, key: str, value: object, low: int, high: int) -> int:
        # bool is an int to Python, but `"width": true` is a mistake.
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(key, value, "must be an integer")
        if not low <= value <= high:
            raise self.error(key, value, f"must be between {low} and {high}")
        return value


def is_sound(value: object) -> TypeGuard[str]:
    """Whether a record may hold ``value`` as a text."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= MAX_TEXT_CHARS
        and not value.isspace()
        and (value.isascii() or SURROGATE.search(value) is None)
    )


def parse_box(
    value: object, width: int, height: int, fields: Fields, key: str
) -> tuple[float, float, float, float]:
    """Checks an xywh pixel box against the image and clips what the tolerance allows.

    A box that is inside is returned as it is, to the last bit.
    """
    if not isinstance(value, list | tuple) or len(value) != 4:
        raise fields.error(key, value, "must be [x, y, width, height]")
    for number in value:
        if not isinstance(number, int | float) or isinstance(number, bool):
            raise fields.error(key, value, "must hold four numbers")
        # Integers beyond float range overflow on conversion; compare before converting.
        if not -1e9 < number < 1e9:
            raise fields.error(key, value, "must hold finite pixel coordinates")
    x, y, w, h = map(float, value)
    if w <= 0 or h <= 0:
        raise fields.error(key, value, "sides must be positive; drop the region")
    x, w = _clip_span(x, w, width, fields, key, value)
    y, h = _clip_span(y, h, height, fields, key, value)
    return (x, y, w, h)


def _clip_span(
    start: float, length: float, limit: int, fields: Fields, key: str, box: object
) -> tuple[float, float]:
    end = start + length
    if start >= 0 and end <= limit:
        return start, length
    if start < -_REACH_PX or end > limit + _REACH_PX:
        remedy = f"reaches outside the image (0..{limit} px on this axis); check the image size"
        raise fields.error(key, box, remedy)
    low, high = max(start, 0.0), min(end, float(limit))
    if high <= low:
        raise fields.error(key, box, "nothing is left of it inside the image; drop the region")
    return low, high - low
