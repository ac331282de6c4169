"""``manifest.json``: what a corpus holds. Written last, so a folder with one is complete."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wholegrain.data.index_file import INDEX
from wholegrain.data.record import Record
from wholegrain.errors import DataError

MANIFEST = "manifest.json"
MANIFEST_SCHEMA = 1
# Samples carry our record, or the .txt/.json of a plain WebDataset.
LAYOUT_RECORDS, LAYOUT_PLAIN = "records", "plain"

_HASH_CHUNK = 1 << 20

_FIELDS: dict[str, type] = {
    "name": str,
    "layout": str,
    "source": dict,
    "counts": dict,
    "splits": dict,
    "split_ids": list,
    "fingerprint": str,
    "index": dict,
    "shards": list,
}
_SHARD_FIELDS: dict[str, type] = {"file": str, "sha256": str, "bytes": int, "samples": int}


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One tar: ``file`` is a name in the corpus folder, or an absolute path if indexed in place."""

    file: str
    sha256: str
    bytes: int
    samples: int


class Tally:
    """Counts what the records of a corpus hold, and numbers its splits in order of appearance."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._splits: Counter[str] = Counter()
        self.split_ids: dict[str, int] = {}

    def add(self, record: Record) -> int:
        """Counts one record; returns the number of its split."""
        counts = self._counts
        counts["images"] += 1
        counts["captions"] += len(record.captions)
        for region in record.regions:
            counts["objects" if region.grain == "object" else "regions"] += 1
            if region.grain == "region":
                counts["phrases"] += len(region.texts)
            if region.ref is not None:
                counts["expressions"] += len(region.texts)
        self._splits[record.split] += 1
        return self.split_ids.setdefault(record.split, len(self.split_ids))

    @property
    def images(self) -> int:
        """Records counted so far."""
        return self._counts["images"]

    def counts(self) -> dict[str, int]:
        """Images, captions, region and object boxes, region texts, referring expressions."""
        names = ("images", "captions", "regions", "objects", "phrases", "expressions")
        return {name: self._counts[name] for name in names}

    def splits(self) -> dict[str, int]:
        """Images by split, in order of first appearance."""
        return {split: self._splits[split] for split in self.split_ids}


def corpus_fingerprint(shards: Sequence[ShardInfo]) -> str:
    """sha256 over the shards' sha256, in order: a name for the corpus's exact content."""
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(bytes.fromhex(shard.sha256))
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_manifest(
    folder: Path,
    *,
    name: str,
    layout: str,
    source: dict[str, Any],
    tally: Tally,
    shards: Sequence[ShardInfo],
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes the manifest aside, makes it durable and renames it; returns it.

    The index must be there already. ``extra`` adds fields.

    Raises:
        DataError: there is no sample.
    """
    if not tally.images:
        raise DataError(f"{folder}: no sample, so no corpus is made; check the source's paths")
    manifest = {
        "schema": MANIFEST_SCHEMA,
        "name": name,
        "layout": layout,
        "source": source,
        "counts": tally.counts(),
        "splits": tally.splits(),
        "split_ids": list(tally.split_ids),
        "fingerprint": corpus_fingerprint(shards),
        "index": {"rows": tally.images, "sha256": file_sha256(folder / INDEX)},
        "shards": [asdict(shard) for shard in shards],
        **(extra or {}),
    }
    aside = folder / f".{MANIFEST}.partial-{os.getpid()}"
    try:
        with open(aside, "w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1, ensure_ascii=False, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        aside.replace(folder / MANIFEST)
    finally:
        aside.unlink(missing_ok=True)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads and checks a corpus folder's manifest.

    Raises:
        DataError: there is none (the remedy says what the folder looks like instead), or it is
            damaged or newer than this program.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(_absent(folder, error)) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged ({error}); run `data_tools index` on it") from None
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != MANIFEST_SCHEMA:
        remedy = f"this version reads {MANIFEST_SCHEMA}: update wholegrain or convert again"
        raise DataError(f"{path}: schema is {schema!r}; {remedy}")
    _check_types(manifest, _FIELDS, path, "")
    if manifest["layout"] == LAYOUT_PLAIN:
        _check_types(manifest, {"plain": dict}, path, "")
        _check_types(manifest["plain"], {"source": str, "split": str}, path, "plain.")
    elif manifest["layout"] != LAYOUT_RECORDS:
        raise DataError(f"{path}: layout is {manifest['layout']!r}; run `data_tools index` on it")
    for position, shard in enumerate(manifest["shards"]):
        if not isinstance(shard, dict):
            raise DataError(f"{path}: shards[{position}] is {shard!r}; run `data_tools index`")
        _check_types(shard, _SHARD_FIELDS, path, f"shards[{position}].")
    if not manifest["shards"] or not manifest["index"].get("rows"):
        raise DataError(f"{path}: the corpus is empty; convert or index it again")
    return manifest


def _absent(folder: Path, error: OSError) -> str:
    if not folder.is_dir():
        return f"{folder}: no such corpus folder; check the path, or convert the source first"
    if any(folder.glob("*.tar")):
        return f"{folder}: holds tars but no {MANIFEST}; run `python -m data_tools index {folder}`"
    return f"{folder}: no corpus, {MANIFEST} cannot be read ({error.strerror}); check the path"


def _check_types(values: dict[str, Any], types: dict[str, type], path: Path, prefix: str) -> None:
    for key, kind in types.items():
        if not isinstance(values.get(key), kind):
            found = values.get(key)
            raise DataError(
                f"{path}: {prefix}{key} is {found!r}, not a {kind.__name__}; "
                "run `data_tools index` on the folder"
            )
