"""Optimizer state can be read by any number of ranks, whatever number wrote it."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from wholegrain.errors import CheckpointError
from wholegrain.model.tensor_file import write_tensors
from wholegrain.train import optimizer_state
from wholegrain.train.optimizer_state import (
    MOMENTS,
    Fragment,
    StoredState,
    fragment_table,
    is_optimizer_file,
    optimizer_file,
    tensor_name,
)

Moments = dict[str, Tensor]


def fragment(name: str, start: int, shape: Sequence[int], step: float, whole: Moments) -> Fragment:
    return Fragment(name, start, tuple(shape), step, whole)


def write(folder: Path, ranks: Sequence[Sequence[Fragment]]) -> list[str]:
    """Each rank's file; the names."""
    names = []
    for rank, fragments in enumerate(ranks):
        if fragments:
            tensors = {
                tensor_name(f.name, f.start, moment): values.contiguous()
                for f in fragments
                for moment, values in f.tensors.items()
            }
            names.append(optimizer_file(rank, len(ranks)))
            write_tensors(folder / names[-1], tensors, fragment_table(fragments))
    return names


def cut(
    shapes: dict[str, list[int]],
    steps: dict[str, float],
    whole: dict[str, Moments],
    cuts: list[int],
) -> list[list[Fragment]]:
    """The parameters end to end, cut at these places: what each rank holds."""
    ranks: list[list[Fragment]] = []
    for first, last in zip([0, *cuts], [*cuts, 10**9], strict=True):
        held, offset = [], 0
        for name, shape in shapes.items():
            size = math.prod(shape)
            start, stop = max(first - offset, 0), min(last - offset, size)
            offset += size
            if start < stop:
                part = {moment: whole[name][moment][start:stop] for moment in MOMENTS}
                held.append(fragment(name, start, shape, steps[name], part))
        ranks.append(held)
    return ranks


SHAPES = st.lists(st.lists(st.integers(1, 6), max_size=3), min_size=1, max_size=4)
CUTS = st.lists(st.integers(0, 200), max_size=3).map(sorted)


@settings(max_examples=60, deadline=None)
@given(SHAPES, CUTS, CUTS, st.integers(0, 2**31))
def test_any_split_reads_any_other(
    tmp_path_factory: pytest.TempPathFactory,
    given_shapes: list[list[int]],
    before: list[int],
    after: list[int],
    seed: int,
) -> None:
    """What N ranks wrote is read, and written again, by M ranks, and read by one."""
    torch.manual_seed(seed)
    shapes = {f"p{number}": shape for number, shape in enumerate(given_shapes)}
    steps = {name: float(number) + 1 for number, name in enumerate(shapes)}
    whole = {
        name: {moment: torch.randn(math.prod(shape)) for moment in MOMENTS}
        for name, shape in shapes.items()
    }
    first, second = (tmp_path_factory.mktemp(name) for name in ("first", "second"))
    stored = StoredState(first, write(first, cut(shapes, steps, whole, before)))
    assert sorted(stored.names()) == sorted(shapes)
    stored.require_fit(shapes)
    again: list[list[Fragment]] = []
    for held in cut(shapes, steps, whole, after):
        read = [(f, stored.read(f.name, f.start, f.count)) for f in held]
        again.append([fragment(f.name, f.start, f.shape, *values) for f, values in read])
    one = StoredState(second, write(second, again))
    for name, shape in shapes.items():
        step, moments = one.read(name, 0, math.prod(shape))
        assert step == steps[name]
        assert all(torch.equal(moments[moment], whole[name][moment]) for moment in MOMENTS)


def moments(count: int, value: float = 1.0) -> Moments:
    return {moment: torch.full((count,), float(value)) for moment in MOMENTS}


def test_a_parameter_without_an_update_has_zeros(tmp_path: Path) -> None:
    files = write(tmp_path, [[fragment("a", 0, [4], 3.0, moments(4))], []])
    assert files == ["optimizer-00000-of-00002.safetensors"]
    stored = StoredState(tmp_path, files)
    step, read = stored.read("never", 1, 2)
    assert step == 0.0
    assert list(read) == list(MOMENTS)
    assert all(values.tolist() == [0.0, 0.0] for values in read.values())
    assert StoredState(tmp_path, []).read("a", 0, 1)[0] == 0.0


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    large = [fragment("a", 0, [1 << 22], 1.0, moments(1 << 22))]
    stored = StoredState(tmp_path, write(tmp_path, [large]))
    before = _resident()
    assert stored.read("a", 1 << 21, 3)[1]["exp_avg"].tolist() == [1.0] * 3
    assert _resident() - before < 4 << 20


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_few_files_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer_state, "_OPEN_FILES", 2)
    ranks = [[fragment("a", rank, [5], 1.0, moments(1, rank))] for rank in range(5)]
    stored = StoredState(tmp_path, write(tmp_path, ranks))
    assert stored.read("a", 0, 5)[1]["exp_avg"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert len(stored._open) <= 2


REMEDY = "remove the folder to fall back to the checkpoint before it"


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (fragment("a", 3, [8], 1.0, moments(5)), "elements 3 to 8; .*00000-of.* holds 0 to 4"),
        (fragment("a", 4, [2, 4], 1.0, moments(4)), r"of shape \(2, 4\); .*00000-of.* \(8,\)"),
        (fragment("a", 4, [8], 2.0, moments(4)), "after 2 updates; .*00000-of.* has 1"),
    ],
)
def test_fragments_that_contradict_each_other(tmp_path: Path, second: Fragment, said: str) -> None:
    files = write(tmp_path, [[fragment("a", 0, [8], 1.0, moments(4))], [second]])
    expected = rf"00001-of-00002\.safetensors: state of 'a', {said}; .*{REMEDY}"
    with pytest.raises(CheckpointError, match=expected):
        StoredState(tmp_path, files)


