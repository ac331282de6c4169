"""Errors that users read, and how a program shows them."""

import pickle
import sys
from collections.abc import Sequence

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
