"""Base and novel classes, and the images that are learnt from."""

import json
import pickle
from pathlib import Path

import pytest

from finetune.shots.sets import Item, LabelledSet, own_layout
from finetune.shots.split import draw_shots, listed_shots, part_of, prompts_of
from wholegrain.errors import DataError

LAYOUT = own_layout("toy", "toy", ".", "split.json")


def toy(classes: int = 5, per_class: int = 6, folder: Path = Path()) -> LabelledSet:
    train, test = (
        # Not in the order of labels, as splits need not be.
        tuple(
            Item(f"{part}{label}_{number}.jpg", label)
            for number in range(per_class)
            for label in reversed(range(classes))
        )
        for part in ("train", "test")
    )
    return LabelledSet("toy", "Toy", folder, tuple(f"c_{c}" for c in range(classes)), train, test)


@pytest.mark.parametrize(("classes", "base"), [(2, 1), (5, 3), (37, 19), (1000, 500)])
def test_halves_are_disjoint_and_relabelled(classes: int, base: int) -> None:
    labelled = toy(classes, 2)
    first, second = part_of(labelled, "base"), part_of(labelled, "novel")
    assert len(first.classes) == base
    assert first.classes + second.classes == labelled.classes
    for part in (first, second):
        assert {item.label for item in part.test} == set(range(len(part.classes)))
        for item in part.test:
            assert item.path.startswith(f"test{part.labels.start + item.label}_")
    assert {i.path for i in first.test}.isdisjoint(i.path for i in second.test)
    assert {i.path for i in first.pick(labelled.train)} == {
        i.path for i in labelled.train if i.label < base
    }
    assert part_of(labelled, "all").test == labelled.test


def test_one_class_has_no_halves() -> None:
    assert part_of(toy(1), "all").classes == ("c_0",)
    with pytest.raises(DataError, match="base and novel need two"):
        part_of(toy(1), "novel")


def test_shots_are_a_function_of_set_and_seed() -> None:
    labelled = toy(4, 20)
    shots = draw_shots(labelled, 5, seed=1)
    assert shots == draw_shots(labelled, 5, seed=1)
    assert shots != draw_shots(labelled, 5, seed=2)
    assert [item.label for item in shots] == [label for label in range(4) for _ in range(5)]
    assert len(set(shots)) == 20  # nothing twice
    assert set(shots) <= set(labelled.train)
    # Classes are drawn independently: the same positions in all of them would be a broken key.
    numbers = [tuple(i.path.partition("_")[2] for i in shots if i.label == c) for c in range(4)]
    assert len(set(numbers)) > 1
    assert set(draw_shots(labelled, 3, seed=1)) < set(shots)


def test_base_classes_do_not_depend_on_the_novel_ones() -> None:
    whole, half = toy(4, 20), toy(2, 20)
    part = part_of(whole, "base")
    assert part.pick(draw_shots(whole, 5, 3)) == draw_shots(half, 5, 3)


def test_a_class_with_fewer_gives_all() -> None:
    assert len(draw_shots(toy(3, 2), 16, 1)) == 6


class TestLists:
    def write(self, folder: Path, triples: object) -> None:
        (folder / "split_fewshot").mkdir()
        path = folder / "split_fewshot" / "shot_1-seed_7.json"
        path.write_text(json.dumps({"train": triples}))

    def test_are_read(self, tmp_path: Path) -> None:
        self.write(tmp_path, [["train1_3.jpg", 1, "c_1"], ["train0_2.jpg", 0, "c_0"]])
        found = listed_shots(toy(2, folder=tmp_path), LAYOUT, 1, 7)
        assert found == (Item("train1_3.jpg", 1), Item("train0_2.jpg", 0))

    @pytest.mark.parametrize("triple", [["test0_2.jpg", 0, "c_0"], ["train0_2.jpg", 1, "c_1"]])
    def test_must_be_of_the_split(self, triple: list[object], tmp_path: Path) -> None:
        self.write(tmp_path, [["train1_3.jpg", 1, "c_1"], triple])
        with pytest.raises(DataError, match="is no training image of Toy"):
            listed_shots(toy(2, folder=tmp_path), LAYOUT, 1, 7)

    def test_must_cover_all_classes(self, tmp_path: Path) -> None:
        self.write(tmp_path, [["train1_3.jpg", 1, "c_1"]])
        with pytest.raises(DataError, match="no image of the class 'c_0'"):
            listed_shots(toy(2, folder=tmp_path), LAYOUT, 1, 7)

    def test_a_pickle_is_refused_unread(self, tmp_path: Path) -> None:
        folder = tmp_path / "split_fewshot"
        folder.mkdir()

        class Trap:
            def __reduce__(self) -> tuple[object, ...]:
                return (Path.touch, (tmp_path / "sprung",))

        (folder / "shot_1-seed_7.pkl").write_bytes(pickle.dumps(Trap()))
        with pytest.raises(DataError, match=r"shot_1-seed_7\.pkl: a pickle.*shot_1-seed_7\.json"):
            listed_shots(toy(2, folder=tmp_path), LAYOUT, 1, 7)
        assert not (tmp_path / "sprung").exists()

    def test_no_list(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"shot_1-seed_7\.json: cannot be read"):
            listed_shots(toy(2, folder=tmp_path), LAYOUT, 1, 7)


def test_prompts() -> None:
    found = prompts_of(["Apply_Eye_Makeup", "707-320"], "a photo of a {}.")
    assert found == ["a photo of a Apply Eye Makeup.", "a photo of a 707-320."]
