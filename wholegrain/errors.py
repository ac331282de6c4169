"""The errors that a user is meant to read, and how a program shows them.

Every message names the place, the field, the value and the remedy; a program prints it without a
traceback, because a traceback of ours tells the user nothing about their file.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from wholegrain.once import say_once

_SHOWN_VALUE = 120
_BROKEN_PIPE = 141  # what a shell reports of a program that SIGPIPE ended
_OURS = ("wholegrain", "pretrain", "finetune", "data_tools")
# What the system says of a place that the user can mend. All else stays a traceback and another
# status: EIO or ESTALE are the machine's faults, which a job on other nodes may not meet (Slurm
# jobs that end with status 2 are not requeued), and EBADF or EINVAL are ours.
_NO_ROOM = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free space there, or choose another place")
_REMEDIES = {
    **_NO_ROOM,
    errno.EACCES: "have it permitted, or choose another place",
    errno.EPERM: "have it permitted, or choose another place",
    errno.EROFS: "choose a place that can be written to",
    errno.ENOENT: "correct the path, or make the folder",
    errno.ENOTDIR: "correct the path: a file stands where it needs a folder",
    errno.EISDIR: "correct the path: a folder stands where it needs a file",
    errno.EEXIST: "remove what is there, or choose another place",
    errno.ENAMETOOLONG: "shorten the name",
    errno.ELOOP: "mend the symbolic links",
}


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

    Of several ranks that meet the same error one prints it; all of them end with its status. So do
    a full disk and a path that the system refuses, wherever they are met.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # To print a path that is no UTF-8 must not fail, least of all after the work.
        sys.stdout.reconfigure(errors="backslashreplace")
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
    except OSError as error:
        line = _refused_place(error)
        if line is None:
            raise
        say_once(f"error: {line}")
        return WholegrainError.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _refused_place(error: OSError) -> str | None:
    """One line for what the user can mend of a path or a disk; None for all other errors.

    It ends with the place in our code: should the path be one that only we could get wrong, then
    the fault can still be found.
    """
    paths = [
        os.fsdecode(each)
        for each in (error.filename, error.filename2)
        if isinstance(each, (str, bytes, os.PathLike))
    ]
    # An open file has no name to the system, but to fill a disk is never the program's fault.
    if error.errno not in (_REMEDIES if paths else _NO_ROOM):
        return None
    named = " -> ".join(paths) if paths else "a file being written"
    return f"{named}: {error.strerror}; {_REMEDIES[error.errno]}{_where(error)}"


def _where(error: Exception) -> str:
    """The innermost of our own lines that an error passed, in brackets; '' if there is none."""
    found = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        package = str(frame.f_globals.get("__package__") or "")
        if package.partition(".")[0] in _OURS:
            file = Path(frame.f_code.co_filename).name
            found = f" (met in {package.replace('.', '/')}/{file}, line {line})"
    return found
