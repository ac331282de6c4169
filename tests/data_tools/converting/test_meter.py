import io

from rich.console import Console

from data_tools.converting.meter import Meter


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def meter(
    clock: Clock, total: int | None, parts: int, **console: bool
) -> tuple[Meter, io.StringIO]:
    file = io.StringIO()
    return Meter(Console(file=file, width=120, **console), "coco", total, parts, clock), file


def test_rate_and_time_left_are_of_this_run() -> None:
    clock = Clock()
    shown, _ = meter(clock, 1000, 10)
    with shown:
        for _ in range(4):
            shown.found(100, 1)  # by an earlier run, and no pace of this one
        assert (shown.rate(), shown.seconds_left()) == (0, None)
        clock.now += 10
        shown.saw(50, 2)
        assert shown.rate() == 5
        assert shown.seconds_left() == 110
        assert shown.line() == "450 of 1,000 samples, 4 of 10 parts, 5/s, 0:01:50 left, 6 bad"


def test_without_a_total_the_parts_say_how_long() -> None:
    clock = Clock()
    shown, _ = meter(clock, None, 9)
    with shown:
        shown.found(100, 0)
        clock.now += 7200
        shown.saw(500, 0)
        assert shown.seconds_left() is None
        shown.part_done()
        shown.part_done()
        assert shown.line() == "600 samples, 3 of 9 parts, 0/s, 6:00:00 left"


def test_a_log_file_gets_a_line_a_minute() -> None:
    clock = Clock()
    shown, file = meter(clock, 1000, 10)
    with shown:
        for _ in range(500):
            clock.now += 0.5
            shown.saw(1, 0)
    lines = file.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[0] == "coco: 120 of 1,000 samples, 0 of 10 parts, 2/s, 0:07:20 left"


def test_a_terminal_gets_a_bar() -> None:
    clock = Clock()
    shown, file = meter(clock, 1000, 10, force_terminal=True)
    with shown:
        clock.now += 1
        shown.saw(250, 3)
    assert "250 of 1,000 samples" in file.getvalue() and "3 bad" in file.getvalue()
