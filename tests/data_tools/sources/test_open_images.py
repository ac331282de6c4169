import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data_tools.sources.base import Bad
from data_tools.sources.open_images import read_open_images
from wholegrain.data.corpus import Corpus
from wholegrain.errors import DataError

HEADING = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,"
    "IsDepiction,IsInside,XClick1X,XClick2X,XClick3X,XClick4X,XClick1Y,XClick2Y,XClick3Y,XClick4Y"
)
CAR, DOG = "/m/0k4j", "/m/0bt9lr"
A, B, C, D = "000002b66c9c498e", "000002b97e5471a0", "f00002c707c9895e", "000004f4400f6ec5"


def row(image: str, label: str, *box: float, group: int = 0) -> str:
    left, right, top, bottom = box
    return f"{image},xclick,{label},1,{left},{right},{top},{bottom},0,1,{group},0,0" + ",-1" * 8


@dataclass(frozen=True)
class Layout:
    """Tables and photos."""

    boxes: Path
    classes: Path
    images: Path

    @property
    def files(self) -> tuple[Path, Path, Path]:
        return self.boxes, self.classes, self.images

    def rows(self) -> list[str]:
        return self.boxes.read_text().splitlines()

    def write(self, rows: list[str], end: str = "\n") -> None:
        self.boxes.write_bytes((end.join(rows) + end).encode())


@pytest.fixture
def layout(tmp_path: Path, photo: Callable[..., bytes]) -> Layout:
    """Four photos of different sizes in the folders of the archives; one has groups only."""
    root = tmp_path / "openimages"
    sizes = {A: (64, 48), B: (48, 64), C: (100, 40), D: (64, 64)}
    for number, (image, size) in enumerate(sizes.items()):
        place = root / f"train_{image[0]}" / f"{image}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(photo(number, *size))
    layout = Layout(
        root / "oidv6-train-annotations-bbox.csv", root / "class-descriptions-boxable.csv", root
    )
    rows = [
        row(A, CAR, 0.25, 0.5, 0.125, 1.0),
        row(A, DOG, 0.0, 1.0, 0.0, 1.0, group=1),
        row(A, DOG, 0.1, 0.1, 0.2, 0.4),
        row(D, DOG, 0.0, 1.0, 0.0, 1.0, group=1),
        row(B, DOG, 0.0, 0.5, 0.0, 0.5),
        row(C, CAR, 0.9, 1.0, 0.3, 0.7000000001),
    ]
    layout.write([HEADING, *rows])
    layout.classes.write_text(f'{CAR},Car\n{DOG},"Dog, any"\n')
    return layout


def test_shares_become_pixels_of_each_photo(layout: Layout, read_all: Any) -> None:
    source = read_open_images(*layout.files)
    (first, second, third), left_out = read_all(source)
    assert [d.id for d in (first, second, third)] == [f"openimages/{n}" for n in (A, B, C)]
    assert [d.size for d in (first, second, third)] == [(64, 48), (48, 64), (100, 40)]
    assert (first.split, first.photo) == ("train", f"openimages/{A}")
    assert [(r.texts, r.box) for r in first.regions] == [
        (("Car",), (16, 6, 16, 42)),
        (("Dog, any",), pytest.approx((6.4, 9.6, 0, 9.6))),
    ]
    assert [(r.grain, r.texts, r.box) for r in second.regions] == [
        ("object", ("Dog, any",), (0, 0, 24, 32))
    ]
    assert third.regions[0].box == pytest.approx((90, 12, 10, 16))
    assert left_out == {"box around a group": 1}
    assert +source.left_out == {
        "box around a group": 1,
        "image with boxes around groups only": 1,
    }


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_either_form_of_the_class_names(layout: Layout, read_all: Any, end: str) -> None:
    before, _ = read_all(read_open_images(*layout.files))
    names = layout.classes.read_text()
    layout.classes.write_text(("LabelName,DisplayName\n" + names).replace("\n", end))
    layout.write(layout.rows(), end)
    assert read_all(read_open_images(*layout.files))[0] == before


def test_columns_may_be_fewer_and_in_another_order(layout: Layout, read_all: Any) -> None:
    before, _ = read_all(read_open_images(*layout.files))
    kept = [10, 4, 5, 6, 7, 0, 2]  # IsGroupOf first, ImageID in the middle
    cells = [line.split(",") for line in layout.rows()]
    layout.write([",".join(line[n] for n in kept) for line in cells])
    assert read_all(read_open_images(*layout.files))[0] == before


