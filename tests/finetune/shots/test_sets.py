"""The layouts of the fifteen data sets, and what is wrong with a folder that is not one."""

import json
import shutil
from pathlib import Path

import pytest

from finetune.shots.layouts import DOMAINS, ELEVEN, LAYOUTS
from finetune.shots.sets import Item, open_set
from wholegrain.errors import DataError

CLASSES = {
    "imagenet": 1000,
    "caltech101": 100,
    "oxford_pets": 37,
    "stanford_cars": 196,
    "oxford_flowers": 102,
    "food101": 101,
    "fgvc_aircraft": 100,
    "sun397": 397,
    "dtd": 47,
    "eurosat": 10,
    "ucf101": 101,
    "imagenetv2": 1000,
    "imagenet_sketch": 1000,
    "imagenet_a": 200,
    "imagenet_r": 200,
}


def test_the_sets_are_those_published() -> None:
    assert {name: layout.classes for name, layout in LAYOUTS.items()} == CLASSES
    assert (len(ELEVEN), ELEVEN[0], DOMAINS) == (11, "imagenet", tuple(list(CLASSES)[11:]))


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_read(name: str, layouts_root: Path) -> None:
    found = open_set(name, layouts_root)
    assert len(found.classes) == CLASSES[name]
    assert [item.label for item in found.test] == list(range(CLASSES[name]))
    assert bool(found.train) == (name in ELEVEN)
    for item in (found.test[0], found.test[-1], *found.train[-1:]):
        assert (found.folder / item.path).is_file()
        assert not Path(item.path).name.startswith(".")


def test_labels_and_names_of_folders_follow_the_ids(layouts_root: Path) -> None:
    names = {name: open_set(name, layouts_root).classes for name in ("imagenet", "imagenetv2")}
    assert names["imagenet"] == names["imagenetv2"] == tuple(f"thing {n}" for n in range(1000))
    # 200 of the classes keep their own names under labels of their own.
    assert open_set("imagenet_r", layouts_root).classes == names["imagenet"][3::5]


def test_numbered_folders_are_numbers_of_sorted_ids(tmp_path: Path, layouts_root: Path) -> None:
    # Folder 10 comes before folder 2 by name, and the names' file may be in any order.
    source = layouts_root / "imagenetv2"
    target = tmp_path / "imagenetv2"
    target.mkdir()
    images = LAYOUTS["imagenetv2"].images
    (target / images).symlink_to(source / images)
    lines = (source / "classnames.txt").read_text().splitlines()
    (target / "classnames.txt").write_text("\n".join(reversed(lines)))
    found = open_set("imagenetv2", tmp_path)
    assert found.classes[10] == "thing 10"
    assert found.test[10].path.endswith("/10/x.jpeg")


def test_aircraft_reads_its_variants(layouts_root: Path) -> None:
    found = open_set("fgvc_aircraft", layouts_root)
    assert found.classes[8] == "Jet 8-100"
    assert found.train[8] == Item("images/train008.jpg", 8)
    assert found.test[8] == Item("images/test008.jpg", 8)


def test_a_fingerprint_knows_lists_and_not_places(tmp_path: Path, layouts_root: Path) -> None:
    before = open_set("eurosat", layouts_root).fingerprint
    folder = tmp_path / "eurosat"
    shutil.copytree(layouts_root / "eurosat", folder)
    assert open_set("eurosat", tmp_path).fingerprint == before
    split = json.loads((folder / "split_zhou_EuroSAT.json").read_text())
    split["test"].reverse()
    (folder / "split_zhou_EuroSAT.json").write_text(json.dumps(split))
    assert open_set("eurosat", tmp_path).fingerprint != before


