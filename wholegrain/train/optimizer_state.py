"""The optimizer's state on disk: pieces of flattened parameters, whoever held them.

Every rank that holds some of AdamW's moments writes a file of its own. A plain run has one, of rank
0; under ZeRO each rank has what its partition was. The pieces carry the parameter's name and their
place in it, so a run reads the range that it needs from whichever files have it: the number of
ranks and the stage of ZeRO may be others than those that wrote.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wholegrain.errors import CheckpointError

MOMENTS = ("exp_avg", "exp_avg_sq")
_TABLE = "fragments"
_OPEN_FILES = 64


@dataclass(frozen=True)
class Fragment:
    """What one rank holds of one parameter's optimizer state.

    `count` elements of the flattened parameter, from `start` on, where `count` is the length of the
    tensors.
    """

    name: str
    """Of the parameter."""
    start: int
    """First element of the flattened parameter that is held."""
    shape: tuple[int, ...]
    """Of the whole parameter."""
    step: float
    """AdamW's own count of the parameter's updates."""
    tensors: Mapping[str, Tensor]
    """``exp_avg`` and ``exp_avg_sq``, each fp32 (count,)."""

    def __post_init__(self) -> None:
        # What does not read back must not be written.
        for moment in MOMENTS:
            tensor = self.tensors[moment]
            if tensor.shape != (self.count,) or tensor.dtype != torch.float32:
                raise ValueError(
                    f"{self.name}: {moment} is {tensor.dtype} {tuple(tensor.shape)}; give fp32 "
                    f"({self.count},)"
                )

    @property
    def count(self) -> int:
        """Elements held."""
        return self.tensors[MOMENTS[0]].numel()


@dataclass(frozen=True)
class _Piece:
    """A fragment in a file."""

    file: str
    name: str
    start: int
    stop: int
    shape: tuple[int, ...]
    step: float


def optimizer_file(rank: int, world: int) -> str:
    """The name of a rank's file."""
    return f"optimizer-{rank:05d}-of-{world:05d}.safetensors"


def is_optimizer_file(name: str) -> bool:
    """Whether a file of a checkpoint holds optimizer state."""
    return name.startswith("optimizer-") and name.endswith(".safetensors")


def tensor_name(name: str, start: int, moment: str) -> str:
    """The name of a fragment's tensor in its file."""
    return f"{name}/{start}/{moment}"


def fragment_table(fragments: Sequence[Fragment]) -> dict[str, str]:
    """The header's entry that says where the fragments of a file belong."""
    table = [[f.name, f.start, f.count, list(f.shape), float(f.step)] for f in fragments]
    return {_TABLE: json.dumps(table, separators=(",", ":"))}