def test_a_hole_is_named(tmp_path: Path) -> None:
    ranks = [[fragment("a", start, [9], 1.0, moments(3))] for start in (0, 6)]
    stored = StoredState(tmp_path, write(tmp_path, ranks))
    assert stored.read("a", 6, 3)[0] == 1.0
    for start, reached in ((0, 3), (2, 3), (4, 4)):
        with pytest.raises(CheckpointError, match=f"'a', of which elements from {reached} on are"):
            stored.read("a", start, 9 - start)
    with pytest.raises(CheckpointError, match="9 elements, of which 5 to 10 are asked for"):
        stored.read("a", 5, 5)


def test_state_of_another_model_is_refused(tmp_path: Path) -> None:
    stored = StoredState(tmp_path, write(tmp_path, [[fragment("a", 0, [2, 3], 1.0, moments(6))]]))
    stored.require_fit({"a": (2, 3), "b": (1,)})
    with pytest.raises(CheckpointError, match="'a', which the configured model does not train"):
        stored.require_fit({"b": (1,)})
    with pytest.raises(CheckpointError, match=r"'a', of shape \(2, 3\), in the model it is \(3, 2"):
        stored.require_fit({"a": (3, 2)})


def test_tensors_of_other_shape_or_type_are_refused(tmp_path: Path) -> None:
    table = fragment_table([fragment("a", 0, [4], 1.0, moments(4))])
    for tensor in (torch.zeros(3), torch.zeros(4).double(), torch.zeros(2, 2)):
        held = {tensor_name("a", 0, moment): tensor.clone() for moment in MOMENTS}
        save_file(held, tmp_path / "optimizer-x.safetensors", metadata=table)
        stored = StoredState(tmp_path, ["optimizer-x.safetensors"])
        with pytest.raises(CheckpointError, match=r"x\.safetensors: state of 'a', exp_avg is F"):
            stored.read("a", 0, 4)
    save_file({"other": torch.zeros(4)}, tmp_path / "optimizer-x.safetensors", metadata=table)
    with pytest.raises(CheckpointError, match=r"x\.safetensors: state of 'a', which cannot be"):
        StoredState(tmp_path, ["optimizer-x.safetensors"]).read("a", 0, 4)


@pytest.mark.parametrize(
    "table",
    [None, "", "{", "3", "[1]", '[["a", 0]]', '[["a", 5, 2, [6], 1.0]]', '[["a", 0, 1, ["x"], 1]]',
     '[["a", 0, 1, [1], "x"]]', '[["a", -1, 1, [1], 1.0]]', "[" * 100_000,
     json.dumps([["a", 0, 1, [1], 10**400]])],
)  # fmt: skip
def test_a_header_without_a_table_is_refused(tmp_path: Path, table: str | None) -> None:
    metadata = None if table is None else {"fragments": table}
    save_file({"a": torch.zeros(1)}, tmp_path / "optimizer-x.safetensors", metadata=metadata)
    with pytest.raises(
        CheckpointError, match=rf"x\.safetensors: its header has no table.*{REMEDY}"
    ):
        StoredState(tmp_path, ["optimizer-x.safetensors"])


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, (1 << 40).to_bytes(8, "little") + b"{}"])
def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "optimizer-x.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"x\.safetensors: cannot be read .*{REMEDY}"):
        StoredState(tmp_path, ["optimizer-x.safetensors"])
    with pytest.raises(CheckpointError, match=r"absent\.safetensors: cannot be read"):
        StoredState(tmp_path, ["absent.safetensors"])


def test_which_files_are_of_the_optimizer() -> None:
    assert is_optimizer_file(optimizer_file(3, 12))
    assert not is_optimizer_file("model.safetensors")
    assert not is_optimizer_file("optimizer.pt")


def test_a_fragment_that_would_not_read_back_is_not_made() -> None:
    for wrong in (torch.zeros(4).bfloat16(), torch.zeros(3), torch.zeros(2, 2)):
        with pytest.raises(ValueError, match=r"a: exp_avg_sq is .*; give fp32 \(4,\)"):
            fragment("a", 0, [4], 1.0, {"exp_avg": torch.zeros(4), "exp_avg_sq": wrong})
