"""Records out of plain WebDataset samples: an image with a caption in ``.txt`` or ``.json``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wholegrain.data.record import SCHEMA, Record, parse_record
from wholegrain.data.record_parse import Fields, is_sound, load_json
from wholegrain.errors import DataError, RecordError

# Fields under which tools such as img2dataset put the caption.
CAPTION_FIELDS = ("caption", "captions", "text", "txt")


def is_record(meta: dict[str, Any]) -> bool:
    """Whether a sample's JSON is meant as a record of ours, right or wrong."""
    return "schema" in meta and not meta.keys().isdisjoint(("captions", "regions", "absent"))


def plain_meta(raw: bytes, where: str) -> dict[str, Any]:
    """The sample's JSON object, empty where there is none."""
    return load_json(raw, where) if raw else {}


def split_key(name: str) -> tuple[str, str]:
    """A member's key and lower-case extension, cut at the first dot of the base name.

    That is WebDataset's rule; a name without a dot, or with nothing before it, has no extension.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (folder + slash + stem, extension.lower()) if stem else (name, "")


def plain_id(shard: Path, member: str) -> str:
    """The id of a plain sample: keys repeat from tar to tar, so the tar's name is part of it."""
    return f"{_stem(shard)}/{split_key(member)[0]}"


def check_names(shards: Iterable[Path]) -> None:
    """DataError if two tars of plain samples have one name, and their samples so one id."""
    named: dict[str, Path] = {}
    for shard in shards:
        other = named.setdefault(_stem(shard), shard)
        if other is not shard:
            raise DataError(
                f"{other} and {shard}: both are called {_stem(shard)!r}, so their samples would "
                "share ids; rename one of them, or index the folders apart"
            )


def _stem(shard: Path) -> str:
    return shard.name.removesuffix(".tar")


def plain_captions(meta: dict[str, Any], text: bytes, where: str) -> tuple[str, ...]:
    """The sample's captions: the ``.txt`` if it says something, else the JSON's; maybe none.

    Raises:
        RecordError: a caption that no record may hold: not UTF-8, too long.
    """
    try:
        caption = text.decode().strip()
    except UnicodeDecodeError as error:
        remedy = f"not UTF-8 ({error.reason}); write it again"
        raise RecordError(where, "text", text[:80], remedy) from None
    if caption:
        return _checked((caption,), where)
    for field in CAPTION_FIELDS:
        value = meta.get(field)
        values = value if isinstance(value, list) else [value]
        captions = tuple(item.strip() for item in values if isinstance(item, str) and item.strip())
        if captions:
            return _checked(captions, where)
    return ()


def _checked(captions: tuple[str, ...], where: str) -> tuple[str, ...]:
    return Fields({"captions": captions}, where, "").texts("captions")


def plain_size(meta: dict[str, Any]) -> tuple[int, int] | None:
    """Width and height in px where the JSON gives both."""
    size = meta.get("width"), meta.get("height")
    if all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in size):
        return size  # type: ignore[return-value]
    return None


def plain_record(
    meta: dict[str, Any],
    captions: tuple[str, ...],
    size: tuple[int, int],
    *,
    sample_id: str,
    source: str,
    split: str,
    where: str,
) -> Record:
    """Puts the parts together and checks the result like any record."""
    licence = meta.get("license")
    raw = {
        "schema": SCHEMA,
        "id": sample_id,
        "source": source,
        "split": split,
        "width": size[0],
        "height": size[1],
        "captions": list(captions),
        "license": licence if is_sound(licence) else None,
    }
    return parse_record(raw, where)
