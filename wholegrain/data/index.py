"""Makes the index of tars that are already there: ours after a loss, or anybody's in place."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from wholegrain.data.assemble import Part, Tally, assemble_corpus
from wholegrain.data.corpus_files import ShardFiles
from wholegrain.data.corpus_manifest import (
    LAYOUT_PLAIN,
    LAYOUT_RECORDS,
    MANIFEST,
    file_sha256,
    read_manifest,
)
from wholegrain.data.index_file import (
    INDEX,
    INDEX_DTYPE,
    IndexWriter,
    id_hash,
    index_row,
    open_index,
)
from wholegrain.data.index_scan import Sample, scan_samples
from wholegrain.data.record import Record, parse_record
from wholegrain.data.record_plain import (
    check_names,
    is_record,
    plain_captions,
    plain_id,
    plain_meta,
    plain_record,
)
from wholegrain.data.shard_folder import atomic_folder, locked_folder
from wholegrain.data.shard_image import IMAGE_KINDS
from wholegrain.data.shard_table import SHARDS, ShardInfo, ShardTable
from wholegrain.data.shard_tar import BLOCK
from wholegrain.errors import DataError, RecordError

__all__ = ["INDEX", "INDEX_DTYPE", "index_tars", "open_index", "write_index"]

Progress = Callable[[str], None]


def index_tars(
    paths: Iterable[Path | str],
    out: Path | str,
    *,
    source: str,
    split: str = "train",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Makes the corpus ``out`` of tars that stay where they are.

    Args:
        paths: WebDataset tars, of our records or of images with ``.txt`` or ``.json`` captions.
            They are taken in the order of their sorted paths.
        out: folder for index and manifest; it names the tars by absolute path.
        source, split: what plain samples do not say of themselves; our records do.
        overwrite: replace an existing corpus at ``out``.
        progress: called with each tar's name when it is done.

    Returns:
        The manifest. ``skipped`` counts samples that were left out, by reason.

    Raises:
        DataError: no tar, no usable sample, a tar that is damaged or not to be trusted, or two
            tars of plain samples that have one name.
    """
    tars = sorted({Path(os.path.abspath(path)) for path in paths})
    out = Path(out)
    with atomic_folder(out, overwrite=overwrite, marker=MANIFEST) as folder:
        return _Indexer(source, split).run(
            folder, tars, [str(path) for path in tars], out.name, {"converter": "index"}, progress
        )


