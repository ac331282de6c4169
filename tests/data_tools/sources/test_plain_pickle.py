"""Plain data come out as Python's unpickler gives them; everything else is refused, cheaply."""

import pickle
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.sources import plain_pickle
from data_tools.sources.files import read_plain_pickle
from data_tools.sources.plain_pickle import MAX_DEPTH, PlainPickleError, load_plain_pickle
from wholegrain.errors import DataError

SCALAR = st.one_of(
    st.none(), st.booleans(), st.integers(-(1 << 70), 1 << 70), st.floats(), st.text(max_size=5)
)
PLAIN = st.recursive(
    SCALAR,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(SCALAR, inner, max_size=3),
    ),
    max_leaves=20,
)


@given(PLAIN, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_what_pythons_pickler_writes_is_read_as_it_was(value: Any, protocol: int) -> None:
    assert repr(load_plain_pickle(pickle.dumps(value, protocol))) == repr(value)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_is_shared_is_read_and_what_is_long_too(protocol: int) -> None:
    words, pair = ["a", "man"], (1, ["x"])
    value = [
        words,
        words,
        {"k": pair},
        pair,
        "é" * 300,
        "x" * 70_000,
        [{}] * 2000,
        list(range(3000)),
    ]
    assert load_plain_pickle(pickle.dumps(value, protocol)) == value


def test_byte_strings_of_python_2_are_text() -> None:
    binary = b"\x80\x02]q\x00(U\x03abcq\x01T\x04\x00\x00\x00\xc3\xa9\xff!h\x01e."
    assert load_plain_pickle(binary) == ["abc", "é\ufffd!", "abc"]
    text = b"(lp0\nS'it\\'s \\xc3\\xa9'\np1\naI7\naI01\naL12L\naF1.5\naVo\\u00e9\nag1\na."
    assert load_plain_pickle(rb"S'a\n\t\\\101\x42\"\q\x'" + b"\n.") == 'a\n\t\\AB"\\q\\x'
    assert load_plain_pickle(text) == ["it's é", 7, True, 12, 1.5, "oé", "it's é"]


HOSTILE = {
    "a class": pickle.dumps(Path("x"), protocol=2),
    "a class of protocol 4": pickle.dumps(Path("x"), protocol=4),
    "a call": b"cos\nsystem\n(S'true'\ntR.",
    "an object": b"(i__main__\nX\n.",
    "a persistent id": b"Pid\n.",
    "an extension": b"\x82\x01.",
    "bytes": pickle.dumps(b"x", protocol=4),
    "a set": pickle.dumps({1}, protocol=4),
    "nothing": b"",
    "no end": b"]",
    "two values": b"]].",
    "an end amid a list": b"(].",
    "no mark": b"]e.",
    "nothing to note": b"q\0.",
    "a note that is not there": b"h\0.",
    "a list in itself": b"]q\0h\0a.",
    "a list in itself by a detour": b"]q\0]h\0aa.",
    "a dict in itself": b"}q\0K\1h\0s.",
    "a list in its tuple": b"]q\0h\0\x85a.",
    "a list that changes later": b"]q\0]q\1ah\1K\1a.",
    "a list as a key": b"}]K\1s.",
    "a tuple as a key": b"})K\1s.",
    "an odd dict": b"(K\1d.",
    "an append to a number": b"K\1K\1a.",
    "a text without quotes": b"Sx\n.",
    "a number of many digits": b"I" + b"9" * 1000 + b"\n.",
    "no number": b"Ix\n.",
    "a text that is cut": b"X\xff\xff\xff\xffab.",
    "a text of 2^60 bytes": b"\x8d" + struct.pack("<Q", 1 << 60) + b"x.",
    "a broken letter": b"X\1\0\0\0\xff.",
    "a newer protocol": b"\x80\x06N.",
    "levels": b"]" * (MAX_DEPTH + 1) + b"a" * MAX_DEPTH + b".",
    "levels of tuples": b")" + b"\x85" * MAX_DEPTH + b".",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_is_not_plain_data_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        load_plain_pickle(data)
    (tmp_path / "refs.p").write_bytes(data)
    with pytest.raises(DataError, match=r"refs\.p: not a pickle of plain data"):
        read_plain_pickle(tmp_path / "refs.p")


def test_levels_up_to_the_limit_are_read() -> None:
    value: Any = []
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    assert load_plain_pickle(pickle.dumps(value)) == value


def test_values_are_bounded_however_they_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_pickle, "MAX_VALUES", 10_000)
    assert len(load_plain_pickle(b"(" + b"N" * 9_998 + b"t.")) == 9_998
    with pytest.raises(PlainPickleError, match="more than 10000"):
        load_plain_pickle(b"(" + b"N" * 10_001 + b"t.")
    shared: Any = ["x"]
    for _ in range(6):
        shared = [shared] * 10
    with pytest.raises(PlainPickleError, match="more than 10000 values"):
        load_plain_pickle(pickle.dumps(shared))


ATTACKS = {
    # Ten bytes for which Python's own unpickler takes 64 GB.
    "memo": b"\x80\x02]r\xff\xff\xff\xff.",
    # Python's own ends the process: the hash of nested tuples overflows the C stack.
    "deep key": b"\x80\x02})" + b"\x85" * 2_000_000 + b"K\x01s.",
    "deep list": b"]" * 200_000 + b"a" * 199_999 + b".",
    "long text": b"X\xff\xff\xff\xffx.",
}

_READ = """
import resource, sys
from pathlib import Path
from data_tools.sources.files import read_plain_pickle
from wholegrain.errors import DataError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_plain_pickle(Path(sys.argv[1]))
except DataError:
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_cost_neither_the_process_nor_its_memory(name: str, tmp_path: Path) -> None:
    path = tmp_path / "refs.p"
    path.write_bytes(ATTACKS[name])
    most = resource.RLIMIT_AS, (8 << 30, 8 << 30)
    done = subprocess.run(
        [sys.executable, "-c", _READ, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: resource.setrlimit(*most),
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 800 << 10  # KiB


@settings(max_examples=300)
@given(st.binary(max_size=80), st.integers(0, 4000))
def test_any_bytes_are_data_or_an_error(noise: bytes, at: int) -> None:
    whole = pickle.dumps(
        [{"sent": "a man", "ids": [1, 2, 300, 1 << 40], "box": (1.5, None)}] * 3, 2
    )
    at %= len(whole)
    for data in (noise, whole[:at] + noise + whole[at + len(noise) :]):
        try:
            load_plain_pickle(data)
        except ValueError:
            continue
