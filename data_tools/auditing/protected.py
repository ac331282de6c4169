"""The photos that results are measured on: val and test of the sets named in ``--against``.

A set is read from whatever form lies at hand; no photo is needed to know which photos it has.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools.auditing.photo_ids import photo_id
from data_tools.sources.files import read_plain_pickle
from data_tools.sources.stream_json import TOP, read_lists
from wholegrain.data.corpus import Corpus
from wholegrain.data.corpus_manifest import MANIFEST
from wholegrain.errors import DataError

SPACES = {
    "refcoco": "coco",
    "refcoco+": "coco",
    "refcocog": "coco",
    "grefcoco": "coco",
    "karpathy": "coco",
    "flickr30k": "flickr30k",
    "referit": "saiapr",
}
"""The sets known by name, and what their photos' bare numbers belong to."""

PUBLISHED = {
    "refcoco": {"val": 1500, "testA": 750, "testB": 750},
    "refcoco+": {"val": 1500, "testA": 750, "testB": 750},
    "refcocog": {"val": 1300, "test": 2600},
    "grefcoco": {"val": 1500, "testA": 750, "testB": 750},
    "karpathy": {"val": 5000, "test": 5000},
    "flickr30k": {"val": 1000, "test": 1000},
}
"""Photos of the published splits: with fewer, a set is not wholly protected."""

# Flickr8k's file of the archive is left aside: its test photos are Flickr30k's training photos.
_KARPATHY = ("dataset_coco.json", "dataset_flickr30k.json")
_PLACES = {
    "karpathy": ("karpathy", *_KARPATHY),
    "flickr30k": ("flickr30k_entities", "flickr30k"),
    "referit": ("referit", "referitgame", "refclef", "refer/refclef"),
}
_FETCHED_AS = {"flickr30k": "flickr30k_entities", "referit": "referitgame"}
_DEEPEST = 2  # such as refcoco/refcoco below what was fetched

