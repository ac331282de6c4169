"""A file that shows that its maker lives."""

import threading
from pathlib import Path

from tests.programs import wait_until
from wholegrain.train.pulse import Pulse, last_beat


def test_beats_are_seen_until_the_end(tmp_path: Path) -> None:
    path, seen = tmp_path / ".alive", set[int | None]()

    def three() -> bool:
        seen.add(last_beat(path))
        return len(seen) >= 3

    assert last_beat(path) is None
    with Pulse(path, 0.01):
        wait_until(three, "three beats")
        assert None not in seen
    assert list(tmp_path.iterdir()) == []
    assert "pulse" not in {thread.name for thread in threading.enumerate()}


def test_a_folder_that_is_taken_away_is_not_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "aside"
    folder.mkdir()
    with Pulse(folder / ".alive", 0.001) as pulse:
        folder.rename(tmp_path / "gone")
        folder.mkdir()
        assert not pulse._left.wait(0.05)
        assert list(folder.iterdir()) == []


def test_where_it_cannot_be_written_nothing_fails(tmp_path: Path) -> None:
    with Pulse(tmp_path / "absent" / ".alive", 0.001) as pulse:
        assert not pulse._left.wait(0.02)
