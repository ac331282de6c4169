"""``manifest.json``: what a corpus holds. Written last, so a folder with one is complete."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from wholegrain.data.index_file import INDEX
from wholegrain.data.shard_table import SHARDS, ShardTable
from wholegrain.errors import DataError

MANIFEST = "manifest.json"
MANIFEST_SCHEMA = 2
# Samples carry our record, or the .txt/.json of a plain WebDataset.
LAYOUT_RECORDS, LAYOUT_PLAIN = "records", "plain"

_HASH_CHUNK = 1 << 20

_FIELDS: dict[str, type] = {
    "name": str,
    "layout": str,
    "source": dict,
    "counts": dict,
    "splits": dict,
    "fingerprint": str,
    "index": dict,
    "shards": dict,
}


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
    counts: dict[str, int],
    split_counts: dict[str, dict[str, int]],
    table: ShardTable,
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes the manifest aside, makes it durable and renames it; returns it.

    Index and table of shards must be there already. ``extra`` adds fields.
    """
    manifest = {
        "schema": MANIFEST_SCHEMA,
        "name": name,
        "layout": layout,
        "source": source,
        "counts": counts,
        "splits": {split: found["images"] for split, found in split_counts.items()},
        "split_counts": split_counts,
        "fingerprint": table.fingerprint(),
        "index": {"rows": table.total_samples, "sha256": file_sha256(folder / INDEX)},
        "shards": {
            "count": len(table),
            "bytes": table.total_bytes,
            "sha256": file_sha256(folder / SHARDS),
        },
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
            damaged or of another version than this program's.
    """
    try:
        raw = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise DataError(_absent(folder, error)) from None
    return parse_manifest(raw, str(folder / MANIFEST))


def parse_manifest(raw: bytes, path: str) -> dict[str, Any]:
    """Checks a manifest's bytes; ``path`` and errors as in :func:`read_manifest`."""
    try:
        manifest = json.loads(raw)
        json.dumps(manifest, ensure_ascii=False).encode()  # half a surrogate pair ends here
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged ({error}); run `data_tools index` on it") from None
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != MANIFEST_SCHEMA:
        newer = isinstance(schema, int) and schema > MANIFEST_SCHEMA
        remedy = "update wholegrain" if newer else "run `python -m data_tools index` on the folder"
        raise DataError(
            f"{path}: manifest schema is {schema!r}, this version reads {MANIFEST_SCHEMA}; {remedy}"
        )
    _check_types(manifest, _FIELDS, path, "")
    if manifest["layout"] == LAYOUT_PLAIN:
        _check_types(manifest, {"plain": dict}, path, "")
        _check_types(manifest["plain"], {"source": str, "split": str}, path, "plain.")
    elif manifest["layout"] != LAYOUT_RECORDS:
        raise DataError(f"{path}: layout is {manifest['layout']!r}; run `data_tools index` on it")
    _check_types(manifest["shards"], {"count": int, "bytes": int, "sha256": str}, path, "shards.")
    _check_types(manifest["index"], {"rows": int, "sha256": str}, path, "index.")
    splits = manifest["splits"].values()
    if not all(isinstance(count, int) and not isinstance(count, bool) for count in splits):
        raise DataError(f"{path}: splits is {manifest['splits']!r}; run `data_tools index` on it")
    if not manifest["shards"]["count"] or not manifest["index"]["rows"]:
        raise DataError(f"{path}: the corpus is empty; convert or index it again")
    if sum(splits) != manifest["index"]["rows"]:
        raise DataError(
            f"{path}: splits add up to {sum(splits)}, index.rows is {manifest['index']['rows']}; "
            "run `data_tools index` on it"
        )
    return manifest


def _absent(folder: Path, error: OSError) -> str:
    if not folder.is_dir():
        return f"{folder}: no such corpus folder; check the path, or convert the source first"
    if any(folder.glob("*.tar")):
        return f"{folder}: holds tars but no {MANIFEST}; run `python -m data_tools index {folder}`"
    return f"{folder}: no corpus, {MANIFEST} cannot be read ({error.strerror}); check the path"


def _check_types(values: dict[str, Any], types: dict[str, type], path: str, prefix: str) -> None:
    for key, kind in types.items():
        if not isinstance(values.get(key), kind):
            found = values.get(key)
            raise DataError(
                f"{path}: {prefix}{key} is {found!r}, not a {kind.__name__}; "
                "run `data_tools index` on the folder"
            )
