"""Writes a corpus in one go: WebDataset tars with index and manifest, complete or not there."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from wholegrain.data.corpus_manifest import MANIFEST
from wholegrain.data.part import PartWriter, assemble
from wholegrain.data.record import Record
from wholegrain.data.shard_folder import atomic_folder
from wholegrain.data.shard_image import ImageKind
from wholegrain.errors import DataError


class ShardWriter:
    """Context manager that turns records and images into the corpus folder ``out``.

    The same records in the same order give the same bytes and so the same fingerprint. Nothing
    appears at ``out`` before a clean exit; an exception inside the block leaves no trace. A corpus
    that is too large for one process to write is written in parts, see :mod:`wholegrain.data.part`.

    Args:
        out: folder to make.
        source: kept in the manifest: the converter, its arguments and ``key``, a digest of its
            inputs by which a later run can tell that nothing changed.
        max_samples, max_bytes: a shard is closed when either would be exceeded.
        overwrite: replace an existing corpus at ``out``, at the end.

    Raises:
        DataError: ``out`` exists; nothing was written by the end; the disk is full.
    """

    def __init__(
        self,
        out: Path | str,
        *,
        source: dict[str, Any],
        max_samples: int = 1000,
        max_bytes: int = 256 << 20,
        overwrite: bool = False,
    ) -> None:
        if max_samples < 1 or max_bytes < 1:
            raise DataError(f"{out}: max_samples and max_bytes must be at least 1")
        self.out = Path(out)
        self.manifest: dict[str, Any] = {}
        json.dumps(source)  # a value that no manifest can hold must not surface after hours of work
        self._source, self._overwrite = source, overwrite
        self._max_samples, self._max_bytes = max_samples, max_bytes

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._folder = stack.enter_context(
                atomic_folder(self.out, overwrite=self._overwrite, marker=MANIFEST)
            )
            # Left in reverse order: the part, the manifest, the folder's rename.
            stack.push(self._assemble)
            self._part = stack.enter_context(
                PartWriter(
                    self._folder,
                    0,
                    max_samples=self._max_samples,
                    max_bytes=self._max_bytes,
                    label=self.out,
                )
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._stack.__exit__(kind, error, trace)
        except OSError as fault:
            if fault is error:
                raise
            remedy = "free space and rerun"
            raise DataError(
                f"{self.out}: cannot be written ({fault.strerror}); {remedy}"
            ) from fault

    def write(self, record: Record, image: bytes, ext: ImageKind) -> None:
        """Appends one sample; see :meth:`wholegrain.data.part.PartWriter.write`."""
        self._part.write(record, image, ext)

    def _assemble(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            name = str(self._source.get("name", self.out.name))
            self.manifest = assemble(self._folder, 1, name=name, source=self._source)
