from __future__ import annotations

import pytest

from data_tools.scenes.programs import Item, Program, Words, judge, points_at
from data_tools.scenes.sprites import Look

BALL, CUP = Words(kind="ball"), Words(kind="cup")


def item(kind: str, x: float, y: float, area: float = 0.05, colour: str = "red") -> Item:
    return Item(Look(kind, colour, "plain", "medium"), x, y, area)


@pytest.mark.parametrize(
    ("x", "verdict"),
    [(0.30, True), (0.41, None), (0.49, False), (0.70, False)],
)
def test_left_of_needs_a_clear_margin(x: float, verdict: bool | None) -> None:
    program = Program("relation", BALL, "left", anchors=(CUP,))
    assert judge(program, [item("ball", x, 0.5), item("cup", 0.5, 0.5)]) == [verdict, False]


def test_a_diagonal_neighbour_is_neither_left_nor_not() -> None:
    program = Program("relation", BALL, "left", anchors=(CUP,))
    assert judge(program, [item("ball", 0.3, 0.2), item("cup", 0.5, 0.5)])[0] is None


def test_a_relation_to_one_of_two_is_unclear() -> None:
    items = [item("ball", 0.2, 0.5), item("cup", 0.5, 0.5), item("cup", 0.8, 0.5)]
    assert points_at(Program("relation", BALL, "left", anchors=(CUP,)), items) is None


def test_largest_needs_a_clear_ratio() -> None:
    largest = Program("extreme", BALL, "largest")
    small = item("ball", 0.2, 0.5, 0.05)
    assert points_at(largest, [small, item("ball", 0.8, 0.5, 0.08)]) == 1
    assert points_at(largest, [small, item("ball", 0.8, 0.5, 0.06)]) is None
    assert points_at(largest, [small]) is None


def test_ordinals_count_from_the_named_side_and_need_three() -> None:
    row = [item("ball", x, 0.5) for x in (0.5, 0.1, 0.9, 0.7)]
    assert points_at(Program("ordinal", BALL, "left", 2), row) == 0
    assert points_at(Program("ordinal", BALL, "right", 2), row) == 3
    assert points_at(Program("ordinal", BALL, "right", 3), row) == 0
    assert points_at(Program("ordinal", BALL, "left", 2), row[:2]) is None
    crowded = [*row, item("ball", 0.72, 0.1)]
    assert points_at(Program("ordinal", BALL, "left", 2), crowded) is None


def test_sides_are_the_outer_two_fifths() -> None:
    program = Program("side", BALL, "bottom")
    heights = (0.9, 0.5, 0.3)
    assert judge(program, [item("ball", 0.5, y) for y in heights]) == [True, None, False]


def test_between_is_near_the_line() -> None:
    program = Program("between", BALL, anchors=(CUP, Words(kind="hat")))
    ends = [item("cup", 0.1, 0.5), item("hat", 0.9, 0.5)]
    for x, y, verdict in (
        (0.5, 0.55, True),
        (0.5, 0.75, None),
        (0.5, 0.9, False),
        (0.95, 0.5, None),
    ):
        assert judge(program, [*ends, item("ball", x, y)])[2] is verdict


def test_a_program_is_written_without_its_empty_fields() -> None:
    program = Program("relation", Words(kind="ball", colour="red"), "top", anchors=(CUP,))
    assert program.to_dict() == {
        "form": "relation",
        "head": {"kind": "ball", "colour": "red"},
        "word": "top",
        "anchors": [{"kind": "cup"}],
    }
    assert Program("side", Words(), "left").to_dict()["head"] == {}
