"""Each expression is answered once, and whoever is missing is named."""

import pytest

from finetune.roll_call import RollCall, check_complete
from wholegrain.errors import DataError


def test_all_there_in_any_order() -> None:
    check_complete(["b", "a"], ["a", "b"], "no remedy")


def test_faults_are_counted_and_the_first_are_named() -> None:
    found = ["a", "x1", "a", "x2", "a", "x3", "x4", "b"]
    with pytest.raises(DataError) as caught:
        check_complete(found, ["a", "b", "c"], "do this")
    assert str(caught.value) == (
        "each of 3 expressions needs one answer: 1 missing (c); 1 answered more than once (a); "
        "4 unknown (x1, x2, x3, ...); do this"
    )


def test_lines_are_told() -> None:
    roll = RollCall(["a", "b"])
    assert roll.answered("a", 1)
    assert not roll.answered("a", 5)
    assert not roll.answered("z", 7)
    with pytest.raises(DataError) as caught:
        roll.close("mend it", "f.jsonl: ")
    message = str(caught.value)
    assert message.startswith("f.jsonl: each of 2 expressions")
    assert "1 missing (b)" in message
    assert "(a in lines 1 and 5)" in message
    assert "(z in line 7)" in message


def test_unwanted_ids_take_no_room() -> None:
    """A file of the wrong data set may have any number of lines."""
    roll = RollCall(["a"])
    for number in range(10_000):
        roll.answered(f"stranger {number}", number)
    assert len(roll._unknown) == 3
    assert len(roll._first) == 0
    with pytest.raises(DataError, match="10000 unknown"):
        roll.close("x")


def test_without_a_list_only_repetitions_are_faults() -> None:
    roll = RollCall(None)
    roll.answered("a")
    roll.answered("b")
    roll.close("x")
    roll.answered("b")
    with pytest.raises(DataError, match=r"each of 2 expressions.*1 answered more than once \(b\)"):
        roll.close("x")
