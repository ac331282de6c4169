"""One name for one photo, however a file or an annotation calls it.

COCO's photos keep their number in all years: ``COCO_train2014_000000391895.jpg``,
``val2017/000000391895.jpg`` and 391895 are ``coco/391895``. Flickr30k's and Flickr8k's are named
after the number that Flickr gave them.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

_COCO_FILE = re.compile(r"COCO_(?:train|val|test)\d{4}_(?P<number>\d{12})(?:_\d+)?", re.ASCII)
_IDENTITY = re.compile(r"(?P<set>[a-z][a-z0-9_+-]*)/(?P<rest>\S+)", re.ASCII)
# Flickr8k's files carry Flickr's secret after the number.
_FLICKR = re.compile(r"(?P<number>\d+)(?:_[0-9a-f]+)?", re.ASCII)
_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def photo_id(name: str | int, space: str | None) -> str | None:
    """The identity of the photo that ``name`` calls, or None if it calls none.

    Args:
        name: an identity (``coco/391895``), a number, or a file's name with or without folders.
        space: what a bare number or file name belongs to: ``coco``, ``flickr30k``, ...; None
            takes identities, and COCO's names of 2014 that speak for themselves.
    """
    text = str(name).strip()
    path = PurePosixPath(text.replace("\\", "/"))
    stem = path.stem if path.suffix.lower() in _IMAGE_SUFFIXES else path.name
    if found := _COCO_FILE.fullmatch(stem):
        return f"coco/{int(found['number'])}"
    if stem == path.name and (found := _IDENTITY.fullmatch(text)):
        number = found["rest"]
        return f"coco/{int(number)}" if found["set"] == "coco" and number.isdecimal() else text
    if space is None or not stem or any(sign.isspace() for sign in stem):
        return None
    if space == "coco":
        return f"coco/{int(stem)}" if stem.isascii() and stem.isdecimal() else None
    if space == "flickr30k":
        found = _FLICKR.fullmatch(stem)
        return f"flickr30k/{found['number']}" if found else None
    return f"{space}/{stem}"


def photo_space(identity: str) -> str:
    """The data set that an identity belongs to: ``coco`` of ``coco/391895``."""
    return identity.partition("/")[0]
