import errno
import json
import ssl

import aiohttp
import pytest
from aiohttp.http_exceptions import BadStatusLine
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from yarl import URL

from wholegrain.data.storage.retry import Patience, StorageGone, is_transient, refused
from wholegrain.data.storage.settings import StorageConfig


def answered(status: int) -> aiohttp.ClientResponseError:
    info = aiohttp.RequestInfo(URL("http://h/x"), "GET", None, URL("http://h/x"))  # type: ignore[arg-type]
    return aiohttp.ClientResponseError(info, (), status=status)


def amazon(status: int, code: str) -> ClientError:
    response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "GetObject")  # type: ignore[arg-type]


def because(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


PASSING = [
    answered(500),
    answered(503),
    answered(429),
    because(OSError(errno.EBUSY, "slow"), amazon(503, "SlowDown")),
    because(OSError(errno.EINVAL, "?"), amazon(400, "RequestTimeout")),
    EndpointConnectionError(endpoint_url="http://h"),
    ConnectionResetError(),
    TimeoutError(),
    aiohttp.ClientPayloadError("cut"),
    aiohttp.ServerDisconnectedError(),
    because(answered(400), BadStatusLine("\0")),
    json.JSONDecodeError("no", "<html>", 0),
    # What fsspec's HTTP says when a server is down.
    because(FileNotFoundError("http://h/x"), ConnectionRefusedError()),
    because(FileNotFoundError("http://h/x"), answered(503)),
    OSError(errno.EIO, "hm"),
    RuntimeError("Session is closed"),
]
LASTING = [
    answered(404),
    answered(403),
    answered(501),
    because(FileNotFoundError("k"), amazon(404, "NoSuchKey")),
    because(PermissionError("k"), amazon(403, "AccessDenied")),
    because(FileNotFoundError("http://h/x"), answered(404)),
    FileNotFoundError("/k"),
    IsADirectoryError("k"),
    NoCredentialsError(),
    because(OSError("tls"), ssl.SSLCertVerificationError("self-signed")),
    ValueError("bad option"),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_what_may_pass_is_tried_again(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_what_will_not_pass_is_not_tried_again(error: Exception) -> None:
    assert not is_transient(error)
    assert str(refused("s3://b/x", error)).startswith("s3://b/x: ")


def test_a_missing_file_and_missing_rights_are_told_apart() -> None:
    assert "no such file" in str(refused("s3://b/x", because(FileNotFoundError(), answered(404))))
    assert "no such file" in str(refused("s3://b/x", FileNotFoundError("k")))
    assert "credentials" in str(refused("s3://b/x", because(PermissionError(), answered(403))))


class Time:
    """A clock that only moves while somebody sleeps."""

    def __init__(self) -> None:
        self.now, self.delays = 0.0, list[float]()

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds
        self.delays.append(seconds)

    def clock(self) -> float:
        return self.now


def patience(time: Time, **settings: float) -> Patience:
    return Patience("s3://b/x", StorageConfig(**settings), sleep=time.sleep, clock=time.clock)  # type: ignore[arg-type]


def test_delays_grow_and_end_after_the_attempts() -> None:
    time = Time()
    waiting = patience(time, attempts=6, patience_s=1000.0)
    for _ in range(5):
        waiting.failed(ConnectionResetError("gone away"))
    with pytest.raises(StorageGone, match=r"s3://b/x: .* gone: 6 attempts .* gone away; .* again"):
        waiting.failed(ConnectionResetError("gone away"))
    for number, delay in enumerate(time.delays, start=1):
        assert 0.1 * 2**number <= delay <= 0.2 * 2**number


def test_time_ends_it_too_and_is_never_exceeded() -> None:
    time = Time()
    waiting = patience(time, attempts=10_000, patience_s=100.0)
    with pytest.raises(StorageGone, match="100 s"):
        while True:
            waiting.failed(TimeoutError())
    assert time.now == pytest.approx(100.0)
    assert max(time.delays) <= 30.0


def test_a_byte_in_between_begins_anew() -> None:
    time = Time()
    waiting = patience(time, attempts=3, patience_s=100.0)
    for _ in range(50):
        waiting.failed(TimeoutError())
        waiting.failed(TimeoutError())
        waiting.progress()


def test_waiting_for_others_ends_when_they_stand_still() -> None:
    time = Time()
    waiting = patience(time, patience_s=30.0)
    for state in range(200):
        waiting.wait(state, "another downloads it")
        waiting.wait(state, "another downloads it")
    moved = time.now
    with pytest.raises(StorageGone, match="another downloads it"):
        while True:
            waiting.wait(199, "another downloads it")
    assert time.now - moved == pytest.approx(30.0, abs=1.0)
