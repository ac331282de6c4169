"""All ranks learn at the same step that one of them wants to stop; none hangs because of it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from wholegrain.train.vote import StopVote

PROGRAM = Path(__file__).with_name("vote_program.py")


def test_one_rank_is_answered_at_once() -> None:
    with StopVote(1) as vote:
        assert [vote.cast(flag) for flag in (False, True, False)] == [False, True, False]


@pytest.mark.ranks
def test_ranks_agree_and_one_that_fails_keeps_nobody(
    launch: Callable[..., str], tmp_path: Path
) -> None:
    said = launch(PROGRAM, tmp_path)

    def seen(case: str, rank: int) -> object:
        return json.loads((tmp_path / f"{case}-{rank}.json").read_text())

    late = [False] * 5 + [True] * 5
    for rank in range(3):
        assert seen("together", rank) == [late, late, late, [False, False, True, False]]
    assert "together [0, 0, 0]" in said

    # Neither was killed: each ended with its own error, though an answer was still on its way.
    assert "one fails [1, 1]" in said
    assert "ValueError: ours" in said
    assert seen("one fails", 0) < 30

    assert "one dies [0, 1]" in said