FORMS = (
    "a corpus (folder or address) with its val and test splits; refs(*).p or grefs(*).json of the "
    "refer tool, or their folder; Karpathy's dataset_coco.json or dataset_flickr30k.json; the "
    "folder with Flickr30k's val.txt and test.txt; or a .txt with one photo id a line"
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", re.ASCII)
_TRAINING = re.compile(r"train|restval", re.IGNORECASE)
_EVALUATION = re.compile(r"val|minival|dev|test", re.IGNORECASE)
_REFS = re.compile(r"g?refs\((?P<division>.+)\)\.(?:p|json)")
_LINE_LIMIT = 4096

Split = tuple[str, str]
"""Name of a set, name of its split."""


def is_evaluation(split: str) -> bool:
    """Whether a split's name says that it is held out; any other may be trained on."""
    return _EVALUATION.match(split) is not None


@dataclass
class ProtectedSet:
    """One named set.

    ``splits`` holds the photo identities of each split that is not for training; ``corpora`` those
    of its sources that have the photos too; ``notes`` what a reader should know.
    """

    name: str
    splits: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    forms: list[str] = field(default_factory=list)
    corpora: list[Corpus] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def digest(self) -> str:
        """SHA-256 of the splits and their photos."""
        content = {split: sorted(photos) for split, photos in sorted(self.splits.items())}
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class Protected:
    """The union of several sets: each photo, and the splits that it stands in.

    Attributes:
        sets: in the order asked for.
        columns: all splits, in the order of the sets.
        photos: identity to the numbers of its columns.
    """

    def __init__(self, sets: list[ProtectedSet]) -> None:
        self.sets = sets
        self.columns: list[Split] = [
            (one.name, split) for one in sets for split in sorted(one.splits, key=_in_order)
        ]
        self.photos: dict[str, tuple[int, ...]] = {}
        for number, (name, split) in enumerate(self.columns):
            for photo in next(one for one in sets if one.name == name).splits[split]:
                self.photos[photo] = (*self.photos.get(photo, ()), number)

    @property
    def spaces(self) -> set[str]:
        """What the identities belong to: ``coco``, ``flickr30k``, ..."""
        return {photo.partition("/")[0] for photo in self.photos}


def parse_against(words: Iterable[str], folders: Sequence[Path]) -> Protected:
    """Read all sets of ``NAME[=PATH],...``; a name given twice unites its sources.

    Args:
        words: each with one set or several, separated by commas.
        folders: where a set without a path is looked for.

    Raises:
        DataError: an unknown name, nothing found under it, or a source that cannot be read.
    """
    sets: dict[str, ProtectedSet] = {}
    for item in (item.strip() for word in words for item in word.split(",")):
        if not item:
            continue
        name, equals, path = item.partition("=")
        if not _NAME.fullmatch(name):
            raise DataError(f"--against {item}: {name!r} is no name; write NAME or NAME=PATH")
        if not equals and name not in SPACES:
            raise DataError(
                f"--against {item}: no set of that name is known ({', '.join(SPACES)}); give it a "
                f"source: {name}=PATH"
            )
        one = sets.setdefault(name, ProtectedSet(name))
        if "://" in path:
            _read_corpus(one, path)
        else:
            for place in [Path(path)] if equals else _lying_in(folders, name):
                _read(one, place)
        if not one.splits:
            raise DataError(f"--against {item}: no photo outside of its training split")
    for one in sets.values():
        _compare_published(one)
    if not sets:
        raise DataError("--against: names no set; write for instance --against refcoco,flickr30k")
    return Protected(list(sets.values()))


def _compare_published(one: ProtectedSet) -> None:
    if one.forms == ["ids"]:
        return  # a list of its own making
    published = PUBLISHED.get(one.name, {})
    found = {split: len(one.splits.get(split, ())) for split in published}
    short = [
        f"{split} {found[split]:,} of {count:,}"
        for split, count in published.items()
        if found[split] < count
    ]
    if short:
        one.notes.append(
            f"{one.name} has fewer photos than published ({', '.join(short)}); the others are not "
            "protected"
        )


def _lying_in(folders: Sequence[Path], name: str) -> list[Path]:
    """Where a set known by name lies in folders of corpora and downloads."""
    names = _PLACES.get(name, (name, f"refer/{name}"))
    for folder in folders:
        if found := [folder / each for each in names if (folder / each).exists()]:
            # Karpathy's two files are halves of one set; elsewhere one place says it all.
            return found if all(path.is_file() for path in found) else found[:1]
    looked = ", ".join(str(folder / each) for folder in folders for each in names)
    raise DataError(
        f"--against {name}: none of {looked} exists; get it with `python -m data_tools fetch "
        f"{_FETCHED_AS.get(name, name)} --unpack`, look elsewhere with --protected DIR, or give "
        f"its place: --against {name}=PATH, where PATH is {FORMS}"
    )


def _read(one: ProtectedSet, path: Path) -> None:
    """Add a source to a set."""
    if path.is_dir():
        _read_folder(one, path)
    elif not path.is_file():
        raise DataError(f"--against {one.name}: {path}: no such file or folder; PATH is {FORMS}")
    elif _REFS.fullmatch(path.name) or path.suffix == ".p":
        _add(one, "refs", _refs(path, SPACES.get(one.name, "coco")))
    elif path.suffix == ".json":
        _add(one, "karpathy", _karpathy(path))
    elif path.suffix == ".txt":
        _add(one, "ids", (("listed", photo) for photo in _listed(path, SPACES.get(one.name))))
    else:
        raise DataError(f"--against {one.name}: {path}: of no known form; PATH is {FORMS}")


def _read_folder(one: ProtectedSet, folder: Path) -> None:
    if (folder / MANIFEST).is_file():
        _read_corpus(one, folder)
        return
    below = _nearest_files(folder)
    if refs := [path for path in below if _REFS.fullmatch(path.name)]:
        for path in _divisions(one, folder, refs):
            _add(one, "refs", _refs(path, SPACES.get(one.name, "coco")))
    elif files := [path for path in below if path.name in _KARPATHY]:
        for path in files:
            _add(one, "karpathy", _karpathy(path))
    elif lists := [path for path in below if path.name in ("val.txt", "test.txt")]:
        for path in lists:
            photos = _listed(path, SPACES.get(one.name, "flickr30k"))
            _add(one, "lists", ((path.stem, photo) for photo in photos))
    else:
        raise DataError(f"--against {one.name}: {folder}: of no known form; PATH is {FORMS}")


def _read_corpus(one: ProtectedSet, place: Path | str) -> None:
    corpus = Corpus.open(place)
    _add(one, "corpus", _of_corpus(corpus))
    one.corpora.append(corpus)


def _nearest_files(folder: Path) -> list[Path]:
    """The files that a set may be read from, of the first level of folders that has any."""
    level = [folder]
    for _ in range(_DEEPEST + 1):
        entries = [path for place in level for path in sorted(place.iterdir())]
        wanted = (*_KARPATHY, "val.txt", "test.txt")
        found = [path for path in entries if path.name in wanted or _REFS.fullmatch(path.name)]
        if found:
            return found
        level = [path for path in entries if path.is_dir()]
    return []


def _divisions(one: ProtectedSet, folder: Path, refs: list[Path]) -> list[Path]:
    """The refs files to read, of one folder."""
    places = {path.parent for path in refs}
    if len(places) > 1:
        if folder / one.name not in places:
            listed = ", ".join(sorted(str(place) for place in places))
            raise DataError(f"--against {one.name}: several refer folders ({listed}); name one")
        refs = [path for path in refs if path.parent == folder / one.name]
    others = [path for path in refs if "(google)" not in path.name]
    if others and len(others) < len(refs):
        # Google's division has no public test split or shares photos with its training split:
        # whoever still reports it names the file.
        one.notes.append(f"{one.name}: the google division is left out; name its file to add it")
        return others
    return refs


def _add(one: ProtectedSet, form: str, photos: Iterable[Split]) -> None:
    if form not in one.forms:
        one.forms.append(form)
    for split, photo in photos:
        if not _NAME.fullmatch(split):
            raise DataError(f"--against {one.name}: {split!r} is no name of a split; mend the file")
        if not _TRAINING.match(split):
            one.splits[split].add(photo)


def _of_corpus(corpus: Corpus) -> Iterator[Split]:
    for split in corpus.splits:
        if not _TRAINING.match(split):
            view = corpus.select(split)
            for number in range(len(view)):
                yield split, view.record(number).photo_id


def _refs(path: Path, space: str) -> Iterator[Split]:
    if path.suffix == ".p":
        entries = read_plain_pickle(path)
        if not isinstance(entries, list):
            raise DataError(f"{path}: a {type(entries).__name__} instead of a list of refs")
    else:
        entries = (item for batch in read_lists(path, [TOP]) for item in batch.items)
    for number, entry in enumerate(entries):
        try:
            yield str(entry["split"]), _known(entry["image_id"], space)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: ref {number}: {error!r}; every ref needs split and image_id"
            ) from None


