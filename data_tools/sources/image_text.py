"""Image-text pairs in WebDataset tars (``KEY.jpg`` with ``KEY.txt`` and/or ``KEY.json``).

The layout of img2dataset and therefore of SBU, CC3M, CC12M, LAION and the like. ``.txt`` is the
caption; without it, ``caption`` or ``text`` of the ``.json``. Tars are read as a stream, members
with the same key being neighbours, and nothing is extracted to disk. What img2dataset puts beside
its tars (``00000_stats.json``, ``00000.parquet``) is passed over, and a pair that it marks as not
fetched is left out.

A tar that is damaged counts as one bad sample, and what stands before the damage is kept. The same
holds for a tar with links or with names that lead out of it.
"""

from __future__ import annotations

import argparse
import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from data_tools.sources.base import Bad, Draft, Drafts, Source, listing_digest
from data_tools.sources.tar_groups import Group, tar_groups
from wholegrain.data.record_plain import plain_captions, plain_meta
from wholegrain.data.shard_tar import Member
from wholegrain.errors import DataError, RecordError

SUMMARIES = {
    "sbu": "SBU Captions in WebDataset tars, as img2dataset writes them",
    "cc3m": "Conceptual Captions 3M in WebDataset tars, as img2dataset writes them",
    "cc12m": "Conceptual Captions 12M in WebDataset tars, as img2dataset writes them",
}
"""Published sets that come in this layout, each a source of its own name."""

_IMAGES = ("jpg", "jpeg", "png", "webp")  # earlier wins where a sample has several
_BESIDE = ("_stats.json", ".parquet")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``convert image_text``."""
    parser.add_argument(
        "--tars", required=True, nargs="+", metavar="GLOB", help="such as 'cc12m/*.tar'"
    )
    parser.add_argument("--split", default="train", help="name of the split (default: train)")


def open_source(args: argparse.Namespace) -> Source:
    """Open from the command line's options."""
    return read_image_text(
        args.tars,
        split=args.split,
        name=args.name or args.source,
        limit=args.limit,
        published=args.source if args.source in SUMMARIES else None,
    )


def read_image_text(
    tars: Sequence[str],
    *,
    split: str = "train",
    name: str = "image_text",
    limit: int | None = None,
    published: str | None = None,
) -> Source:
    """Open all tars that match the globs; a tar is a unit.

    Args:
        limit: read that many samples at most. The tars before that are walked now to count them.

    Raises:
        DataError: no tar matches, two have the same name, or one cannot be opened.
    """
    found = {Path(path) for tar in tars for path in glob.glob(tar, recursive=True)}
    paths = sorted(path for path in found if not path.name.endswith(_BESIDE))
    if not paths:
        raise DataError(
            f"no file matches --tars {' '.join(tars)}; quote the pattern and check the folder"
        )
    stems = Counter(path.stem for path in paths)
    if repeated := [stem for stem, count in stems.items() if count > 1]:
        raise DataError(
            f"--tars: two files are called {repeated[0]!r}, so their samples would share "
            "ids; convert the folders one by one with different --name"
        )
    reader = _Tars(paths, split, name)
    total = None if limit is None else reader.cut(limit)
    return Source(
        name=name,
        description={
            "reader": "image_text",
            "name": name,
            "split": split,
            "tars": listing_digest((path.name, path.stat().st_size) for path in paths),
        },
        units=len(reader.paths),
        read=reader,
        single=False,
        total=total,
        published=published,
    )


@dataclass(frozen=True, slots=True)
class _Pair:
    id: str
    where: str
    captions: tuple[str, ...]
    image: Member


class _Tars:
    """``Source.read``: unit k is the k-th tar."""

    def __init__(self, paths: list[Path], split: str, name: str) -> None:
        self.paths, self._split, self._name = paths, split, name
        self._of_last: int | None = None  # samples to read of the last tar; None: all

    def cut(self, limit: int) -> int:
        """Keep the first ``limit`` samples only; returns how many there are."""
        seen = 0
        for number, path in enumerate(self.paths):
            with _open(path) as file:
                count = sum(1 for _ in islice(self._pairs(path, file, Counter()), limit - seen))
            seen += count
            if seen == limit:
                self.paths, self._of_last = self.paths[: number + 1], count
                break
        return seen

    def __call__(self, start: int, stop: int, left_out: Counter[str]) -> Drafts:
        for number, path in enumerate(self.paths[start:stop], start):
            last = number == len(self.paths) - 1
            with _open(path) as file:
                pairs = self._pairs(path, file, left_out)
                for item in islice(pairs, self._of_last if last else None):
                    yield item if isinstance(item, Bad) else self._draft(item, file)

    def _draft(self, pair: _Pair, file: BinaryIO) -> Draft:
        return Draft(
            id=pair.id,
            source=self._name,
            split=self._split,
            image=_read(file, pair.image),
            where=pair.where,
            captions=pair.captions,
        )

    def _pairs(self, path: Path, file: BinaryIO, left_out: Counter[str]) -> Iterator[_Pair | Bad]:
        """What a tar holds; photos are not read."""
        prefix = f"{self._name}/{path.stem}"
        for group in tar_groups(path):
            if group.fault and not group.key:
                yield Bad(prefix, *group.fault)
            elif group.fault:
                yield Bad(f"{prefix}/{group.key}", *group.fault)
            elif group.members:  # else members of other suffixes only
                item = _pair(group, f"{prefix}/{group.key}", path, file, left_out)
                if item is not None and not (group.cut_off and isinstance(item, Bad)):
                    yield item


def _pair(
    group: Group, identity: str, path: Path, file: BinaryIO, left_out: Counter[str]
) -> _Pair | Bad | None:
    where = f"{path}:{group.key}"
    members = group.members
    try:
        meta = plain_meta(_read(file, members.get("json")), where)
        if _not_fetched(meta):
            left_out["not fetched (status)"] += 1
            return None
        found = (members[kind] for kind in _IMAGES if kind in members)
        image = next((member for member in found if member.size), None)
        if image is None:
            return Bad(identity, "image: missing", f"{where}: no .jpg, .png or .webp")
        captions = plain_captions(meta, _read(file, members.get("txt")), where)
    except RecordError as error:
        return Bad(identity, "text: broken", str(error))
    if not captions:
        detail = f"{where}: neither a .txt nor a caption in the .json"
        return Bad(identity, "text: missing", detail)
    return _Pair(identity, where, captions, image)


def _not_fetched(meta: dict[str, Any]) -> bool:
    """Whether the JSON is img2dataset's and says so."""
    return "url" in meta and isinstance(meta.get("status"), str) and meta["status"] != "success"


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror}); check the path") from None


def _read(file: BinaryIO, member: Member | None) -> bytes:
    if member is None:
        return b""
    try:
        file.seek(member.data)
        return file.read(member.size)
    except OSError as error:
        raise DataError(f"{file.name}: cannot be read ({error.strerror}); run again") from None
