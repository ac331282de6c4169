"""Base and novel classes, and the few images a class that are learnt from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from finetune.shots.layouts import Layout
from finetune.shots.sets import Item, LabelledSet, read_triples
from wholegrain.data.permutation import keyed_rng
from wholegrain.errors import DataError

PartName = Literal["all", "base", "novel"]


@dataclass(frozen=True)
class Part:
    """Some of a data set's classes, relabelled from 0."""

    name: PartName
    labels: range
    """Of the whole set."""
    classes: tuple[str, ...]
    test: tuple[Item, ...]

    def pick(self, items: Iterable[Item]) -> tuple[Item, ...]:
        """Those of the set's items that belong to the part, with its labels."""
        return _relabelled(items, self.labels)


def part_of(labelled: LabelledSet, name: PartName) -> Part:
    """All classes, or the first ceil(n / 2) by label (base), or the others (novel).

    Raises:
        DataError: a set of one class has no second half.
    """
    count = len(labelled.classes)
    half = math.ceil(count / 2)
    if name != "all" and count < 2:
        raise DataError(
            f"{labelled.folder}: {labelled.title} has {count} class; base and novel need two"
        )
    labels = {"all": range(count), "base": range(half), "novel": range(half, count)}[name]
    classes = tuple(labelled.classes[label] for label in labels)
    return Part(name, labels, classes, _relabelled(labelled.test, labels))


def _relabelled(items: Iterable[Item], labels: range) -> tuple[Item, ...]:
    return tuple(
        Item(item.path, item.label - labels.start) for item in items if item.label in labels
    )


def draw_shots(labelled: LabelledSet, shots: int, seed: int) -> tuple[Item, ...]:
    """The images of each class to learn from, by label; without repetition.

    A function of the set's name and lists, the class, `shots` and `seed` alone: more shots of a
    seed hold the fewer, and base classes get the same whether or not novel ones are there.
    """
    by_label: dict[int, list[Item]] = {}
    for item in labelled.train:
        by_label.setdefault(item.label, []).append(item)
    chosen: list[Item] = []
    for label in sorted(by_label):
        items = by_label[label]
        order = keyed_rng("few shots", labelled.name, seed, label).permutation(len(items))
        chosen += [items[place] for place in order[:shots].tolist()]
    return tuple(chosen)


def listed_shots(labelled: LabelledSet, layout: Layout, shots: int, seed: int) -> tuple[Item, ...]:
    """The images to learn from as a list names them, ``split_fewshot/shot_K-seed_S.json``.

    Raises:
        DataError: there is no such list, or it is only there as a pickle; an image is not one of
            the training images, or a class has none.
    """
    path = labelled.folder / "split_fewshot" / f"shot_{shots}-seed_{seed}.json"
    if not path.exists() and path.with_suffix(".pkl").exists():
        raise DataError(
            f"{path.with_suffix('.pkl')}: a pickle, which may run anything when it is read, and is "
            f"not read here; write its images as {path.name} "
            '({"train": [[path, label, class name], ...]}), or set data.listed_shots to false'
        )
    items = [item for item, _ in read_triples(path, layout, ("train",))["train"]]
    known = set(labelled.train)
    if foreign := [item for item in items if item not in known]:
        raise DataError(
            f"{path}: {foreign[0].path} with label {foreign[0].label} is no training image of "
            f"{labelled.title}; lists and splits must belong together"
        )
    _check_covered(str(path), labelled.classes, items)
    return tuple(items)


def _check_covered(where: str, classes: Sequence[str], items: Iterable[Item]) -> None:
    if absent := set(range(len(classes))) - {item.label for item in items}:
        raise DataError(
            f"{where}: no image of the class {classes[min(absent)]!r}; every class needs one"
        )


def prompts_of(classes: Sequence[str], template: str) -> list[str]:
    """What is said of each class: underscores of its name become spaces."""
    return [template.format(name.replace("_", " ")) for name in classes]
