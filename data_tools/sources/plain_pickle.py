"""Reads a pickle as data: numbers, texts, lists, tuples and dicts, by a reader that can do no more.

Python's own unpickler cannot be made safe by refusing classes: ten bytes make it take all memory
(an entry of its memo numbered by the billion), and tuples within tuples as a key of a dict end the
process. This one knows the instructions that plain data need and no other, in one pass over bytes
in memory, within bounds of depth and number.
"""

from __future__ import annotations

import gc
import re
import struct
from collections.abc import Callable
from typing import Any, TypeAlias

MAX_VALUES = 1 << 25
"""Values in all, a shared one counted wherever it stands; RefCOCOg has three million."""

MAX_DEPTH = 64

_CONTAINERS = (list, dict, tuple)
_SCALARS = (str, int, float, bool, type(None))
_MARK: Any = object()
_LONG_BYTES = 64
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|[0-7]{1,3}|.)", re.DOTALL)
_ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"\\": b"\\", b"'": b"'", b'"': b'"'}
_BINPUT, _LONG_BINPUT, _MEMOIZE, _BINGET, _BINUNICODE, _STOP = b"qr\x94hX."


class PlainPickleError(ValueError):
    """A pickle that is broken, or of anything but plain data."""


Handler: TypeAlias = Callable[["_Reader"], None]
_HANDLERS: dict[int, Handler] = {}


def load_plain_pickle(data: bytes) -> Any:
    """The value of a pickle of any protocol; the byte strings of Python 2 are read as UTF-8.

    Raises:
        PlainPickleError: says what it holds that plain data do not.
    """
    collects = gc.isenabled()
    gc.disable()  # a million new lists, none of them garbage, would be gone through again and again
    try:
        return _Reader(data).run()
    finally:
        if collects:
            gc.enable()


def _on(*opcodes: bytes) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        for opcode in opcodes:
            _HANDLERS[opcode[0]] = handler
        return handler

    return register


