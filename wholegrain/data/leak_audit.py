"""What `data_tools audit` found: which corpora were searched for which evaluation photos.

Training reads it before the first step and refuses corpora that were not audited or that leak; a
release's card repeats it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wholegrain.data.corpus import Corpus
from wholegrain.errors import ConfigError, DataError

AUDIT_SCHEMA = 1
STATEMENT = "leak_audit.md"
"""File of a checkpoint with what the audit said of the photos that it learnt from."""
USUAL_SETS = "refcoco,refcoco+,refcocog,flickr30k,karpathy"

_MAX_BYTES = 1 << 30
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class AuditedSplit:
    """One split of a corpus. ``leaked`` counts the protected photos in it, by set and split."""

    rows: int
    audited: bool
    leaked: int
    by_column: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class AuditedCorpus:
    """One corpus. ``identified`` is false where its photos carry no identity to compare."""

    name: str
    fingerprint: str
    identified: bool
    splits: Mapping[str, AuditedSplit]


@dataclass(frozen=True, slots=True)
class LookAlikeRow:
    """A row found by its looks: its record's source, id and photo, and what it shows."""

    source: str
    id: str
    photo: str | None
    shows: str
    turn: str


@dataclass(frozen=True)
class LeakAudit:
    """A read ``audit.json``.

    Attributes:
        path: the file.
        columns: the protected splits, each as "SET SPLIT".
        sets: set to its splits and their numbers of photos.
        photos: identity of each protected photo to the numbers of its columns.
        compared: protected photos that were compared by image hash; None if none was to be.
        corpora: by fingerprint.
        look_alikes: rows found by image hash.
    """

    path: Path
    columns: tuple[str, ...]
    sets: Mapping[str, Mapping[str, int]]
    photos: Mapping[str, tuple[int, ...]]
    compared: int | None
    corpora: Mapping[str, AuditedCorpus]
    look_alikes: tuple[LookAlikeRow, ...]

    @classmethod
    def load(cls, path: Path | str) -> LeakAudit:
        """Reads the file.

        Raises:
            DataError: it is absent, damaged or of another version.
        """
        path = Path(path)
        content = _read(path)
        try:
            return _parse(path, content)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise DataError(
                f"{path}: damaged ({error!r}); run `python -m data_tools audit` again"
            ) from None

    def command(self, corpora: Iterable[Corpus], splits: Iterable[str] = ()) -> str:
        """The command that audits these corpora against the same sets."""
        return audit_command(
            corpora, self.path, sets=self.sets, splits=splits, by_hash=self.compared is not None
        )

    def statement(self, corpora: Sequence[Corpus]) -> str:
        """What a card says of corpora that passed :func:`check_audit`, in Markdown."""
        described = "; ".join(
            f"{name} ({', '.join(f'{split} {count:,}' for split, count in splits.items())})"
            for name, splits in self.sets.items()
        )
        how = "by photo id"
        if self.compared is not None:
            how += f" and, for the {self.compared:,} of them that were at hand, by image hash"
        lines = [
            f"Leak audit: none of the {len(self.photos):,} photos of {described} is among the "
            f"training photos, compared {how}."
        ]
        entries = (self.corpora[corpus.manifest["fingerprint"]] for corpus in corpora)
        nameless = sorted({entry.name for entry in entries if not entry.identified})
        if nameless:
            lines.append(f"The photos of {_plain(', '.join(nameless))} carry no such id.")
        return " ".join(lines)


def check_audit(path: str | None, corpora: Sequence[Corpus], field: str) -> str:
    """What the card says of the training photos, once the audit allows to train on them.

    Args:
        path: the audit's file; None checks nothing.
        corpora: what is trained on; a view of a split needs that split audited, not others.
        field: the config's field that names ``path``, for messages.

    Returns:
        The statement, empty without an audit.

    Raises:
        ConfigError: there is no such file, a corpus is not covered by it, or one leaks.
    """
    if path is None:
        return ""
    if not Path(path).is_file():
        raise ConfigError(
            f"{field} is {path!r}, which does not exist; make it with "
            f"`{audit_command(corpora, Path(path))}`, or set {field} to null to train without"
        )
    try:
        audit = LeakAudit.load(path)
    except DataError as error:
        raise ConfigError(f"{field}: {error}") from None
    for corpus in corpora:
        _check_corpus(audit, corpus, corpora, field)
    return audit.statement(corpora)


def release_extras(statement: str) -> dict[str, str]:
    """What a release keeps of an audit's statement, so that those made from it can repeat it."""
    return {"leak_audit": statement} if statement else {}


