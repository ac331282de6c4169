"""Errors that users read, and how a program shows them."""

import errno
import io
import os
import pickle
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from wholegrain.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    RecordError,
    ReleaseError,
    TextError,
    WholegrainError,
    run_cli,
)
from wholegrain.model.tensor_file import write_text


@pytest.mark.parametrize(
    "kind", [ConfigError, TextError, DataError, RecordError, CheckpointError, ReleaseError]
)
def test_all_are_the_users_to_read(kind: type[Exception]) -> None:
    assert issubclass(kind, WholegrainError)


def test_record_error_names_place_field_value_and_remedy() -> None:
    error = RecordError("a.tar:1.json", "regions[2].box", [1, 2], "give four numbers")
    assert str(error) == "a.tar:1.json: regions[2].box is [1, 2]; give four numbers"
    assert isinstance(error, DataError)


def test_record_error_shortens_what_it_shows() -> None:
    error = RecordError("a.tar", "captions", "x" * 10_000, "shorten it")
    assert len(str(error)) < 200
    assert str(error).endswith("...; shorten it")


def test_record_error_crosses_processes() -> None:
    error = pickle.loads(pickle.dumps(RecordError("a", "b", 3, "c")))
    assert type(error) is RecordError
    assert (error.where, error.field, error.value, error.remedy) == ("a", "b", 3, "c")
    assert str(error) == "a: b is 3; c"


def test_run_cli_shows_a_users_error_without_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: Sequence[str] | None) -> int:
        raise DataError(f"{argv}: empty")

    assert run_cli(main, ["x"]) == 2
    shown = capsys.readouterr()
    assert shown.err == "error: ['x']: empty\n"
    assert shown.out == ""


def test_run_cli_passes_status_and_arguments_on() -> None:
    seen: list[Sequence[str] | None] = []

    def main(argv: Sequence[str] | None) -> int:
        seen.append(argv)
        return 3

    assert run_cli(main, ["--a"]) == 3
    assert seen == [["--a"]]


def test_run_cli_ends_on_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: Sequence[str] | None) -> int:
        raise KeyboardInterrupt

    assert run_cli(main) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_run_cli_lets_our_own_faults_be_seen() -> None:
    def main(argv: Sequence[str] | None) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_cli(main)


def test_run_cli_does_not_call_a_cut_output_a_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: Sequence[str] | None) -> int:
        raise BrokenPipeError

    # run_cli replaces stdout; monkeypatch puts the test's own back.
    monkeypatch.setattr("sys.stdout", sys.stdout)
    assert run_cli(main) == 141
    assert "Traceback" not in capsys.readouterr().err


def failing(error: BaseException) -> Callable[[Sequence[str] | None], int]:
    def main(argv: Sequence[str] | None) -> int:
        raise error

    return main


def test_run_cli_says_paths_that_are_no_utf8(capfd: pytest.CaptureFixture[str]) -> None:
    path = os.fsdecode(b"/tmp/caf\xe9")
    assert run_cli(failing(DataError(f"{path}: empty"))) == 2
    assert capfd.readouterr().err == "error: /tmp/caf\\udce9: empty\n"


def test_run_cli_lets_such_paths_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), "utf-8", "strict")
    monkeypatch.setattr("sys.stdout", stdout)

    def main(argv: Sequence[str] | None) -> int:
        print(os.fsdecode(b"/tmp/caf\xe9"))
        return 0

    assert run_cli(main) == 0
    stdout.flush()
    assert stdout.buffer.getvalue() == b"/tmp/caf\\udce9\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free space there"),
        (errno.EDQUOT, "free space there"),
        (errno.EACCES, "have it permitted"),
        (errno.EROFS, "choose a place that can be written to"),
    ],
)
def test_run_cli_names_the_place_that_the_system_refuses(
    capsys: pytest.CaptureFixture[str], number: int, remedy: str
) -> None:
    assert run_cli(failing(OSError(number, os.strerror(number), "/data/x"))) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: /data/x: {os.strerror(number)}; {remedy}")
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("none/x", "No such file or directory; correct the path, or make the folder"),
        ("file/x", "Not a directory; correct the path: a file stands where it needs a folder"),
        ("folder", "Is a directory; correct the path: a folder stands where it needs a file"),
        ("x" * 300, "File name too long; shorten the name"),
    ],
)
def test_run_cli_names_wrong_paths_and_where_they_were_met(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str, said: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()

    def main(argv: Sequence[str] | None) -> int:
        write_text(tmp_path / path, "text")
        return 0

    assert run_cli(main) == 2
    where = r" \(met in wholegrain/model/tensor_file\.py, line \d+\)\n"
    expected = re.escape(f"error: {tmp_path / path}: {said}") + where
    assert re.fullmatch(expected, capsys.readouterr().err)


def test_run_cli_names_both_ends_of_a_rename(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: Sequence[str] | None) -> int:
        os.replace(tmp_path / "a", tmp_path / "b")
        return 0

    assert run_cli(main) == 2
    assert f"error: {tmp_path / 'a'} -> {tmp_path / 'b'}: No such" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_run_cli_knows_a_full_disk_without_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: Sequence[str] | None) -> int:
        with open("/dev/full", "w") as file:
            file.write("x")
        return 0

    assert run_cli(main) == 2
    assert capsys.readouterr().err.startswith("error: a file being written: No space left")


@pytest.mark.parametrize(
    "error",
    [
        OSError("of a library"),
        OSError(errno.EIO, "of the machine", "/data/x"),
        OSError(errno.ESTALE, "of the machine", "/data/x"),
        OSError(errno.EINVAL, "ours", "/data/x"),
        OSError(errno.EBADF, "ours"),
        PermissionError(errno.EACCES, "of a socket"),
        ConnectionRefusedError(errno.ECONNREFUSED, "of a socket"),
        TimeoutError("no answer"),
    ],
)
def test_run_cli_lets_other_errors_of_the_system_be_seen(error: OSError) -> None:
    with pytest.raises(type(error)) as caught:
        run_cli(failing(error))
    assert caught.value is error
