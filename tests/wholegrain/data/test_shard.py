"""Writing shards: plain WebDataset, the same bytes each time, all or nothing."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wholegrain.data import shard_tar
from wholegrain.data.corpus import Corpus
from wholegrain.data.record import Record, Reference, Region, parse_record
from wholegrain.data.shard import ShardWriter
from wholegrain.data.shard_folder import atomic_folder, locked_folder
from wholegrain.data.shard_image import image_kind, probe_image
from wholegrain.errors import DataError

SOURCE = {"converter": "test", "key": "0"}


def encoded(width: int, height: int, kind: str = "jpeg", mode: str = "RGB", **options) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def record(number: int, split: str = "train", **changes) -> Record:
    values = {
        "id": f"test/{number}",
        "source": "test",
        "split": split,
        "width": 24,
        "height": 16,
        "captions": (f"picture {number}",),
        **changes,
    }
    return Record(**values)


def write(out: Path, count: int = 5, **options) -> Path:
    with ShardWriter(out, source=SOURCE, **options) as writer:
        for number in range(count):
            writer.write(record(number), encoded(24, 16), "jpg")
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_any_webdataset_reader_reads_the_shards(tmp_path: Path) -> None:
    images = {
        "jpg": encoded(24, 16),
        "png": encoded(24, 16, "png"),
        "webp": encoded(24, 16, "webp"),
    }
    with ShardWriter(tmp_path / "c", source=SOURCE, max_samples=2) as writer:
        for number, (kind, image) in enumerate(images.items()):
            writer.write(record(number), image, kind)
    paths = sorted(str(path) for path in (tmp_path / "c").glob("*.tar"))
    assert len(paths) == 2
    samples = list(webdataset.WebDataset(paths, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{n:011d}" for n in range(3)]
    for number, (sample, (kind, image)) in enumerate(zip(samples, images.items(), strict=True)):
        assert sample[kind] == image
        assert parse_record(sample["json"], "") == record(number)
    for path in paths:
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
        assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in members} == {(0, 0, 0, 0o644, "")}


def test_equal_input_gives_equal_bytes_and_other_input_another_fingerprint(tmp_path: Path) -> None:
    first, again = write(tmp_path / "a" / "c"), write(tmp_path / "b" / "c")
    assert contents(first) == contents(again)
    other = write(tmp_path / "d" / "c", count=4)
    assert Corpus.open(first).fingerprint != Corpus.open(other).fingerprint


def test_the_manifest_counts_what_was_written(tmp_path: Path) -> None:
    ref = Reference("refcoco-unc", 1, (5, 6), "val")
    regions = (
        Region("region", (0, 0, 4, 4), ("left cat", "cat on the left"), ref=ref),
        Region("region", (0, 0, 4, 4), ("a cat",)),
        Region("object", (0, 0, 4, 4), ("cat",)),
    )
    with ShardWriter(tmp_path / "c", source=SOURCE) as writer:
        writer.write(record(0, "val", regions=regions), encoded(24, 16), "jpg")
        writer.write(record(1, captions=("a", "b")), encoded(24, 16), "jpg")
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert manifest == writer.manifest
    assert manifest["counts"] == {
        "images": 2,
        "captions": 3,
        "regions": 2,
        "objects": 1,
        "phrases": 3,
        "expressions": 2,
        "references": 1,
    }
    assert manifest["splits"] == {"val": 1, "train": 1}
    assert manifest["name"] == "c"
    assert manifest["source"] == SOURCE


def test_shards_close_at_either_limit(tmp_path: Path) -> None:
    by_count = write(tmp_path / "count", count=5, max_samples=2)
    assert [s.samples for s in Corpus.open(by_count).shards] == [2, 2, 1]
    one = 512 * (2 + 1) + -(-len(encoded(24, 16)) // 512) * 512
    by_size = write(tmp_path / "size", count=5, max_bytes=3 * one)
    assert [s.samples for s in Corpus.open(by_size).shards] == [3, 2]
    tiny = write(tmp_path / "tiny", count=2, max_bytes=1)
    assert [s.samples for s in Corpus.open(tiny).shards] == [1, 1]


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "c", source=SOURCE) as writer:
        writer.write(record(0), encoded(24, 16), "jpg")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_nothing_written_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match="no sample"),
        ShardWriter(tmp_path / "c", source=SOURCE),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_refused_and_untouched(tmp_path: Path) -> None:
    out = write(tmp_path / "c")
    before = contents(out)
    with pytest.raises(DataError, match=f"{out}: the output folder exists"):
        write(out, count=2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="exists"):
        write(tmp_path / "empty")
    assert contents(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "empty"]


def test_overwriting_replaces_a_corpus_at_the_end_and_nothing_else(tmp_path: Path) -> None:
    out = write(tmp_path / "c")
    with pytest.raises(RuntimeError), ShardWriter(out, source=SOURCE, overwrite=True) as writer:
        writer.write(record(0), encoded(24, 16), "jpg")
        raise RuntimeError
    assert len(Corpus.open(out)) == 5
    assert len(Corpus.open(write(out, count=2, overwrite=True))) == 2
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "holiday.jpg").touch()
    (tmp_path / "link").symlink_to(out)
    for wrong in (photos, tmp_path / "link"):
        with pytest.raises(DataError, match="not overwritten"):
            write(wrong, overwrite=True)
    assert (photos / "holiday.jpg").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "link", "photos"]


def test_who_finishes_second_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "c"
    with pytest.raises(DataError, match="exists"), ShardWriter(out, source=SOURCE) as slow:
        slow.write(record(0), encoded(24, 16), "jpg")
        write(out, count=3)
    assert len(Corpus.open(out)) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


KILLED = """
import sys, time
from pathlib import Path
from wholegrain.data.record import Record
from wholegrain.data.shard import ShardWriter
with ShardWriter(Path(sys.argv[1]), source={}) as writer:
    image = Path(sys.argv[2]).read_bytes()
    writer.write(Record("a", "s", "train", 24, 16, ("x",)), image, "jpg")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_killed_run_leaves_no_corpus_and_the_next_one_clears_up(tmp_path: Path) -> None:
    image, out = tmp_path / "image", tmp_path / "work" / "c"
    image.write_bytes(encoded(24, 16))
    command = [sys.executable, "-c", KILLED, str(out), str(image)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"ready\n"
        (partial,) = out.parent.iterdir()
        assert partial.name.startswith(f"c.partial-{run.pid}-")
        # A live run's folder is not taken for a leftover.
        write(out.parent / "c.x")
        with atomic_folder(out, overwrite=False, marker="manifest.json"):
            assert partial.is_dir()
        out.rmdir()
        run.send_signal(signal.SIGKILL)
    assert partial.is_dir() and not out.exists()
    with pytest.raises(DataError, match=r"manifest\.json"):
        Corpus.open(partial)
    write(out)
    assert sorted(path.name for path in out.parent.iterdir()) == ["c", "c.x"]


def test_a_run_killed_between_the_two_renames_of_overwriting_loses_nothing(tmp_path: Path) -> None:
    write(tmp_path / "c").rename(tmp_path / "c.replaced-1")
    with pytest.raises(DataError, match="exists"):
        write(tmp_path / "c", count=1)
    assert len(Corpus.open(tmp_path / "c")) == 5
    write(tmp_path / "d").rename(tmp_path / "c.replaced-1")
    write(tmp_path / "c", count=1, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]


def test_a_folder_is_changed_by_one_run_at_a_time(tmp_path: Path) -> None:
    with (
        locked_folder(tmp_path),
        pytest.raises(DataError, match="another run"),
        locked_folder(tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("bad", "image", "ext", "message"),
    [
        (record(9, captions=()), encoded(24, 16), "jpg", "captions"),
        (record(9, width=25), encoded(24, 16), "jpg", "width is 25; the stored image has 24 px"),
        (record(9, height=15), encoded(24, 16), "jpg", "height"),
        (record(9), encoded(24, 16, "png"), "jpg", "the image is a png"),
        (record(9), b"<!DOCTYPE html><html>", "jpg", "not a JPEG"),
        (record(9), b"", "jpg", "not a JPEG"),
        (record(9), encoded(24, 16)[:20], "jpg", "cut off"),
        (record(0), encoded(24, 16), "jpg", "already in this split"),
        (
            record(9, regions=(Region("object", (0, 0, 30, 4), ("cat",)),)),
            encoded(24, 16),
            "jpg",
            r"regions\[0\].box",
        ),
    ],
    ids=range(9),
)
def test_a_refused_sample_is_named_and_leaves_no_trace(
    tmp_path: Path, bad: Record, image: bytes, ext: str, message: str
) -> None:
    with ShardWriter(tmp_path / "c", source=SOURCE) as writer:
        for number in range(5):
            writer.write(record(number), encoded(24, 16), "jpg")
            with pytest.raises(DataError, match=message) as caught:
                writer.write(bad, image, ext)
            assert str(caught.value).startswith(f"{tmp_path / 'c'}: record {bad.id!r}: ")
    assert contents(tmp_path / "c") == contents(write(tmp_path / "same" / "c"))


def test_one_id_may_stand_in_two_splits(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "c", source=SOURCE) as writer:
        for split in ("train", "val"):
            writer.write(record(0, split), encoded(24, 16), "jpg")
    assert Corpus.open(tmp_path / "c").splits == {"train": 1, "val": 1}


def test_what_is_stored_is_the_clipped_record(tmp_path: Path) -> None:
    region = Region("object", (-0.5, 0, 24.5, 16.25), ("cat",))
    with ShardWriter(tmp_path / "c", source=SOURCE) as writer:
        writer.write(record(0, regions=(region,)), encoded(24, 16), "jpg")
    (sample,) = webdataset.WebDataset(str(tmp_path / "c/shard-000000.tar"), shardshuffle=False)
    assert json.loads(sample["json"])["regions"][0]["box"] == [0, 0, 24, 16]


def test_a_full_disk_ends_the_run_even_if_taken_for_a_bad_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = shard_tar.ShardFile._put

    def put(self, data: bytes) -> None:
        if self.samples == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(self, data)

    monkeypatch.setattr(shard_tar.ShardFile, "_put", put)
    refused = 0
    with (
        pytest.raises(DataError, match="No space left"),
        ShardWriter(tmp_path / "c", source=SOURCE) as writer,
    ):
        for number in range(5):
            try:
                writer.write(record(number), encoded(24, 16), "jpg")
            except DataError:
                refused += 1
    assert refused == 3
    with pytest.raises(DataError, match="No space left"):
        write(tmp_path / "at-the-end", count=2)
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments_fail_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        ShardWriter(tmp_path / "c", source={"root": Path()})
    with pytest.raises(DataError, match="at least 1"):
        ShardWriter(tmp_path / "c", source=SOURCE, max_samples=0)


def test_a_place_where_nothing_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be made"):
        write(tmp_path / "file" / "c")


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("jpeg", "RGB", {}),
        ("jpeg", "L", {"progressive": True}),
        ("jpeg", "CMYK", {"exif": b"Exif\0\0" + bytes(3000), "comment": b"\xff\xc0" * 20}),
        ("png", "RGBA", {}),
        ("png", "P", {}),
        ("webp", "RGB", {"lossless": True}),
        ("webp", "RGB", {"quality": 50}),
        ("webp", "RGBA", {"quality": 50}),
    ],
)
@pytest.mark.parametrize("size", [(1, 1), (300, 7), (37, 5000)])
def test_the_header_tells_kind_and_size(
    kind: str, mode: str, options: dict, size: tuple[int, int]
) -> None:
    data = encoded(*size, kind, mode, **options)
    header = probe_image(data, "here")
    assert (header.width, header.height) == size
    assert header.kind == {"jpeg": "jpg"}.get(kind, kind)
    for end in range(24):  # the shortest header of the three
        with pytest.raises(DataError, match="here: "):
            probe_image(data[:end], "here")


def test_stray_bytes_between_jpeg_segments_are_passed_over() -> None:
    data = encoded(9, 8)
    assert probe_image(data[:2] + b"\xff\xff" + data[2:], "").width == 9
    first = 4 + int.from_bytes(data[4:6], "big")
    assert probe_image(data[:first] + b"\0\1\2" + data[first:], "").height == 8


@given(
    st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF....WEBPVP8 ", b""]),
    st.binary(max_size=80),
)
def test_random_bytes_are_a_size_or_a_data_error(start: bytes, rest: bytes) -> None:
    try:
        header = probe_image(start + rest, "here")
    except DataError:
        return
    assert header.width > 0 and header.height > 0
    assert image_kind(start + rest) == header.kind


def test_a_corpus_is_readable_by_whom_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        out = write(tmp_path / "c")
    finally:
        os.umask(before)
    assert out.stat().st_mode & 0o777 == 0o755
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in out.iterdir())