def audit_command(
    corpora: Iterable[Corpus],
    out: Path,
    *,
    sets: Iterable[str] = (),
    splits: Iterable[str] = (),
    by_hash: bool = False,
) -> str:
    """A command line that audits ``corpora``."""
    folders = list(dict.fromkeys(str(corpus.path) for corpus in corpora))
    words = ["python -m data_tools audit", *folders]
    words += ["--against", ",".join(sets) or USUAL_SETS]
    words += [f"--split {split}" for split in splits]
    words += ["--perceptual"] if by_hash else []
    return " ".join([*words, "--out", str(out)])


def _check_corpus(audit: LeakAudit, corpus: Corpus, corpora: Sequence[Corpus], field: str) -> None:
    entry = audit.corpora.get(corpus.manifest["fingerprint"])
    if entry is None:
        raise ConfigError(
            f"{field}: {audit.path} does not cover {corpus.path} as it is now (fingerprint "
            f"{corpus.manifest['fingerprint'][:12]}); run `{audit.command(corpora)}`"
        )
    for split in [corpus.split] if corpus.split is not None else list(corpus.splits):
        found = entry.splits.get(split)
        if found is None or not found.audited:
            trained = {view.split or "all" for view in corpora}
            raise ConfigError(
                f"{field}: {audit.path} leaves split {split!r} of {corpus.path} out; run "
                f"`{audit.command(corpora, sorted(trained))}`"
            )
        if found.leaked:
            where = ", ".join(f"{column} {count:,}" for column, count in found.by_column if count)
            raise ConfigError(
                f"{field}: by {audit.path}, split {split!r} of {corpus.path} holds "
                f"{found.leaked:,} evaluation photos ({where}); convert it again with "
                f"`--exclude {audit.path}` and audit the result"
            )


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path}: over {_MAX_BYTES >> 20} MiB, no audit; check the path")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); make it with `python -m data_tools audit`"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}); run the audit again") from None
    schema = content.get("audit") if isinstance(content, dict) else None
    if schema != AUDIT_SCHEMA:
        newer = isinstance(schema, int) and schema > AUDIT_SCHEMA
        remedy = "update wholegrain" if newer else "name a file of `python -m data_tools audit`"
        raise DataError(f"{path}: audit is {schema!r}, this version reads {AUDIT_SCHEMA}; {remedy}")
    return content


def _parse(path: Path, content: dict[str, Any]) -> LeakAudit:
    columns = tuple(f"{_name(name)} {_name(split)}" for name, split in content["columns"])
    photos = {
        str(photo): tuple(map(int, group["columns"]))
        for group in content["photos"]
        for photo in group["ids"]
    }
    if any(not 0 <= column < len(columns) for found in photos.values() for column in found):
        raise ValueError("photos of a column that is not listed")
    perceptual = content["perceptual"]
    return LeakAudit(
        path=path,
        columns=columns,
        sets={
            _name(one["name"]): {_name(split): int(n) for split, n in one["splits"].items()}
            for one in content["protected"]
        },
        photos=photos,
        compared=None if perceptual is None else int(perceptual["compared"]),
        corpora={
            entry["fingerprint"]: AuditedCorpus(
                name=str(entry["name"]),
                fingerprint=str(entry["fingerprint"]),
                identified=bool(entry["identified"]),
                splits={
                    str(split): AuditedSplit(
                        rows=int(found["rows"]),
                        audited=bool(found["audited"]),
                        leaked=int(found["leaked"]),
                        by_column=_counts(columns, found),
                    )
                    for split, found in entry["splits"].items()
                },
            )
            for entry in content["corpora"]
        },
        look_alikes=tuple(
            LookAlikeRow(
                source=str(row["source"]),
                id=str(row["id"]),
                photo=row["photo"],
                shows=str(row["shows"]),
                turn=str(row["turn"]),
            )
            for entry in content["corpora"]
            for row in entry["look_alikes"]
        ),
    )


def _counts(columns: Sequence[str], found: dict[str, Any]) -> tuple[tuple[str, int], ...]:
    by_hash = found["by_hash"] or [0] * len(columns)
    counts = [int(a) + int(b) for a, b in zip(found["by_id"], by_hash, strict=True)]
    return tuple(zip(columns, counts, strict=True))


def _name(value: Any) -> str:
    # These stand in a card's Markdown as they are.
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"name {value!r}")
    return value


def _plain(text: str) -> str:
    """Free text without what Markdown or HTML would take for its own."""
    return re.sub(r"([\\`*_<>|\[\]])", r"\\\1", " ".join(text.split()))