class StoredState:
    """The optimizer state of a checkpoint, read in ranges; no file is ever held in memory whole.

    Args:
        folder: of the checkpoint.
        files: the names of its optimizer files.

    Raises:
        CheckpointError: a file cannot be read, or two fragments contradict each other; names file
            and parameter.
    """

    def __init__(self, folder: Path, files: Iterable[str]) -> None:
        self._folder = folder
        self._open: dict[str, Any] = {}
        self._pieces: dict[str, list[_Piece]] = {}
        for file in files:
            for piece in self._table(file):
                self._pieces.setdefault(piece.name, []).append(piece)
        for pieces in self._pieces.values():
            pieces.sort(key=lambda piece: piece.start)
            for before, piece in pairwise(pieces):
                self._refuse_contradiction(before, piece)

    def names(self) -> Iterable[str]:
        """The parameters with state."""
        return self._pieces.keys()

    def require_fit(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Refuses state that is of another model.

        Args:
            shapes: of all trained parameters, by name.

        Raises:
            CheckpointError: there is state of a parameter that is not among them, or of another
                shape. A parameter without state is no error: it has had no update.
        """
        for name, pieces in self._pieces.items():
            piece = pieces[0]
            if name not in shapes:
                raise self._error(piece, "which the configured model does not train")
            if piece.shape != tuple(shapes[name]):
                ours = tuple(shapes[name])
                raise self._error(piece, f"of shape {piece.shape}, in the model it is {ours}")

    def read(self, name: str, start: int, count: int) -> tuple[float, dict[str, Tensor]]:
        """A range of a parameter's state, from whichever files hold it.

        Args:
            name: of the parameter.
            start: first element of the flattened parameter.
            count: elements.

        Returns:
            The count of updates, and ``exp_avg`` and ``exp_avg_sq``, each fp32 (count,) on the
            host. A parameter without state has had no update: 0 and zeros.

        Raises:
            CheckpointError: the files do not hold all of the range; names file and parameter.
        """
        pieces = self._pieces.get(name)
        if pieces is None:
            return 0.0, {moment: torch.zeros(count) for moment in MOMENTS}
        stop, size = start + count, math.prod(pieces[0].shape)
        if start < 0 or count < 0 or stop > size:
            raise self._error(
                pieces[0], f"{size} elements, of which {start} to {stop} are asked for"
            )
        read = {moment: torch.empty(count) for moment in MOMENTS}
        reached = start
        for piece in pieces:
            first, last = max(start, piece.start), min(stop, piece.stop)
            if first >= last:
                continue
            if first > reached:
                break
            for moment, whole in read.items():
                whole[first - start : last - start] = self._slice(piece, moment, first, last)
            reached = last
        if reached < stop:
            raise self._error(pieces[0], f"of which elements from {reached} on are in no file")
        return pieces[0].step, read

    def _slice(self, piece: _Piece, moment: str, first: int, last: int) -> Tensor:
        try:
            view = self._handle(piece.file).get_slice(tensor_name(piece.name, piece.start, moment))
            held = view.get_shape(), view.get_dtype()
            if held == ([piece.stop - piece.start], "F32"):
                values: Tensor = view[first - piece.start : last - piece.start]
                return values
        except SafetensorError as error:
            raise self._error(piece, f"which cannot be read ({error})") from None
        raise self._error(piece, f"{moment} is {held[1]} {held[0]}, which its header contradicts")

    def _handle(self, file: str) -> Any:
        if file not in self._open:
            if len(self._open) >= _OPEN_FILES:
                self._open.clear()
            try:
                self._open[file] = safe_open(self._folder / file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise CheckpointError(
                    f"{self._folder / file}: cannot be read ({error}); remove the folder to fall "
                    "back to the checkpoint before it"
                ) from None
        return self._open[file]

    def _table(self, file: str) -> list[_Piece]:
        # The library refuses headers beyond 100 MB, so the table is bounded too.
        text = (self._handle(file).metadata() or {}).get(_TABLE, "null")
        try:
            pieces = [
                _Piece(file, str(name), int(start), start + count, tuple(shape), float(step))
                for name, start, count, shape, step in json.loads(text)
            ]
            for piece in pieces:
                if not 0 <= piece.start <= piece.stop <= math.prod(piece.shape):
                    raise ValueError(f"{piece.name} has no elements {piece.start} to {piece.stop}")
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise CheckpointError(
                f"{self._folder / file}: its header has no table of fragments ({error}); remove "
                "the folder to fall back to the checkpoint before it"
            ) from None
        return pieces

    def _refuse_contradiction(self, before: _Piece, piece: _Piece) -> None:
        if piece.shape != before.shape:
            raise self._error(piece, f"of shape {piece.shape}; {before.file} has {before.shape}")
        if piece.step != before.step:
            raise self._error(
                piece, f"after {piece.step:g} updates; {before.file} has {before.step:g}"
            )
        if piece.start < before.stop:
            raise self._error(
                piece,
                f"elements {piece.start} to {piece.stop}; {before.file} holds "
                f"{before.start} to {before.stop}",
            )

    def _error(self, piece: _Piece, problem: str) -> CheckpointError:
        return CheckpointError(
            f"{self._folder / piece.file}: state of {piece.name!r}, {problem}; resume with the "
            "config of the run, or remove the folder to fall back to the checkpoint before it"
        )
