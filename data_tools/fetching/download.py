"""One file over HTTP: resumed, bounded, verified, and only then given its name.

A resume asks for the missing bytes with ``Range`` and, by ``If-Range``, only if the server still
has the file that the first bytes came from. Whatever the answer claims is checked against what was
asked for and what was announced before; bytes of two files are never glued together.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx2

from data_tools.fetching.catalogue import File
from data_tools.fetching.partial import Partial
from wholegrain.errors import DataError

_MAX_HOPS = 8
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_ENOUGH = 1 << 20
"""An attempt that brought this many bytes was worth it: the count of failures starts anew."""
_LONGEST_ASKED_WAIT = 300.0

Report = Callable[[int, int | None], None]
"""Called with (bytes so far, size or None), often."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to bear with a server."""

    timeout: float = 60.0
    """Seconds without an answer or a byte after which a connection is given up."""
    retries: int = 5
    """Failures in a row after which an address is given up."""
    first_wait: float = 1.0
    """Seconds before the first retry; doubled from one to the next."""
    longest_wait: float = 60.0

    def wait(self, failures: int, asked: float | None) -> float:
        """Seconds before the next attempt: random, so that many runs do not come back as one."""
        if asked is not None:
            return min(asked, _LONGEST_ASKED_WAIT)
        longest = min(self.longest_wait, self.first_wait * 2 ** (failures - 1))
        return random.uniform(longest / 2, longest)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A finished download."""

    bytes: int
    digests: dict[str, str]
    url: str


class _Passing(Exception):
    """A fault that another attempt may not meet."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _Useless(Exception):
    """This address does not give the file."""


def new_client(patience: Patience) -> httpx2.Client:
    """A client for one run of ``fetch``; close it."""
    # `identity`: a byte range of a compressed answer would be one of other bytes.
    headers = {"User-Agent": "wholegrain-fetch", "Accept-Encoding": "identity"}
    return httpx2.Client(headers=headers, timeout=patience.timeout, follow_redirects=False)


def download(
    client: httpx2.Client,
    file: File,
    path: Path,
    *,
    patience: Patience,
    limit: int,
    report: Report = lambda done, total: None,
) -> Fetched:
    """Fetch ``file`` to ``path``, from the first of its addresses that gives it.

    Args:
        client: from :func:`new_client`.
        file: the catalogue's entry.
        path: where the file appears once it is whole and verified; it must not exist.
        patience: timeouts and retries.
        limit: most bytes accepted of a file whose size the catalogue does not know.
        report: told of progress.

    Raises:
        DataError: no address gave the file; says what each of them did. Bytes that may still be
            of use stay in ``NAME.partial``.
    """
    faults = []
    for url in file.urls:
        try:
            with Partial(path) as partial:
                return _from_address(client, file, url, partial, patience, limit, report)
        except _Useless as fault:
            faults.append(f"{url}: {fault}")
    raise DataError(f"{path}: not fetched. " + "; ".join(faults))


def _from_address(
    client: httpx2.Client,
    file: File,
    url: str,
    partial: Partial,
    patience: Patience,
    limit: int,
    report: Report,
) -> Fetched:
    failures = furthest = 0
    glued_before = False
    while True:
        try:
            if not _is_complete(partial, file):
                _receive(client, file, url, partial, limit, report)
        except _Passing as fault:
            # Measured from the furthest that it ever came, so that starting over cannot go on for
            # ever: the number of attempts is bounded by the size of the file.
            progress = partial.size - furthest
            failures = 1 if progress >= _ENOUGH else failures + 1
            furthest = max(furthest, partial.size)
            if failures > patience.retries:
                raise _Useless(f"given up after {failures} failures in a row: {fault}") from None
            time.sleep(patience.wait(failures, fault.wait))
            continue
        digests = partial.digests()
        if not (wrong := _wrong(digests, file)):
            size, origin = partial.size, partial.origin.url or url
            partial.finish()
            return Fetched(size, digests, origin)
        if partial.origin.pieces == 1 or glued_before:
            kept = partial.reject()
            raise _Useless(
                f"wrong bytes: {wrong}; they are kept in {kept.name}. If the publisher replaced "
                "the file, correct the catalogue; otherwise do not use them"
            )
        # Two files glued together, perhaps, or a beginning that a power cut ate.
        partial.restart()
        glued_before = True


def _is_complete(partial: Partial, file: File) -> bool:
    """Whether a run before this one ended between the last byte and the new name."""
    total = file.bytes or partial.origin.total
    sure = bool(file.digests) or partial.size == partial.origin.synced
    return partial.size > 0 and partial.size == total and sure


def _wrong(digests: dict[str, str], file: File) -> str:
    """What is wrong with a whole file; empty if nothing is."""
    return ", ".join(
        f"{name} is {digests[name]} instead of the published {published}"
        for name, published in file.digests.items()
        if digests[name] != published
    )


