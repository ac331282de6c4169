from pathlib import Path
from typing import Any

import pytest

from data_tools.converting.judge import Judge
from data_tools.sources.base import Bad
from wholegrain.errors import DataError

OUT = Path("out")


def bad(count: int, cause: str = "image: missing") -> list[Bad]:
    return [Bad(str(n), cause, f"{cause} {n}") for n in range(count)]


def notes(seen: int, count: int) -> dict[str, Any]:
    skipped = [{"id": one.id, "cause": one.cause, "detail": one.detail} for one in bad(count)]
    return {"seen": seen, "skipped": skipped, "left_out": {}}


def test_a_known_total_is_settled_by_one_too_many() -> None:
    judge = Judge(OUT, 0.01, 1000)
    judge.saw(10, bad(10))
    with pytest.raises(DataError, match=r"11 of 11 samples are bad .* more than 1\.0% of 1000"):
        judge.saw(1, bad(1))


def test_the_share_is_of_all_samples() -> None:
    judge = Judge(OUT, 0.01, None)
    judge.saw(50, bad(1))
    with pytest.raises(DataError, match="1 of 50"):
        judge.finish()
    judge.saw(50, [])
    judge.finish()


def test_an_unknown_total_is_judged_by_whole_parts_in_order() -> None:
    judge = Judge(OUT, 0.01, None)
    for _ in range(9):
        judge.saw_part(notes(1000, 11))
    with pytest.raises(DataError, match=r"110 of 10000 samples .* more than 1\.0% of 10000"):
        judge.saw_part(notes(1000, 11))


def test_a_later_part_makes_up_only_before_enough_was_seen() -> None:
    judge = Judge(OUT, 0.01, None)
    judge.saw_part(notes(1000, 100))
    judge.saw_part(notes(9500, 5))
    judge.finish()  # raises nothing
    assert sum(judge.causes.values()) == 105


def test_the_message_counts_by_cause_and_has_an_example_of_each() -> None:
    judge = Judge(OUT, 0.0, None)
    judge.saw(20, [*bad(3), *bad(5, "text: broken")])
    with pytest.raises(DataError) as raised:
        judge.finish()
    message = str(raised.value)
    assert "(5 x text: broken, 3 x image: missing)" in message
    assert message.splitlines()[1:] == ["  image: missing 0", "  text: broken 0"]
    assert judge.causes == {"image: missing": 3, "text: broken": 5}


def test_no_sample_is_no_corpus() -> None:
    with pytest.raises(DataError, match="the source holds no sample"):
        Judge(OUT, 1.0, None).finish()


def test_all_may_be_bad_if_it_is_asked_for() -> None:
    judge = Judge(OUT, 1.0, 5)
    judge.saw(5, bad(5))
    judge.finish()  # raises nothing
    assert sum(judge.causes.values()) == 5
