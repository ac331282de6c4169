"""Figures as lines of text."""

from finetune.metrics import Summary
from finetune.tables import column_heads, row_of


def test_columns_stand_under_their_heads() -> None:
    values = {"acc@0.5": 0.1234, "mean_giou": -0.25}
    summary = Summary(1234567, 9, values, {"acc@0.5": (0.1, 0.2), "mean_giou": (-1.0, 0.0)})
    head, row = column_heads(list(values)), row_of("  size: very large", summary, list(values))
    assert head.split() == ["count", "Acc@0.5", "95", "%", "interval", "mean", "GIoU"]
    assert row.split()[-6:] == ["1234567", "12.34", "10.0", "..", "20.0", "-0.2500"]
    assert len(head) == len(row) <= 100
    for title, cell in (("count", "1234567"), ("Acc@0.5", "12.34"), ("mean GIoU", "-0.2500")):
        assert head.index(title) + len(title) == row.index(cell) + len(cell)


def test_signs_and_unknown_intervals() -> None:
    nan = float("nan")
    summary = Summary(2, 1, {"pr@0.5": 0.5, "mean_f1": 0.0}, {"pr@0.5": (nan, nan)})
    assert row_of("x", summary, ["pr@0.5", "mean_f1"], signed=True).split() == [
        *("x", "2", "+50.00", "-", "+0.0000"),
    ]
    assert "Pr@0.5" in column_heads(["pr@0.5", "mean_f1"])
    assert "mean F1" in column_heads(["pr@0.5", "mean_f1"])