def _receive(
    client: httpx2.Client, file: File, url: str, partial: Partial, limit: int, report: Report
) -> None:
    """One request; appends to ``partial``. Returns when the file is whole, else raises."""
    if file.bytes is not None and partial.size > file.bytes:
        partial.restart()
    start = partial.begin(url, known=bool(file.digests))
    headers = {}
    if start:
        headers["Range"] = f"bytes={start}-"
        if url == partial.origin.url and partial.validator:
            headers["If-Range"] = partial.validator
    try:
        with closing(_ask(client, url, headers, file.allow_http)) as answer:
            _check_status(answer, start, partial)
            if answer.status_code == 200:
                total = _length(answer)
                if start:  # no ranges here, or the file has changed: all bytes come again
                    partial.restart()
            else:
                total = _check_range(answer, url, start, partial, file)
            _check_announced(answer, total, partial, file, limit)
            partial.note(url, _strong_etag(answer), _strong_date(answer), total)
            _copy(answer, total or file.bytes, partial, limit, report)
    except httpx2.TransportError as error:
        raise _Passing(f"{type(error).__name__} {error}".strip()) from None
    except (httpx2.InvalidURL, httpx2.HTTPError) as error:
        raise _Useless(f"{type(error).__name__} {error}") from None


def _ask(
    client: httpx2.Client, url: str, headers: dict[str, str], allow_http: bool
) -> httpx2.Response:
    """The answer at the end of the redirects, none of which may lead from https to http."""
    request = client.build_request("GET", url, headers=headers)
    for _ in range(_MAX_HOPS):
        answer = client.send(request, stream=True)
        if answer.next_request is None:
            return answer
        answer.close()
        request = answer.next_request
        if request.url.scheme not in (("https", "http") if allow_http else ("https",)):
            raise _Useless(f"redirected to {request.url}, which is not https")
    raise _Useless(f"more than {_MAX_HOPS} redirects")


def _check_status(answer: httpx2.Response, start: int, partial: Partial) -> None:
    status = answer.status_code
    if status == 200 or (status == 206 and start):
        return
    reason = f"HTTP {status} {answer.reason_phrase}".strip()
    if status == 416 and start:  # the file there is shorter than what is here
        partial.restart()
        raise _Passing(f"{reason}; starting over")
    if status in _TRANSIENT:
        raise _Passing(reason, _asked_wait(answer))
    raise _Useless(reason)


def _check_range(
    answer: httpx2.Response, url: str, start: int, partial: Partial, file: File
) -> int | None:
    """Size of the whole file, after a 206 was found to be the continuation that was asked for."""
    given = answer.headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(given)
    total = None if match is None or match[3] == "*" else int(match[3])
    fault = None
    if match is None or int(match[1]) != start or int(match[2]) < start:
        fault = f"asked for bytes {start}-, the answer says {given or 'nothing'!r}"
    elif (length := _length(answer)) is not None and length != int(match[2]) - start + 1:
        fault = f"Content-Range {given!r} and Content-Length {length} contradict each other"
    elif url == partial.origin.url:
        # Some servers honour Range and overlook If-Range.
        etag, before = _strong_etag(answer), partial.origin
        if etag and before.etag and etag != before.etag:
            fault = f"the file has changed on the server (ETag {before.etag} is now {etag})"
        elif total and before.total and total != before.total:
            fault = f"the file has changed on the server ({before.total} bytes are now {total})"
    if fault:
        partial.restart()
        raise _Passing(f"{fault}; starting over")
    return total or file.bytes or partial.origin.total


def _check_announced(
    answer: httpx2.Response, total: int | None, partial: Partial, file: File, limit: int
) -> None:
    """Everything that can be known before the first byte."""
    encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise _Useless(f"the answer is {encoding}-encoded, which was not asked for")
    if not file.digests:
        kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind == "text/html" and not file.name.endswith((".html", ".htm")):
            raise _Useless("the answer is a web page, perhaps a login or a notice, not the file")
    chunked = "chunked" in answer.headers.get("Transfer-Encoding", "").lower()
    if file.bytes is None and total is None and not chunked:
        raise _Useless("no size is known or announced, so a cut would go unnoticed")
    if file.bytes is not None and total not in (None, file.bytes):
        raise _Useless(f"the server has {total:,} bytes, published are {file.bytes:,}")
    if file.bytes is None and total is not None and total > limit:
        raise _Useless(
            f"the server has {total:,} bytes, more than the {limit:,} allowed for a file of "
            "unknown size; raise --max-gb if that is right"
        )
    if (size := file.bytes or total) is not None:
        partial.check_room(size)


def _copy(
    answer: httpx2.Response, total: int | None, partial: Partial, limit: int, report: Report
) -> None:
    most = limit if total is None else total
    report(partial.size, total)
    for block in answer.iter_raw():
        if partial.size + len(block) > most:
            partial.restart()
            raise _Useless(f"the server sent more than {most:,} bytes; nothing of it is kept")
        partial.write(block)
        report(partial.size, total)
    if total is not None and partial.size < total:
        raise _Passing(f"the connection ended after {partial.size:,} of {total:,} bytes")


def _length(answer: httpx2.Response) -> int | None:
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _strong_etag(answer: httpx2.Response) -> str | None:
    etag: str | None = answer.headers.get("ETag")
    return etag if etag and etag.startswith('"') else None


def _strong_date(answer: httpx2.Response) -> str | None:
    """``Last-Modified``, if the file cannot have changed again within that second."""
    modified: str | None = answer.headers.get("Last-Modified")
    try:
        age = parsedate_to_datetime(answer.headers["Date"]) - parsedate_to_datetime(modified or "")
    except (KeyError, ValueError, TypeError):
        return None
    return modified if age.total_seconds() >= 1 else None


def _asked_wait(answer: httpx2.Response) -> float | None:
    asked = answer.headers.get("Retry-After", "")
    return float(asked) if asked.isdecimal() else None