class TestWrongFolders:
    @pytest.fixture
    def eurosat(self, tmp_path: Path, layouts_root: Path) -> Path:
        shutil.copytree(layouts_root / "eurosat", tmp_path / "eurosat")
        return tmp_path

    def change(self, root: Path, part: str, place: int, triple: object) -> None:
        path = root / "eurosat" / "split_zhou_EuroSAT.json"
        split = json.loads(path.read_text())
        split[part][place] = triple
        path.write_text(json.dumps(split))

    def refusal(self, root: Path, name: str = "eurosat") -> str:
        with pytest.raises(DataError) as caught:
            open_set(name, root)
        return str(caught.value)

    def test_no_folder(self, tmp_path: Path) -> None:
        message = self.refusal(tmp_path)
        assert str(tmp_path / "eurosat") in message
        assert "set data.root" in message
        assert "github.com/phelber/EuroSAT" in message

    def test_no_split_file(self, eurosat: Path) -> None:
        (eurosat / "eurosat" / "split_zhou_EuroSAT.json").unlink()
        message = self.refusal(eurosat)
        assert "split_zhou_EuroSAT.json: cannot be read (No such file" in message
        assert "CoOp's DATASETS.md" in message

    def test_a_missing_image(self, eurosat: Path) -> None:
        (eurosat / "eurosat" / "2750" / "Land3" / "Land3_1.jpg").unlink()
        assert "Land3_1.jpg: missing" in self.refusal(eurosat)

    def test_a_class_too_few(self, eurosat: Path) -> None:
        path = eurosat / "eurosat" / "split_zhou_EuroSAT.json"
        split = json.loads(path.read_text())
        path.write_text(json.dumps({part: each[:9] for part, each in split.items()}))
        assert "9 classes, but EuroSAT has 10" in self.refusal(eurosat)

    @pytest.mark.parametrize(
        "path", ["../../secret.jpg", "/etc/passwd", "a/../../b.jpg", "a\0.jpg"]
    )
    def test_a_path_that_leads_out(self, path: str, eurosat: Path) -> None:
        self.change(eurosat, "train", 2, [path, 2, "class_2"])
        assert "train[2]" in (message := self.refusal(eurosat))
        assert "inside the data set" in message

    @pytest.mark.parametrize(
        "triple", [["a.jpg", 2], ["a.jpg", "2", "x"], ["a.jpg", True, "x"], "a.jpg", [1, 2, "x"]]
    )
    def test_no_triple(self, triple: object, eurosat: Path) -> None:
        self.change(eurosat, "test", 1, triple)
        assert "test[1]" in (message := self.refusal(eurosat))
        assert "[path, label, class name]" in message

    def test_two_names_of_a_label(self, eurosat: Path) -> None:
        self.change(eurosat, "test", 4, ["Land4/Land4_1.jpg", 4, "forest"])
        assert "label 4 is 'class_4' and 'forest'" in self.refusal(eurosat)

    def test_a_gap_in_the_labels(self, eurosat: Path) -> None:
        for part in ("train", "test"):
            self.change(eurosat, part, 9, ["Land9/Land9_1.jpg", 11, "class_9"])
        assert "the labels are not 0 to 9 (the last is 11)" in self.refusal(eurosat)

    def test_a_class_without_test_image(self, eurosat: Path) -> None:
        self.change(eurosat, "test", 5, ["Land4/Land4_1.jpg", 4, "class_4"])
        assert "no test image of the class 'class_5'" in self.refusal(eurosat)

    @pytest.mark.parametrize("text", ["", "[]", '{"train": 1, "test": []}', "[" * 100_000])
    def test_no_split(self, text: str, eurosat: Path) -> None:
        (eurosat / "eurosat" / "split_zhou_EuroSAT.json").write_text(text)
        assert "split_zhou_EuroSAT.json" in self.refusal(eurosat)

    def test_validation_images_in_one_heap(self, tmp_path: Path) -> None:
        folder = tmp_path / "imagenet"
        (folder / "images" / "val").mkdir(parents=True)
        (folder / "images" / "val" / "ILSVRC2012_val_00000001.JPEG").touch()
        (folder / "classnames.txt").write_text("n01440764 tench\n")
        assert "holds no folder a class" in self.refusal(tmp_path, "imagenet")

    def test_folders_without_a_name(self, tmp_path: Path) -> None:
        folder = tmp_path / "imagenet-adversarial"
        (folder / "imagenet-a" / "n00000001").mkdir(parents=True)
        (folder / "classnames.txt").write_text("n01440764 tench\n")
        assert "does not name n00000001" in self.refusal(tmp_path, "imagenet_a")

    @pytest.mark.parametrize("line", ["test005 Boat", "../test005 Jet 5-500", "test005"])
    def test_no_image_and_variant(self, line: str, tmp_path: Path, layouts_root: Path) -> None:
        shutil.copytree(layouts_root / "fgvc_aircraft", tmp_path / "fgvc_aircraft")
        path = tmp_path / "fgvc_aircraft" / "images_variant_test.txt"
        path.write_text(path.read_text().replace("test005 Jet 5-500", line))
        message = self.refusal(tmp_path, "fgvc_aircraft")
        assert f"images_variant_test.txt:6: {line!r}" in message
