"""Whose photos a set in COCO's or the refer tool's layout shows.

Both layouts number photos, and anybody's set may begin at 1: only if the photos are COCO's is the
number a name that other data sets know, by which evaluation photos are found in training corpora.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NOBODY = "none"
_COCO = "coco"
_NAMES = re.compile(r"g?(?:ref)?coco")
_YEAR = re.compile(r"COCO_(?:train|val|test)\d{4}_|", re.ASCII)
_OWNER = re.compile(r"[a-z][a-z0-9_+-]*", re.ASCII)


def add_photos_of(parser: argparse.ArgumentParser) -> None:
    """Declare ``--photos-of``."""
    parser.add_argument(
        "--photos-of",
        type=_owner,
        metavar="NAME",
        help="whose photos these are: NAME/ID is then a photo's identity in all data sets; none: "
        "no other set shows them (default: coco for sets named coco*, refcoco* or grefcoco* and "
        "for photos named as COCO's are, such as 000000391895.jpg; none for all others)",
    )


def _owner(text: str) -> str:
    if _OWNER.fullmatch(text):
        return text
    raise argparse.ArgumentTypeError(
        f"{text!r} is no name of a data set; write it in small letters, such as coco, or none"
    )


@dataclass(frozen=True, slots=True)
class PhotoOwner:
    """Tells a photo's identity across data sets.

    Attributes:
        name: the data set whose photos these are; None: a photo's own name says.
        usual: that whose photos sets in this layout show as a rule.
    """

    name: str | None
    usual: str = _COCO

    @classmethod
    def of(cls, given: str | None, set_name: str | None) -> PhotoOwner:
        """By ``--photos-of``, else by the set's name, else by the name of each photo."""
        if given is None and set_name is not None and _NAMES.match(set_name):
            return cls(_COCO)
        return cls(given)

    def identity(self, photo: Path, image_id: int) -> str | None:
        """``coco/391895``; None for a photo that no other data set is known to show."""
        name = self.name
        if name is None:
            number = f"{image_id:012d}"
            own = photo.stem
            years = own.endswith(number) and _YEAR.fullmatch(own.removesuffix(number))
            name = _COCO if years else _NOBODY
        return None if name == _NOBODY else f"{name}/{image_id}"

    def describe(self, identities: Iterable[str | None]) -> dict[str, Any]:
        """What of it belongs into the description of a source with these photos.

        Nothing where all are the usual one's: so they were before there was a choice, and what was
        converted then is up to date.

        Args:
            identities: asked for only where each photo's name says whose it is.
        """
        if self.name is not None:
            return {} if self.name == self.usual else {"photos_of": self.name}
        return {} if all(identities) else {"photos_of": "by their names"}
