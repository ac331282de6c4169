"""A checkpoint is whole or it does not exist, and which of them a run goes on from."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from tests.wholegrain.train.toy_state import Toy
from wholegrain.errors import CheckpointError
from wholegrain.train import checkpoint
from wholegrain.train.checkpoint import MARKER, Checkpoint, newest_whole, verify
from wholegrain.train.checkpoint_writer import Writer

WORLD = 2
OPTIMIZER = [f"optimizer-0000{rank}-of-00002.safetensors" for rank in range(WORLD)]
FILES = ["model.safetensors", *OPTIMIZER, "state.json", "a.json"]


def saved(run: Path, *steps: int) -> list[Checkpoint]:
    """Checkpoints of a toy run on two ranks."""
    toy = Toy()
    writers = [
        Writer(
            run,
            rank=rank,
            world=WORLD,
            keep=99,
            keep_every=0,
            background=True,
            say=pytest.fail,
            patience_s=20,
        )
        for rank in range(WORLD)
    ]
    for step in steps:
        toy.advance(step)
        for rank, writer in enumerate(writers):
            toy.save(writer, rank, WORLD)
        for writer in writers:
            writer.wait()
    return checkpoint.complete(run)[-len(steps) :]


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.fixture
def said() -> list[str]:
    return []


def test_round_trip(tmp_path: Path) -> None:
    (found,) = saved(tmp_path, 12)
    assert found.folder == tmp_path / "checkpoints" / "step_000012"
    assert found.step == 12
    assert found.state() == {"step": 12, "facts": {"seed": 0}}
    assert json.loads((found.folder / "state.json").read_text()) == found.state()
    assert (found.folder / "a.json").read_text() == "{}"
    assert sorted(p.name for p in found.folder.iterdir()) == sorted(
        [*FILES, "checksums.json", MARKER]
    )
    assert found.sums().keys() == set(FILES)
    assert sorted(found.optimizer().names()) == ["bias", "matrix"]
    assert Toy().load(found).digest() == Toy().advance(12).digest()
    assert verify(found) is None


def test_what_goes_on_from_it_is_what_was_never_interrupted(tmp_path: Path) -> None:
    (found,) = saved(tmp_path, 3)
    assert Toy().load(found).advance(7).digest() == Toy().advance(7).digest()


def test_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    for resume in ("auto", "never"):
        assert newest_whole(tmp_path, resume, pytest.fail) is None


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    (found,) = saved(tmp_path, 5)
    for name in ("step_1000000", "step_999999"):
        shutil.copytree(found.folder, found.folder.with_name(name))
    assert [found.step for found in checkpoint.complete(tmp_path)] == [5, 999_999, 1_000_000]


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def lengthened(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def taken_from_the_one_before(path: Path) -> None:
    shutil.copy(path.parent.parent / "step_000003" / path.name, path)


def missing(path: Path) -> None:
    path.unlink()


DAMAGES: dict[Callable[[Path], None], str] = {
    truncated: "bytes instead of",
    emptied: "has 0 bytes instead of",
    lengthened: "bytes instead of",
    flipped: "is altered: its sha256 is not that of",
    missing: "is missing",
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_taken(
    tmp_path: Path, said: list[str], name: str, damage: Callable[[Path], None]
) -> None:
    before, found = saved(tmp_path, 3, 6)
    damage(found.folder / name)
    reason = verify(found)
    assert reason is not None
    assert reason.startswith(f"{name} ")
    assert DAMAGES[damage] in reason
    assert newest_whole(tmp_path, "auto", said.append) == before
    assert said == [
        f"{found.folder} is not whole: {reason}; it is now called step_000006.damaged, and the run "
        "continues from step 3"
    ]
    assert names(tmp_path) == ["step_000003", "step_000006.damaged"]
    assert checkpoint.latest(tmp_path) == before


@pytest.mark.parametrize("name", ["model.safetensors", OPTIMIZER[0], "state.json"])
def test_a_file_of_another_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    _, found = saved(tmp_path, 3, 6)
    taken_from_the_one_before(found.folder / name)
    assert str(verify(found)).startswith(f"{name} ")


def test_swapped_files_are_refused(tmp_path: Path) -> None:
    (found,) = saved(tmp_path, 3)
    one, other = (found.folder / name for name in OPTIMIZER)
    one.rename(found.folder / "aside")
    other.rename(one)
    (found.folder / "aside").rename(other)
    assert OPTIMIZER[0] in str(verify(found))


def test_a_folder_under_the_name_of_another_is_refused(tmp_path: Path) -> None:
    (found,) = saved(tmp_path, 3)
    copy = found.folder.with_name("step_000009")
    shutil.copytree(found.folder, copy)
    assert verify(Checkpoint(copy)) == "state.json is of step 3"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda sums: {}, "checksums.json does not list model.safetensors"),
        (lambda sums: {k: v for k, v in sums.items() if k != "state.json"}, "does not list state"),
        (lambda sums: {**sums, "../x": sums["a.json"]}, "checksums.json is damaged"),
        (lambda sums: {**sums, "..": sums["a.json"]}, "checksums.json is damaged"),
        (lambda sums: {**sums, "a.json": {"sha256": "x"}}, "checksums.json is damaged"),
        (lambda sums: [1, 2], "checksums.json is damaged"),
        (lambda sums: 3, "checksums.json is damaged"),
    ],
)
def test_altered_checksums(
    tmp_path: Path, change: Callable[[dict[str, object]], object], reason: str
) -> None:
    (found,) = saved(tmp_path, 3)
    path = found.folder / "checksums.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    assert reason in str(verify(found))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("checksums.json", truncated),
        ("checksums.json", emptied),
        ("checksums.json", missing),
        (MARKER, missing),
    ],
)
def test_damage_to_the_list_or_the_marker(
    tmp_path: Path, said: list[str], name: str, damage: Callable[[Path], None]
) -> None:
    before, found = saved(tmp_path, 3, 6)
    damage(found.folder / name)
    assert newest_whole(tmp_path, "auto", said.append) == before
    assert f"step_000006 is not whole: {name} is " in said[0]


def test_a_large_text_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_LARGEST_JSON", 10)
    (found,) = saved(tmp_path, 3)
    with pytest.raises(CheckpointError, match=r"state\.json: cannot be read \(\d+ bytes are too"):
        found.state()
    assert verify(found) == "checksums.json is damaged"


def test_a_checkpoint_of_another_form_is_refused_by_name(tmp_path: Path, said: list[str]) -> None:
    """As those were that held ``optimizer.pt``: nothing in them is ever unpickled."""
    (before,) = saved(tmp_path, 3)
    old = before.folder.with_name("step_000006")
    old.mkdir()
    for name in ("model.safetensors", "optimizer.pt", MARKER):
        (old / name).touch()
    (old / "state.json").write_text('{"step": 6}')
    assert newest_whole(tmp_path, "auto", said.append) == before
    assert "step_000006 is not whole: checksums.json is missing, so it is of a form that" in said[0]


def test_all_between_the_newest_and_the_newest_whole_are_named(
    tmp_path: Path, said: list[str]
) -> None:
    found = saved(tmp_path, 3, 6, 9, 12)
    for damaged in found[2:]:
        truncated(damaged.folder / "model.safetensors")
    assert newest_whole(tmp_path, "auto", said.append) == found[1]
    assert ["step_000012 is" in said[0], "step_000009 is" in said[1], len(said)] == [True, True, 2]
    truncated(found[1].folder / "a.json")
    shutil.copytree(found[1].folder, found[1].folder.with_name("step_000006.damaged"))
    assert newest_whole(tmp_path, "auto", said.append) == found[0]
    assert "it is now called step_000006.damaged-2" in said[2]


def test_where_none_is_whole_nothing_begins_from_nothing(tmp_path: Path) -> None:
    for found in saved(tmp_path, 3, 6):
        truncated(found.folder / "model.safetensors")
    for _ in range(2):
        with pytest.raises(
            CheckpointError, match=r"no checkpoint is whole \(step_000006: model\.s.*; step_000003:"
        ):
            newest_whole(tmp_path, "auto", pytest.fail)
    assert names(tmp_path) == ["step_000003", "step_000006"]


def test_never_refuses_to_go_on(tmp_path: Path) -> None:
    saved(tmp_path, 3, 6)
    with pytest.raises(
        CheckpointError, match=r"up to step 6, and run.resume is 'never'; give anot"
    ):
        newest_whole(tmp_path, "never", pytest.fail)


def test_a_step_is_taken_and_later_ones_never_come_back(tmp_path: Path, said: list[str]) -> None:
    found = saved(tmp_path, 3, 6, 9)
    assert newest_whole(tmp_path, 3, said.append) == found[0]
    assert said == [
        f"{later.folder} is now called {later.folder.name}.set-aside: the run continues from step 3"
        for later in found[1:]
    ]
    assert newest_whole(tmp_path, "auto", pytest.fail) == found[0]
    saved(tmp_path, 6)
    assert newest_whole(tmp_path, 3, said.append) == found[0]
    assert names(tmp_path) == [
        "step_000003",
        "step_000006.set-aside",
        "step_000006.set-aside-2",
        "step_000009.set-aside",
    ]


def test_a_step_that_is_not_there_or_not_whole(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 4, .*there are: none"):
        newest_whole(tmp_path, 4, pytest.fail)
    found = saved(tmp_path, 3, 6, 9)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 4, .*there are: 3, 6, 9"):
        newest_whole(tmp_path, 4, pytest.fail)
    missing(found[1].folder / "a.json")
    with pytest.raises(
        CheckpointError, match=r"step_000006: is not whole \(a\.json is missing\).*also: 3, 9"
    ):
        newest_whole(tmp_path, 6, pytest.fail)
    assert names(tmp_path) == ["step_000003", "step_000006", "step_000009"]


def test_a_folder_that_cannot_be_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = saved(tmp_path, 3, 6)
    missing(found[1].folder / "a.json")

    def refuse(path: Path, target: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(CheckpointError, match=r"step_000006: cannot be renamed .*Read-only file"):
        newest_whole(tmp_path, "auto", pytest.fail)


@pytest.mark.parametrize("replaced", [True, False])
def test_a_replacement_cut_in_half_is_undone(tmp_path: Path, replaced: bool) -> None:
    """A kill between the two renames: the older one is there under its hidden name alone."""
    (found,) = saved(tmp_path, 3)
    hidden = found.folder.with_name(".step_000003.replaced")
    if replaced:
        shutil.copytree(found.folder, hidden)
    else:
        found.folder.rename(hidden)
    assert newest_whole(tmp_path, "auto", pytest.fail) == found
    assert names(tmp_path) == ["step_000003"]


def test_the_rests_of_a_kill_are_swept(tmp_path: Path) -> None:
    (found,) = saved(tmp_path, 3)
    parent = found.folder.parent
    for name in (".step_000006.partial-2-ab", ".removed-step_000001", ".step_000003.replaced"):
        shutil.copytree(found.folder, parent / name)
    (parent / ".save-1.failed").touch()
    checkpoint.sweep(tmp_path)
    assert names(tmp_path) == ["step_000003"]


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_truncated_files_are_refused_by_name_where_they_are_read(
    tmp_path: Path, share: float
) -> None:
    (found,) = saved(tmp_path, 3)
    reads = {
        "state.json": found.state,
        "checksums.json": found.sums,
        "model.safetensors": lambda: found.load(Toy()),
        OPTIMIZER[1]: found.optimizer,
    }
    for name, read in reads.items():
        path = found.folder / name
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(CheckpointError, match=f"step_000003/{name}"):
            read()
        path.write_bytes(content)
        read()


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    (found,) = saved(tmp_path, 3)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: the weights do not fit"):
        found.load(nn.Linear(2, 2))
