"""One data set of the catalogue: each file fetched, found or asked for; then unpacked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx2

from data_tools.fetching.catalogue import DataSet, File
from data_tools.fetching.download import Patience, Report, download
from data_tools.fetching.ledger import Ledger, Receipt, hash_file
from data_tools.fetching.unpack import is_unpacked, unpack
from wholegrain.errors import DataError

State = Literal["fetched", "checked", "up to date", "by hand", "failed", "unpacked"]
Reporting = Callable[[File], AbstractContextManager[Report]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file or folder."""

    name: str
    state: State
    detail: str = ""

    @property
    def good(self) -> bool:
        """Whether the file or folder is there and right."""
        return self.state not in ("by hand", "failed")


@dataclass(frozen=True, slots=True)
class Terms:
    """How a run of ``fetch`` works. ``limit``: most bytes of a file whose size nobody published."""

    patience: Patience
    limit: int = 8 << 30
    rehash: bool = False


def fetch_files(
    files: Iterable[File],
    folder: Path,
    ledger: Ledger,
    client: httpx2.Client | None,
    terms: Terms,
    reporting: Reporting,
) -> Iterator[Outcome]:
    """Bring each file to ``folder``, one after the other; a fault of one does not stop the rest.

    Args:
        client: None: nothing is downloaded, what is missing has failed.
        reporting: opens a progress display for one download.
    """
    for file in files:
        try:
            yield _bring(file, folder, ledger, client, terms, reporting)
        except DataError as error:
            yield Outcome(file.name, "failed", str(error))
        except OSError as error:
            yield Outcome(file.name, "failed", f"{folder / file.name}: {error}")


def unpack_files(
    data_set: DataSet, good: set[str], folder: Path, ledger: Ledger
) -> Iterator[Outcome]:
    """Unpack the folders of the data set; ``good`` names the files that are there and right."""
    groups: dict[str, list[str]] = {}
    for file in data_set.files:
        if file.unpack:
            groups.setdefault(file.unpack, []).append(file.name)
    for to, names in groups.items():
        if not good.intersection(names):
            continue
        if missing := [name for name in names if name not in good]:
            wanting = ", ".join(missing)
            yield Outcome(to, "failed", f"{folder / to}: not unpacked, for want of {wanting}")
            continue
        digests = {name: receipt.sha256 for name in names if (receipt := ledger.get(name))}
        try:
            if is_unpacked(folder / to, digests):
                yield Outcome(to, "up to date", "unpacked")
                continue
            count = unpack([folder / name for name in names], folder / to, digests)
            yield Outcome(to, "unpacked", f"{count:,} files")
        except DataError as error:
            yield Outcome(to, "failed", str(error))


def check_room(files: Iterable[File], folder: Path, free: int) -> None:
    """DataError if the files that are still to come cannot all fit, as far as sizes are known."""
    need = 0
    for file in files:
        if file.bytes is None or not file.urls or (folder / file.name).exists():
            continue
        partial = folder / f"{file.name}.partial"
        need += file.bytes - (min(partial.stat().st_size, file.bytes) if partial.exists() else 0)
    if need > free:
        raise DataError(
            f"{folder}: {need:,} bytes are to come and {free:,} are free; make room, choose "
            "another --out, or fetch a part with --only"
        )


def _bring(
    file: File,
    folder: Path,
    ledger: Ledger,
    client: httpx2.Client | None,
    terms: Terms,
    reporting: Reporting,
) -> Outcome:
    path = folder / file.name
    if path.exists():
        return _check(file, path, ledger, rehash=terms.rehash)
    if not file.urls:
        return Outcome(file.name, "by hand", _how_to_get(file))
    if client is None:
        raise DataError(f"{path}: missing; run without --verify to fetch it")
    with reporting(file) as report:
        fetched = download(
            client, file, path, patience=terms.patience, limit=terms.limit, report=report
        )
    earlier = ledger.get(file.name)
    receipt = _record(file, path, ledger, fetched.digests, fetched.url)
    detail = f"{receipt.bytes:,} bytes, {_judgement(file, receipt)}"
    if earlier and earlier.sha256 != receipt.sha256:
        detail += f"; the file fetched before had sha256 {earlier.sha256}"
    return Outcome(file.name, "fetched", detail)


def _check(file: File, path: Path, ledger: Ledger, *, rehash: bool) -> Outcome:
    """A file that is there: DataError if it is not the right one, and it is left alone."""
    remedy = "remove it and run again to fetch it anew"
    if not path.is_file():
        raise DataError(f"{path}: not a file; {remedy}")
    size = path.stat().st_size
    if file.bytes not in (None, size):
        raise DataError(f"{path}: {size:,} bytes, published are {file.bytes:,}; {remedy}")
    known = ledger.get(file.name)
    if known and not rehash and known.is_of(path) and known.fits(file):
        return Outcome(file.name, "up to date")
    digests = hash_file(path)
    expected = file.digests or ({"sha256": known.sha256} if known else {})
    origin = "published" if file.digests else "recorded when it was first fetched"
    for name, digest in expected.items():
        if digests[name] != digest:
            raise DataError(f"{path}: {name} is {digests[name]}, {origin} is {digest}; {remedy}")
    receipt = _record(file, path, ledger, digests, known.url if known else None)
    if known and not file.digests:
        return Outcome(file.name, "checked", "the same bytes as when it was first fetched")
    return Outcome(file.name, "checked", _judgement(file, receipt))


def _record(
    file: File, path: Path, ledger: Ledger, digests: dict[str, str], url: str | None
) -> Receipt:
    status = path.stat()
    trust = "published" if file.digests else "first use"
    receipt = Receipt(
        status.st_size, digests["sha256"], digests["md5"], trust, url, status.st_mtime_ns
    )
    ledger.put(file.name, receipt)
    return receipt


def _judgement(file: File, receipt: Receipt) -> str:
    if file.digests:
        return f"{' and '.join(file.digests)} as published"
    return (
        f"sha256 {receipt.sha256}; no digest of it is published, so it is trusted on this first "
        "use and later ones are held to it"
    )


def _how_to_get(file: File) -> str:
    """What a person needs to know of a file beside its name; empty if there is nothing."""
    size = f"{file.bytes:,} bytes" if file.bytes else ""
    digests = [f"{name} {digest}" for name, digest in file.digests.items()]
    page = f"get it from {file.page}" if file.page else ""
    return ", ".join(part for part in (page, size, *digests) if part)