def write_index(
    folder: Path | str,
    *,
    source: str | None = None,
    split: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes index and manifest beside the tars in ``folder``, anew if they are there.

    What is not given and the scan cannot know (name, origin, a plain corpus's source and split) is
    taken from the existing manifest if there is one, else from the folder's name and "train".
    Arguments, result and errors otherwise as in :func:`index_tars`.
    """
    folder = Path(os.path.abspath(folder))
    with locked_folder(folder):
        for leftover in folder.glob(".*.partial-*"):  # of runs that were killed
            leftover.unlink()
        try:
            old = read_manifest(folder)
        except DataError:  # absent or damaged: this is how to mend it
            old = {}
        tars = sorted(folder.glob("*.tar"))
        files = [path.name for path in tars]
        if not tars and old:  # an index made in place elsewhere
            files = [shard.file for shard in ShardTable.open(folder / SHARDS)]
            tars = [folder / file for file in files]
        plain = {"source": folder.name, "split": "train", **old.get("plain", {})}
        indexer = _Indexer(source or plain["source"], split or plain["split"])
        return indexer.run(
            folder,
            tars,
            files,
            old.get("name", folder.name),
            old.get("source", {"converter": "index"}),
            progress,
        )


class _Indexer:
    """Scans tars into one index."""

    def __init__(self, source: str, split: str) -> None:
        self._source, self._split = source, split
        self._tally, self._skipped = Tally(), Counter[str]()
        self._layout: str | None = None

    def run(
        self,
        folder: Path,
        tars: list[Path],
        files: list[str],
        name: str,
        origin: dict[str, Any],
        progress: Progress | None,
    ) -> dict[str, Any]:
        """Writes the index and then the manifest into ``folder``, each aside first."""
        if not tars:
            raise DataError(f"{folder}: no tar to index; check the path or pattern")
        sizes = [_size(path) for path in tars]
        self._tars = tars
        self._files = ShardFiles(tars, sizes)
        aside = folder / f".rows.partial-{os.getpid()}"
        shards = []
        try:
            with IndexWriter(aside) as writer:
                for number, (path, file) in enumerate(zip(tars, files, strict=True)):
                    samples = self._add_tar(path, number, writer)
                    shards.append(ShardInfo(file, file_sha256(path), sizes[number], samples))
                    if progress is not None:
                        progress(path.name)
            if not self._tally.images:
                skipped = f" (left out: {dict(self._skipped)})" if self._skipped else ""
                raise DataError(
                    f"{folder}: the tars hold no image with a text{skipped}; check them"
                )
            layout = self._layout or LAYOUT_PLAIN
            extra: dict[str, Any] = {"skipped": dict(sorted(self._skipped.items()))}
            if layout == LAYOUT_PLAIN:
                extra["plain"] = {"source": self._source, "split": self._split}
            part = Part(aside, shards, self._tally)
            return assemble_corpus(
                folder, [part], name=name, layout=layout, source=origin, extra=extra
            )
        finally:
            aside.unlink(missing_ok=True)

    def _add_tar(self, path: Path, shard: int, writer: IndexWriter) -> int:
        before = self._tally.images
        for sample in scan_samples(path):
            self._add_sample(sample, path, shard, writer)
        return self._tally.images - before

    def _add_sample(self, sample: Sample, path: Path, shard: int, writer: IndexWriter) -> None:
        found = sample.image()
        if found is None:
            self._skipped["without_image"] += bool(sample.members)
            return
        image, kind = found
        meta, text = sample.members.get("json"), sample.members.get("txt")
        raw_meta, raw_text = (
            self._files.read(shard, member.data, member.size) if member else b""
            for member in (meta, text)
        )
        record = self._record(sample.key, raw_meta, raw_text, path, image.name)
        if record is None:
            return
        writer.add(
            index_row(
                image=image.data,
                image_bytes=image.size,
                meta=meta.data if meta else 0,
                meta_bytes=len(raw_meta),
                text=text.data if text else 0,
                text_bytes=len(raw_text),
                id=id_hash(record.photo_id),
                shard=shard,
                captions=len(record.captions),
                regions=len(record.regions),
                split=self._tally.add(record),
                kind=IMAGE_KINDS.index(kind),
                head=(image.data - image.header) // BLOCK,
            )
        )

    def _record(self, key: str, meta: bytes, text: bytes, path: Path, member: str) -> Record | None:
        """The sample's record; None, counted, if it is a plain sample that says nothing."""
        where = f"{path}:{key}.json"
        try:
            fields = plain_meta(meta, where)
            layout = LAYOUT_RECORDS if is_record(fields) else LAYOUT_PLAIN
            captions = plain_captions(fields, text, where) if layout == LAYOUT_PLAIN else ()
        except RecordError:
            # Foreign tars have such samples; one among millions must not stop the rest.
            self._skipped["unreadable_text"] += 1
            return None
        if layout == LAYOUT_PLAIN and not captions:
            self._skipped["without_text"] += 1
            return None
        if self._layout not in (None, layout):
            raise DataError(f"{where}: a {layout} sample among {self._layout}; index them apart")
        if self._layout is None and layout == LAYOUT_PLAIN:
            check_names(self._tars)  # which plain samples are called after
        self._layout = layout
        if layout == LAYOUT_RECORDS:
            return parse_record(meta, where)
        # The size is not indexed, so the image need not be read here.
        return plain_record(
            fields,
            captions,
            (1, 1),
            sample_id=plain_id(path, member),
            source=self._source,
            split=self._split,
            where=where,
        )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror}); check the path") from None