def _karpathy(path: Path) -> Iterator[Split]:
    """``images[]`` of Karpathy's files: COCO's have a ``cocoid``, Flickr's a ``filename``."""
    number = 0
    for batch in read_lists(path, ["images"]):
        for number, entry in enumerate(batch.items, batch.first):
            try:
                yield str(entry["split"]), _karpathy_photo(entry)
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{path}: images[{number}]: {error!r}; every image needs split, and cocoid or "
                    "filename"
                ) from None


def _karpathy_photo(entry: dict[str, Any]) -> str:
    if "cocoid" in entry:
        return _known(entry["cocoid"], "coco")
    return _known(entry["filename"], "flickr30k")


def _listed(path: Path, space: str | None) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        number = 0
        while line := file.readline(_LINE_LIMIT):
            number += 1
            if line.isspace() or line.startswith("#"):
                continue
            photo = photo_id(line, space)
            if photo is None:
                raise DataError(
                    f"{path}: line {number}: {line.strip()[:80]!r} is no photo id; write one a "
                    "line, such as coco/391895"
                )
            yield photo


def _known(value: Any, space: str) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"image id {value!r}")
    photo = photo_id(value, space)
    if photo is None:
        raise ValueError(f"image id {value!r}")
    return photo


def _in_order(split: str) -> tuple[int, str]:
    usual = ("val", "test", "testA", "testB", "testC")
    return (usual.index(split) if split in usual else len(usual), split)
