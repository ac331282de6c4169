"""The errors that a user is meant to read, and how a program shows them.

Every message names the place, the field, the value and the remedy; a program prints it without a
traceback, because a traceback of ours tells the user nothing about their file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from wholegrain.once import say_once

_SHOWN_VALUE = 120
_BROKEN_PIPE = 141  # what a shell reports of a program that SIGPIPE ended


class WholegrainError(Exception):
    """Base of all errors that are the input's fault rather than the program's."""

    exit_status = 2
    """Of a program that ends with this error."""


class ConfigError(WholegrainError):
    """A configuration that cannot be run: unknown key, wrong type, clash of two settings."""


class TextError(WholegrainError):
    """A text that holds nothing to encode."""


class DataError(WholegrainError):
    """A corpus, shard or image that cannot be used."""


class RecordError(DataError):
    """One sample's record breaks the schema.

    Args:
        where: file and member, for instance ``shard-000003.tar:000017.json``.
        field: dotted name of the offending field, for instance ``regions[2].box``.
        value: what was found there; shortened in the message.
        remedy: what the user can do about it.
    """

    def __init__(self, where: str, field: str, value: object, remedy: str) -> None:
        self.where, self.field, self.value, self.remedy = where, field, value, remedy
        shown = repr(value)
        if len(shown) > _SHOWN_VALUE:
            shown = shown[: _SHOWN_VALUE - 3] + "..."
        super().__init__(f"{where}: {field} is {shown}; {remedy}")

    def __reduce__(self) -> tuple[type[RecordError], tuple[str, str, object, str]]:
        # Exceptions cross process borders by their constructor arguments, not by their message.
        return type(self), (self.where, self.field, self.value, self.remedy)


class CheckpointError(WholegrainError):
    """A checkpoint that is incomplete, altered or does not fit the run."""


class ReleaseError(WholegrainError):
    """A release folder with a missing, altered or foreign file."""


def run_cli(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Runs `main` and turns a user's error into one readable line and the error's status.

    Of several ranks that meet the same error one prints it; all of them end with its status.
    """
    try:
        return main(argv)
    except WholegrainError as error:
        say_once(f"error: {error}")
        return error.exit_status
    except BrokenPipeError:
        # The reader of our output (`| head`) left. That is no traceback, but no success either:
        # a run of hours may have been cut short by it.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  closed by the interpreter's exit
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
