"""Boxes and labels on photos of any size."""

import numpy as np
import pytest
from PIL import Image

from wholegrain.draw import PALETTE, draw_boxes


def count(image: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.array(image) == colour).all(axis=-1).sum())


@pytest.mark.parametrize("size", [(20, 20), (1, 9), (640, 480), (3000, 200)])
def test_any_size_becomes_readable(size: tuple[int, int]) -> None:
    photo = Image.new("RGB", size)
    drawn = draw_boxes(photo, [(0, 0, *size)], ["everything"])
    assert 640 <= max(drawn.size) <= 2048
    assert count(drawn, PALETTE[0]) > 0


def test_the_photo_itself_is_left_alone() -> None:
    photo = np.zeros((480, 640, 3), np.uint8)
    draw_boxes(photo, [(10, 10, 50, 50)], ["a"])
    assert not photo.any()


def test_the_line_lies_on_the_edge_of_the_box() -> None:
    drawn = np.array(draw_boxes(np.zeros((480, 640, 3), np.uint8), [(100, 200, 300, 400)], [""]))
    coloured = (drawn == PALETTE[0]).all(axis=-1)
    rows, columns = np.nonzero(coloured)
    assert abs(columns.min() - 100) <= 2 and abs(columns.max() - 300) <= 2
    assert abs(rows.min() - 200) <= 2 and abs(rows.max() - 400) <= 2
    assert not coloured[300, 200], "the inside stays free"


def test_labels_do_not_cover_each_other() -> None:
    boxes = [(100.0, 100.0, 300.0, 300.0)] * 3
    photo = np.full((480, 640, 3), 90, np.uint8)
    apart = [count(draw_boxes(photo, [box], ["label"]), PALETTE[0]) for box in boxes[:1]]
    bare = count(draw_boxes(photo, boxes[:1], [""]), PALETTE[0])
    plate = apart[0] - bare
    together = draw_boxes(photo, boxes, ["label"] * 3)
    for colour in PALETTE[:2]:  # below the last box, so only their plates show
        assert count(together, colour) >= plate * 0.9


@pytest.mark.parametrize("label", ["word " * 200, "长颈鹿", "x" * 3000, "a\nb\tc"])
def test_any_label_fits_the_picture(label: str) -> None:
    drawn = draw_boxes(np.zeros((480, 640, 3), np.uint8), [(500, 10, 600, 60)], [label])
    columns = np.nonzero((np.array(drawn) == PALETTE[0]).all(axis=-1))[1]
    assert columns.max() - columns.min() <= 340


def test_an_inverted_box_does_not_break_the_picture() -> None:
    draw_boxes(np.zeros((40, 40, 3), np.uint8), [(30, 30, 10, 10)], ["a"])
