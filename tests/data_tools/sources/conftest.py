"""Reading a source as conversion does: whole, in pieces, and in another process."""

import multiprocessing
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from data_tools.sources.base import Bad, Draft, Source

ReadAll = Callable[[Source], tuple[list[Draft | Bad], Counter[str]]]


def _read(source: Source, start: int, stop: int) -> tuple[list[Draft | Bad], Counter[str]]:
    left_out: Counter[str] = Counter()
    return list(source.read(start, stop, left_out)), left_out


def _answer(pipe: Any, source: Source) -> None:
    pipe.send(_read(source, 0, source.units))


@pytest.fixture
def read_all() -> ReadAll:
    """Everything a source yields, and what reading left out, after checking that reading is pure.

    A second reading, one unit by unit from the end, one by a pickled copy and one in a forked
    process must all give the same.
    """

    def read(source: Source) -> tuple[list[Draft | Bad], Counter[str]]:
        items, left_out = _read(source, 0, source.units)
        assert source.single and len(items) == source.units == source.total
        assert _same(_read(source, 0, source.units), (items, left_out))
        pieces = [_read(source, n, n + 1) for n in reversed(range(source.units))][::-1]
        assert _same([item for piece, _ in pieces for item in piece], items)
        assert sum((counts for _, counts in pieces), Counter()) == +left_out
        copy = pickle.loads(pickle.dumps(source))
        assert _same(_read(copy, 0, source.units), (items, left_out))
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        process = context.Process(target=_answer, args=(theirs, source))
        process.start()
        theirs.close()
        assert _same(ours.recv(), (items, left_out))
        process.join()
        return items, +left_out

    return read


def _same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)  # where NaN is the same as NaN
