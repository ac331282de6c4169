"""What a conversion leaves out: photos that an audit protects, and rows that look like one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from data_tools.sources.base import Draft
from wholegrain.data.leak_audit import LeakAudit


class Exclusion:
    """The rule of ``convert --exclude``.

    A draft is left out if its photo is protected, whatever the corpus, or if a row of the same
    source and id, or of the same photo, was found to show a protected photo.

    Attributes:
        digest: SHA-256 of all that decides; equal digests leave out the same drafts.
    """

    def __init__(self, audit: LeakAudit) -> None:
        self._columns = audit.columns
        self._photos = dict(audit.photos)
        self._rows: dict[tuple[str, str], str] = {}
        for row in audit.look_alikes:
            columns = audit.photos.get(row.shows, ())
            self._rows[row.source, row.id] = f"{self._first(columns)} (looks the same)"
            if row.photo is not None:
                # Its other records, in this corpus or another, show the same.
                self._photos.setdefault(row.photo, columns)
        content = [
            self._columns,
            sorted(self._photos.items()),
            sorted((*key, reason) for key, reason in self._rows.items()),
        ]
        self.digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @classmethod
    def load(cls, path: Path | str) -> Exclusion:
        """Reads the ``--out`` of an audit. DataError if it is none."""
        return cls(LeakAudit.load(path))

    def __len__(self) -> int:
        """Photos that are left out wherever they occur."""
        return len(self._photos)

    def reason(self, draft: Draft) -> str | None:
        """Why a draft is left out, such as ``refcoco val``; None keeps it."""
        if (columns := self._photos.get(draft.photo or draft.id)) is not None:
            return self._first(columns)
        return self._rows.get((draft.source, draft.id))

    def _first(self, columns: tuple[int, ...]) -> str:
        """One column for a photo of several: reasons are counted, and each photo counts once."""
        return self._columns[columns[0]] if columns else "protected photo"