def test_photos_may_lie_in_one_folder(layout: Layout, read_all: Any) -> None:
    for path in sorted(layout.images.glob("train_*/*.jpg")):
        path.rename(layout.images / path.name)
    drafts, _ = read_all(read_open_images(*layout.files))
    assert [d.image for d in drafts] == [layout.images / f"{n}.jpg" for n in (A, B, C)]


def test_validation_is_called_val(layout: Layout, read_all: Any) -> None:
    (layout.images / "train_0").rename(layout.images / "validation")
    path = layout.boxes.rename(layout.boxes.with_name("validation-annotations-bbox.csv"))
    items, _ = read_all(read_open_images(path, layout.classes, layout.images))
    assert items[0].split == "val" and items[0].image.parent.name == "validation"


def test_photos_without_a_size_are_bad_samples(layout: Layout, read_all: Any) -> None:
    (layout.images / "train_0" / f"{A}.jpg").unlink()
    (layout.images / "train_0" / f"{B}.jpg").write_bytes(b"<html>gone</html>")
    items, _ = read_all(read_open_images(*layout.files))
    assert [item.cause for item in items if isinstance(item, Bad)] == [
        "image: missing",
        "image: not an image",
    ]
    assert f"{A}.jpg: no such file" in items[0].detail


def test_a_long_header_is_read_in_full(layout: Layout, read_all: Any) -> None:
    path = layout.images / "train_0" / f"{A}.jpg"
    data = path.read_bytes()
    profile = b"\xff\xe2" + struct.pack(">H", 65000) + bytes(64998)
    path.write_bytes(data[:2] + 3 * profile + data[2:])
    items, _ = read_all(read_open_images(*layout.files))
    assert items[0].size == (64, 48)


def test_faulty_rows_cost_their_image_only(layout: Layout, read_all: Any) -> None:
    rows = layout.rows()
    rows[1] = rows[1].replace("0.25", "wide")
    rows[5] = row(B, "/m/unknown", 0, 1, 0, 1)
    rows[6] = ",".join(rows[6].split(",")[:6])
    layout.write(rows)
    items, _ = read_all(read_open_images(*layout.files))
    causes = ["annotation broken", "unknown class", "annotation broken"]
    assert [item.cause for item in items] == causes
    assert "/m/unknown" in items[1].detail and "wide" in items[0].detail


def test_rows_of_an_image_must_be_neighbours(layout: Layout) -> None:
    layout.write([*layout.rows(), row(A, CAR, 0, 1, 0, 1)])
    with pytest.raises(DataError, match=rf"bbox\.csv: line 8: image {A} again.*sort the file"):
        read_open_images(*layout.files)


def test_conversion(layout: Layout, tmp_path: Path, data_tools: Callable[..., Any]) -> None:
    flags = ["--boxes", layout.boxes, "--classes", layout.classes, "--images", layout.images]
    ran = data_tools("convert", "open_images", *flags, "--out", tmp_path / "out")
    assert ran.status == 0, ran.err
    corpus = Corpus.open(tmp_path / "out")
    assert corpus.splits == {"train": 3}
    # The box without area is gone.
    assert [region.box for region in corpus.record(0).regions] == [(16, 6, 16, 42)]
    assert "open_images train objects: published 14,610,229, here 3, missing" in ran.out
    assert "2 x box around a group" in ran.out


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda rows: rows[1:], "no column 'ImageID' in the first line"),
        (lambda rows: [rows[0].replace("IsGroupOf", "Group"), *rows[1:]], "no column 'IsGroupOf'"),
        (lambda rows: [*rows, "short"], "line 8: b'short.n' does not begin with an image id"),
        (lambda rows: [*rows, row("../../etc/passwd", CAR, 0, 1, 0, 1)], "line 8: "),
    ],
)
def test_another_table_is_named(layout: Layout, edit: Any, message: str) -> None:
    layout.write(edit(layout.rows()))
    with pytest.raises(DataError, match=message) as raised:
        read_open_images(*layout.files)
    assert str(layout.boxes) in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no class in it"),
        ("LabelName,DisplayName\n", "no class in it"),
        ("Car\n", r"row 1 is \['Car'\]"),
        (f"{CAR},Car\n{DOG}, \n", "row 2"),
    ],
)
def test_other_class_names_are_named(layout: Layout, text: str, message: str) -> None:
    layout.classes.write_text(text)
    with pytest.raises(DataError, match=message):
        read_open_images(*layout.files)


def test_missing_files_are_named(layout: Layout, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the path of the boxes"):
        read_open_images(tmp_path / "none", layout.classes, layout.images)
    with pytest.raises(DataError, match="the path of the class names"):
        read_open_images(layout.boxes, tmp_path / "none", layout.images)
