"""Which failures of storage pass, and how long we wait for that."""

from __future__ import annotations

import json
import logging
import random
import ssl
import time
from collections.abc import Callable, Iterator

from wholegrain.data.storage.settings import StorageConfig
from wholegrain.data.storage.urls import shown
from wholegrain.errors import DataError

_log = logging.getLogger(__name__)

_FIRST_DELAY_S, _MAX_DELAY_S = 0.2, 30.0
_SHOWN_ERROR = 200
_QUIET_FAILURES = 2  # the odd refused request is everyday life of object storage
# Not from the global generator: training's chance must not hang on how storage fared.
_jitter = random.SystemRandom()

_TRANSIENT_STATUS = {408, 425, 429}
_PERMANENT_5XX = {501, 505}
_TRANSIENT_CODES = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException"}
_PERMANENT_CODES = {"NoSuchKey", "NoSuchBucket", "AccessDenied", "InvalidAccessKeyId"}
_PERMANENT_OS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_PERMANENT_TYPES = (
    ValueError,
    TypeError,
    AttributeError,
    ImportError,
    NotImplementedError,
    ssl.SSLCertVerificationError,
)
_PERMANENT_NAMES = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}


class StorageGone(DataError):
    """Storage gives no more bytes. The samples are not to blame: skipping them would not help."""


class ShortReadError(OSError):
    """Storage gave fewer or more bytes than were asked for."""


class Patience:
    """Waits between failures, longer each time, until it runs out.

    It runs out after `attempts` failures in a row or `patience_s` seconds without progress.

    Args:
        url: what is being fetched, for messages.
        config: the limits.
        sleep, clock: for tests.
    """

    def __init__(
        self,
        url: str,
        config: StorageConfig,
        *,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url, self._limit_s = url, config.patience_s
        self._attempts = config.attempts
        self._sleep, self._clock = sleep, clock
        self._seen: object = None
        self.progress()

    def progress(self) -> None:
        """There was a byte: begins anew."""
        self._failures, self._waits, self._since = 0, 0, self._clock()

    def left(self) -> float:
        """Seconds until it runs out, at least a second: whoever has his turn may try once."""
        return max(1.0, self._limit_s - self._spent())

    def failed(self, error: BaseException) -> None:
        """Takes note of a failure and waits for the time of the next attempt.

        Raises:
            StorageGone: the patience has run out.
        """
        self._failures += 1
        spent = self._spent()
        if self._failures >= self._attempts or spent >= self._limit_s:
            raise self._gone(f"{self._failures} attempts", describe(error)) from error
        if self._failures > _QUIET_FAILURES:
            _log.warning("%s: attempt %d: %s", shown(self.url), self._failures, describe(error))
        delay = min(_MAX_DELAY_S, _FIRST_DELAY_S * 2 ** min(self._failures, 20))
        self._sleep(min(delay * _jitter.uniform(0.5, 1.0), self._limit_s - spent))

    def wait(self, state: object, reason: str) -> None:
        """Waits a little for another process; a changed ``state`` is progress of that process.

        Raises:
            StorageGone: nothing has changed for too long.
        """
        if state != self._seen:
            self._seen = state
            self.progress()
        if self._spent() >= self._limit_s:
            raise self._gone("no attempt of our own", reason)
        self._waits += 1
        self._sleep(min(0.5, 0.02 * self._waits) * _jitter.uniform(0.5, 1.0))

    def _spent(self) -> float:
        return self._clock() - self._since

    def _gone(self, attempts: str, last: str) -> StorageGone:
        return StorageGone(
            f"{shown(self.url)}: the storage is gone: {attempts} in {self._spent():.0f} s without "
            f"a byte, the last: {last}; when it is back, start again and the run goes on from its "
            "checkpoint (storage.patience_s and storage.attempts say how long to wait)"
        )


def is_transient(error: BaseException) -> bool:
    """Whether the same request may well succeed later.

    Unknown failures count as transient, since the patience is bounded; a wrong address, missing
    rights and faulty arguments do not.
    """
    # Garbage in place of an answer: aiohttp calls it status 400, a reader of JSON a wrong value.
    if any(_is_garbled(cause) for cause in _chain(error)):
        return True
    for cause in _chain(error):
        status, code = _status(cause), _code(cause)
        if code in _TRANSIENT_CODES:
            return True
        if status is not None:
            return status in _TRANSIENT_STATUS or (status >= 500 and status not in _PERMANENT_5XX)
        if code in _PERMANENT_CODES or type(cause).__name__ in _PERMANENT_NAMES:
            return False
        if isinstance(cause, ConnectionError | TimeoutError):
            return True
    # An HTTP driver says "not found" of a server that is down too, hence the causes first.
    if any(isinstance(cause, _PERMANENT_TYPES) for cause in _chain(error)):
        return False
    return not isinstance(list(_chain(error))[-1], _PERMANENT_OS)


def is_timeout(error: BaseException) -> bool:
    """Whether time ran out, so that a smaller request may fare better."""
    return any(isinstance(cause, TimeoutError) for cause in _chain(error))


def refused(url: str, error: BaseException) -> DataError:
    """The error of a permanent failure."""
    statuses = [status for cause in _chain(error) if (status := _status(cause)) is not None]
    first = list(_chain(error))[-1]
    if 404 in statuses or (not statuses and isinstance(first, FileNotFoundError)):
        return DataError(f"{shown(url)}: there is no such file; check the address")
    if {401, 403}.intersection(statuses) or isinstance(first, PermissionError):
        return DataError(
            f"{shown(url)}: access is refused ({describe(error)}); check the credentials and the "
            "rights"
        )
    return DataError(
        f"{shown(url)}: cannot be read ({describe(error)}); check the address and the credentials"
    )


def describe(error: BaseException) -> str:
    """The error in one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, TimeoutError) and text == type(error).__name__:
        text = "no answer in time"
    return text if len(text) <= _SHOWN_ERROR else text[: _SHOWN_ERROR - 3] + "..."


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it, down to the first cause."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__


def _is_garbled(error: BaseException) -> bool:
    kind = type(error)
    return kind.__module__ == "aiohttp.http_exceptions" or isinstance(
        error, json.JSONDecodeError | UnicodeDecodeError
    )


def _status(error: BaseException) -> int | None:
    """The HTTP status, where aiohttp, Google's and Amazon's drivers keep it."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        found = getattr(error, "status", None) or getattr(error, "code", None)
    try:
        status = int(found) if found is not None else 0
    except (TypeError, ValueError):
        return None
    return status if 300 <= status < 600 else None


def _code(error: BaseException) -> str | None:
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        return None
    code = response.get("Error", {}).get("Code")
    return code if isinstance(code, str) else None