class _Reader:
    """A stack, a memo, and the position in the bytes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.values = 0
        # Of each container by its id: values and depth. It is kept, so that no id is used again.
        self.sizes: dict[int, int] = {}
        self.depths: dict[int, int] = {}
        self.kept: list[Any] = []
        self.closed: set[int] = set()  # those that are part of another, and so must stay as is

    def run(self) -> Any:
        data, handlers, stack, memo = self.data, _HANDLERS, self.stack, self.memo
        at, end = 0, len(data)
        while at < end:
            opcode = data[at]
            at += 1
            # Three of four instructions, done here for speed: what goes into the memo, and texts.
            if opcode == _BINPUT and at < end and stack and stack[-1] is not _MARK:
                memo[data[at]] = stack[-1]
                at += 1
            elif opcode == _LONG_BINPUT and at + 4 <= end and stack and stack[-1] is not _MARK:
                memo[int.from_bytes(data[at : at + 4], "little")] = stack[-1]
                at += 4
            elif opcode == _MEMOIZE and stack and stack[-1] is not _MARK:
                memo[len(memo)] = stack[-1]
            elif opcode == _BINGET and at < end and type(memo.get(data[at])) is str:
                self.push(memo[data[at]])
                at += 1
            elif opcode == _BINUNICODE and at + 4 <= end:
                start = at + 4
                at = start + int.from_bytes(data[at:start], "little")
                if at > end:
                    break
                self.push(data[start:at].decode("utf-8", "surrogatepass"))
            elif opcode == _STOP:
                if len(stack) != 1 or stack[0] is _MARK:
                    raise PlainPickleError("it ends amid a value")
                return stack[0]
            else:
                handler = handlers.get(opcode)
                if handler is None:
                    raise PlainPickleError(
                        f"instruction {bytes((opcode,))!r} is none of plain data"
                    )
                self.at = at
                handler(self)
                at = self.at
        raise PlainPickleError("it is cut short")

    def take(self, length: int) -> bytes:
        """The next bytes."""
        found = self.data[self.at : self.at + length]
        if len(found) < length:
            raise PlainPickleError("it is cut short")
        self.at += length
        return found

    def number(self, kind: str) -> Any:
        """The next number, as ``struct`` writes it."""
        return struct.unpack(kind, self.take(struct.calcsize(kind)))[0]

    def line(self) -> bytes:
        """The bytes up to the end of the line."""
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise PlainPickleError("it is cut short")
        found = self.data[self.at : end]
        self.at = end + 1
        return found

    def short_line(self) -> bytes:
        """A line that holds a number."""
        line = self.line()
        if len(line) > _LONG_BYTES:
            raise PlainPickleError(f"a number of {len(line)} characters")
        return line

    def push(self, value: Any) -> None:
        """Puts a new value on the stack."""
        self.values += 1
        if self.values > MAX_VALUES:
            raise PlainPickleError(f"it holds more than {MAX_VALUES} values")
        self.stack.append(value)

    def pop(self) -> Any:
        """The topmost value."""
        if not self.stack or self.stack[-1] is _MARK:
            raise PlainPickleError("an instruction lacks its value")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        """The values above the last mark, which goes too."""
        stack = self.stack
        for position in range(len(stack) - 1, -1, -1):
            if stack[position] is _MARK:
                found = stack[position + 1 :]
                del stack[position:]
                return found
        raise PlainPickleError("a mark is missing")

    def add(self, container: Any, parts: list[Any]) -> None:
        """Measures ``container`` with ``parts`` in it, which must be finished."""
        identity = id(container)
        if identity not in self.sizes:
            self.kept.append(container)
        size, depth = self.sizes.get(identity, 1) + len(parts), self.depths.get(identity, 1)
        for part in parts:
            if type(part) in _CONTAINERS:
                self.closed.add(id(part))
                size += self.sizes[id(part)]
                depth = max(depth, self.depths[id(part)] + 1)
        if size > MAX_VALUES:
            raise PlainPickleError(f"it holds more than {MAX_VALUES} values")
        if depth > MAX_DEPTH:
            raise PlainPickleError(f"it is more than {MAX_DEPTH} levels deep")
        self.sizes[identity], self.depths[identity] = size, depth

    def grow(self, kind: type, parts: list[Any]) -> Any:
        """The container on top of the stack, measured with ``parts`` in it."""
        target = self.stack[-1] if self.stack else None
        if type(target) is not kind or id(target) in self.closed:
            raise PlainPickleError(f"an instruction changes what is no {kind.__name__} of its own")
        self.add(target, parts)
        # Only directly: whatever a part holds is closed, and by a detour the target would be, too.
        if id(target) in self.closed:
            raise PlainPickleError("a value holds itself")
        return target

    def remember(self, number: int) -> None:
        """Notes the topmost value."""
        if not self.stack or self.stack[-1] is _MARK:
            raise PlainPickleError("an instruction lacks its value")
        self.memo[number] = self.stack[-1]

    def recall(self, number: int) -> None:
        """Puts a noted value on the stack again."""
        if number not in self.memo:
            raise PlainPickleError(f"it refers to value {number}, which there is not")
        self.push(self.memo[number])


@_on(b"\x80")
def _protocol(reader: _Reader) -> None:
    if reader.number("<B") > 5:
        raise PlainPickleError("it is of a newer protocol than 5")


@_on(b"\x95")
def _frame(reader: _Reader) -> None:
    reader.number("<Q")  # of use to who reads from a file in pieces


@_on(b"(")
def _mark(reader: _Reader) -> None:
    reader.stack.append(_MARK)


def _constant(opcode: bytes, value: Any) -> None:
    _on(opcode)(lambda reader: reader.push(value))


_constant(b"N", None)
_constant(b"\x88", True)
_constant(b"\x89", False)


def _binary(opcode: bytes, kind: str) -> None:
    _on(opcode)(lambda reader: reader.push(reader.number(kind)))


for _opcode, _kind in ((b"J", "<i"), (b"K", "<B"), (b"M", "<H"), (b"G", ">d")):
    _binary(_opcode, _kind)


@_on(b"I")
def _int(reader: _Reader) -> None:
    line = reader.short_line()
    booleans = {b"00": False, b"01": True}
    reader.push(booleans[line] if line in booleans else int(line))


@_on(b"L")
def _long(reader: _Reader) -> None:
    reader.push(int(reader.short_line().rstrip(b"L")))


@_on(b"\x8a")
def _long1(reader: _Reader) -> None:
    length = reader.number("<B")
    if length > _LONG_BYTES:
        raise PlainPickleError(f"a number of {length} bytes")
    reader.push(int.from_bytes(reader.take(length), "little", signed=True))


@_on(b"F")
def _float(reader: _Reader) -> None:
    reader.push(float(reader.short_line()))


@_on(b"S")
def _quoted(reader: _Reader) -> None:
    line = reader.line().strip()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise PlainPickleError("a text without its quotes")
    reader.push(_ESCAPE.sub(_unescaped, line[1:-1]).decode("utf-8", "replace"))


def _unescaped(found: re.Match[bytes]) -> bytes:
    body = found[1]
    if body[:1] == b"x" and len(body) == 3:
        return bytes((int(body[1:], 16),))
    if body.isdigit():
        return bytes((int(body, 8) & 0xFF,))
    return _ESCAPES.get(body, b"\\" + body)


@_on(b"V")
def _escaped(reader: _Reader) -> None:
    reader.push(reader.line().decode("raw-unicode-escape"))


def _text(opcode: bytes, kind: str, errors: str) -> None:
    def read(reader: _Reader) -> None:
        reader.push(reader.take(reader.number(kind)).decode("utf-8", errors))

    _on(opcode)(read)


# Python 2's byte strings, then Unicode.
for _opcode, _kind in ((b"U", "<B"), (b"T", "<I")):
    _text(_opcode, _kind, "replace")
for _opcode, _kind in ((b"\x8c", "<B"), (b"X", "<I"), (b"\x8d", "<Q")):
    _text(_opcode, _kind, "surrogatepass")


@_on(b"]")
def _empty_list(reader: _Reader) -> None:
    _new(reader, [])


@_on(b"}")
def _empty_dict(reader: _Reader) -> None:
    _new(reader, {})


@_on(b")")
def _empty_tuple(reader: _Reader) -> None:
    _new(reader, ())


def _new(reader: _Reader, container: Any, parts: list[Any] | None = None) -> None:
    reader.add(container, parts or [])
    reader.push(container)


@_on(b"l")
def _list(reader: _Reader) -> None:
    parts = reader.pop_to_mark()
    _new(reader, parts, parts)


@_on(b"t")
def _tuple(reader: _Reader) -> None:
    parts = reader.pop_to_mark()
    _new(reader, tuple(parts), parts)


def _small_tuple(opcode: bytes, length: int) -> None:
    def make(reader: _Reader) -> None:
        parts = [reader.pop() for _ in range(length)][::-1]
        _new(reader, tuple(parts), parts)

    _on(opcode)(make)


for _opcode, _length in ((b"\x85", 1), (b"\x86", 2), (b"\x87", 3)):
    _small_tuple(_opcode, _length)


@_on(b"d")
def _dict(reader: _Reader) -> None:
    parts = reader.pop_to_mark()
    _new(reader, _pairs(parts), parts)


def _pairs(parts: list[Any]) -> dict[Any, Any]:
    if len(parts) % 2:
        raise PlainPickleError("a key without a value")
    for key in parts[::2]:
        if type(key) not in _SCALARS:
            raise PlainPickleError(f"a {type(key).__name__} as a key")
    return dict(zip(parts[::2], parts[1::2], strict=True))


@_on(b"a")
def _append(reader: _Reader) -> None:
    part = reader.pop()
    reader.grow(list, [part]).append(part)


@_on(b"e")
def _appends(reader: _Reader) -> None:
    parts = reader.pop_to_mark()
    reader.grow(list, parts).extend(parts)


@_on(b"s")
def _set_item(reader: _Reader) -> None:
    value, key = reader.pop(), reader.pop()
    pairs = _pairs([key, value])
    reader.grow(dict, [key, value]).update(pairs)


@_on(b"u")
def _set_items(reader: _Reader) -> None:
    parts = reader.pop_to_mark()
    pairs = _pairs(parts)
    reader.grow(dict, parts).update(pairs)


@_on(b"p")
def _put(reader: _Reader) -> None:
    reader.remember(int(reader.short_line()))


@_on(b"g")
def _get(reader: _Reader) -> None:
    reader.recall(int(reader.short_line()))


for _opcode, _kind in ((b"q", "<B"), (b"r", "<I")):
    _on(_opcode)(lambda reader, kind=_kind: reader.remember(reader.number(kind)))
for _opcode, _kind in ((b"h", "<B"), (b"j", "<I")):
    _on(_opcode)(lambda reader, kind=_kind: reader.recall(reader.number(kind)))


@_on(b"\x94")
def _memoize(reader: _Reader) -> None:
    reader.remember(len(reader.memo))


@_on(b"c")
def _global(reader: _Reader) -> None:
    module, name = reader.line(), reader.line()
    raise PlainPickleError(f"it asks for {_shown(module)}.{_shown(name)}, plain data does not")


@_on(b"\x93")
def _stack_global(reader: _Reader) -> None:
    name, module = (str(reader.pop())[:80] for _ in range(2))
    raise PlainPickleError(f"it asks for {module}.{name}, plain data does not")


def _shown(raw: bytes) -> str:
    return raw[:80].decode("utf-8", "replace")
