"""Indexing tars: ours give back the writer's index, foreign ones are read with suspicion."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from wholegrain.data import index_file, index_scan
from wholegrain.data.corpus import Corpus
from wholegrain.data.index import INDEX_DTYPE, index_tars, open_index, write_index
from wholegrain.data.index_file import IndexWriter, id_hash
from wholegrain.data.record import Record
from wholegrain.data.shard import ShardWriter
from wholegrain.data.shard_tar import scan_tar, tar_header
from wholegrain.errors import DataError


def jpeg(width: int = 24, height: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (90, 50, 20)).save(buffer, "jpeg")
    return buffer.getvalue()


def make_tar(path: Path, members: list[tuple], tar_format: int = tarfile.USTAR_FORMAT) -> Path:
    """Members are (name, bytes) or (TarInfo, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def corpus(out: Path, count: int = 5) -> Path:
    with ShardWriter(out, source={"converter": "test"}, max_samples=2) as writer:
        for number in range(count):
            split = "val" if number == 1 else "train"
            record = Record(f"test/{number}", "test", split, 24, 16, (f"picture {number}",))
            writer.write(record, jpeg(), "jpg")
    return out


EXTENDED = [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
PAIR = [("000.jpg", jpeg()), ("000.txt", b"a cat")]


def test_scanning_our_shards_gives_the_index_that_the_writer_made(tmp_path: Path) -> None:
    out = corpus(tmp_path / "c")
    index, manifest = (out / "index.npy").read_bytes(), Corpus.open(out).manifest
    again = write_index(out)
    assert (out / "index.npy").read_bytes() == index
    assert {key: again[key] for key in manifest} == manifest
    (out / "index.npy").unlink()
    (out / "manifest.json").unlink()
    (out / ".index.npy.partial-1").write_bytes(b"of a killed run")
    lost = write_index(out)
    assert (out / "index.npy").read_bytes() == index
    assert lost["fingerprint"] == manifest["fingerprint"]
    assert sorted(path.name for path in out.iterdir() if path.suffix != ".tar") == [
        "index.npy",
        "manifest.json",
        "shards.npy",
    ]
    in_place = index_tars(out.glob("*.tar"), tmp_path / "elsewhere", source="unused")
    assert in_place["fingerprint"] == manifest["fingerprint"]
    there, here = Corpus.open(tmp_path / "elsewhere"), Corpus.open(out)
    assert [there.record(i) for i in range(5)] == [here.record(i) for i in range(5)]


def test_a_real_cc12m_shard_is_read_in_place(real_data: Path, tmp_path: Path) -> None:
    tar = real_data / "webdataset" / "cc12m-train-0000.tar"
    manifest = index_tars([tar], tmp_path / "c", source="cc12m")
    assert manifest["counts"]["images"] == manifest["counts"]["captions"] == 32
    assert manifest["skipped"] == {}
    found = Corpus.open(tmp_path / "c")
    expected = list(webdataset.WebDataset(str(tar), shardshuffle=False))
    assert len(found) == len(expected)
    for i, sample in enumerate(expected):
        record = found.record(i)
        assert record.id == f"cc12m-train-0000/{sample['__key__']}"
        assert record.captions == (sample["txt"].decode().strip(),)
        assert found.image_bytes(i) == sample["jpg"]
        with Image.open(io.BytesIO(sample["jpg"])) as image:
            assert (record.width, record.height) == image.size
        assert (record.source, record.split) == ("cc12m", "train")
    found.verify()


def test_captions_and_sizes_come_from_wherever_they_are(tmp_path: Path) -> None:
    tar = make_tar(
        tmp_path / "foreign-00.tar",
        [
            ("a.jpg", jpeg(30, 20)),
            ("a.txt", b" von der Datei\n"),
            ("a.json", json.dumps({"caption": "x", "width": 60, "height": 40}).encode()),
            ("b.JPEG", jpeg(31, 21)),
            ("b.json", json.dumps({"caption": "from json", "license": "CC0"}).encode()),
            ("c.cls", b"7"),
            ("c.jpg", jpeg(32, 22)),
            ("c.txt", b"text only"),
        ],
    )
    index_tars([tar], tmp_path / "c", source="web", split="pretrain")
    found = Corpus.open(tmp_path / "c")
    assert [found.record(i) for i in range(3)] == [
        Record("foreign-00/a", "web", "pretrain", 60, 40, ("von der Datei",)),
        Record("foreign-00/b", "web", "pretrain", 31, 21, ("from json",), license="CC0"),
        Record("foreign-00/c", "web", "pretrain", 32, 22, ("text only",)),
    ]
    assert [int(value) for value in found.index["id"]] == [
        id_hash(f"foreign-00/{k}") for k in "abc"
    ]


def test_beside_foreign_tars_and_again_with_the_same_origin(tmp_path: Path) -> None:
    make_tar(tmp_path / "web" / "0.tar", PAIR)
    first = write_index(tmp_path / "web", source="cc3m", split="val")
    assert Corpus.open(tmp_path / "web").shards.file(0) == "0.tar"
    make_tar(tmp_path / "web" / "1.tar", PAIR)
    second = write_index(tmp_path / "web")
    assert second["plain"] == first["plain"] == {"source": "cc3m", "split": "val"}
    assert second["splits"] == {"val": 2}
    assert Corpus.open(tmp_path / "web").record(1).id == "1/000"


def test_samples_without_image_or_text_are_counted_not_lost_silently(tmp_path: Path) -> None:
    members = [
        ("a.txt", b"no image"),
        ("b.jpg", b""),
        ("c.jpg", jpeg()),
        ("d.jpg", jpeg()),
        ("d.txt", b" "),
        ("e.jpg", jpeg()),
        ("e.json", b"{broken"),
        ("f.jpg", jpeg()),
        ("f.txt", b"\xff\xfe"),
        ("notes.md", b"not of a sample"),
    ]
    tar = make_tar(tmp_path / "0.tar", [*members, ("g.jpg", jpeg()), ("g.txt", b"good")])
    manifest = index_tars([tar], tmp_path / "c", source="web")
    assert manifest["counts"]["images"] == 1
    assert manifest["skipped"] == {"unreadable_text": 2, "without_image": 2, "without_text": 2}
    none = make_tar(tmp_path / "1.tar", members)
    with pytest.raises(DataError, match=r"no image with a text.*without_image"):
        index_tars([none], tmp_path / "d", source="web")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_every_tar_dialect_with_folders_and_long_names(tmp_path: Path, tar_format: int) -> None:
    folder = "/".join(["deep" * 10] * 3)
    dated = tarfile.TarInfo("./x/000.jpg")
    dated.mtime = 1747969211.5 if tar_format == tarfile.PAX_FORMAT else 1747969211
    tar = make_tar(
        tmp_path / "0.tar",
        [
            special("x", tarfile.DIRTYPE),
            (dated, jpeg()),
            ("./x/000.txt", b"short"),
            (f"{folder}/ünï.jpg", jpeg()),
            (f"{folder}/ünï.txt", b"long"),
        ],
        tar_format,
    )
    with tarfile.open(tar) as theirs:
        expected = [(m.name, m.offset_data, m.size) for m in theirs if m.isreg()]
    assert [(m.name, m.data, m.size) for m in scan_tar(tar)] == expected
    index_tars([tar], tmp_path / "c", source="web")
    found = Corpus.open(tmp_path / "c")
    assert [found.record(i).id for i in (0, 1)] == ["0/./x/000", f"0/{folder}/ünï"]
    assert found.record(1).captions == ("long",)
    assert found.image_bytes(1) == jpeg()


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (special("000.json", tarfile.SYMTYPE, "/etc/passwd"), "symbolic link"),
        (special("000.json", tarfile.LNKTYPE, "000.jpg"), "hard link"),
        (special("000.json", tarfile.CHRTYPE), "device"),
        (special("000.json", tarfile.FIFOTYPE), "pipe"),
        (special("000.json", tarfile.GNUTYPE_SPARSE), "sparse"),
        (special("000.json", b"Z"), "of type 'Z'"),
        (("/etc/000.json", b"{}"), "absolute or climbs"),
        (("../000.json", b"{}"), "absolute or climbs"),
        (("a/../../000.json", b"{}"), "absolute or climbs"),
        (("..", b""), "absolute or climbs"),
        (("", b""), "empty"),
        ((b"\xff".decode("utf-8", "surrogateescape"), b""), "not UTF-8"),
        (("000.txt", b"again"), "occurs twice"),
    ],
    ids=range(13),
)
@pytest.mark.parametrize("tar_format", EXTENDED)
def test_what_a_shard_may_not_hold(
    tmp_path: Path, member: tuple, message: str, tar_format: int
) -> None:
    tar = make_tar(tmp_path / "bad.tar", [*PAIR, member], tar_format)
    with pytest.raises(DataError, match=message) as caught:
        index_tars([tar], tmp_path / "c", source="web")
    assert str(tar) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.tar"]


def test_pax_fields_that_change_what_a_member_is(tmp_path: Path) -> None:
    for number, (field, message) in enumerate(
        [
            ({"path": "../../etc/x.jpg"}, "absolute or climbs"),
            ({"size": "-5"}, "not supported"),
            ({"size": "9" * 19}, "cut off"),
            ({"GNU.sparse.major": "1"}, "not supported"),
            ({"comment": "x" * 200_000}, "too large"),
        ]
    ):
        info = tarfile.TarInfo("000.jpg")
        info.pax_headers = field
        tar = make_tar(tmp_path / f"{number}.tar", [(info, b"data")], tarfile.PAX_FORMAT)
        with pytest.raises(DataError, match=message):
            list(scan_tar(tar))


def test_members_above_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(index_scan._LIMITS, "jpg", 1000)
    tar = make_tar(
        tmp_path / "0.tar",
        [("a.jpg", bytes(1000)), ("a.txt", b"x"), ("a.npy", bytes(5000)), ("b.jpg", bytes(1001))],
    )
    with pytest.raises(DataError, match=r"0\.tar: member 'b\.jpg' has 1001 bytes, above 1000"):
        list(index_scan.scan_samples(tar))


def test_an_oversized_claim_is_refused_without_reading_it(tmp_path: Path) -> None:
    tar = tmp_path / "0.tar"
    with open(tar, "wb") as file:
        file.write(tar_header("a.json", 5 << 20))
        file.truncate(file.tell() + (5 << 20) + 1024)  # a sparse file costs nothing
    with pytest.raises(DataError, match=r"'a\.json' has 5242880 bytes, above"):
        write_index(tmp_path)


def test_samples_must_be_neighbours(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "0.tar", [PAIR[0], ("001.jpg", jpeg()), PAIR[1]])
    with pytest.raises(DataError, match="'000' are not neighbours"):
        write_index(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [tar.name]


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    whole = make_tar(tmp_path / "whole.tar", PAIR).read_bytes()
    content = whole.rstrip(b"\0")
    cut = tmp_path / "cut.tar"
    last_member_end = -(-len(content) // 512) * 512
    for end in [*range(0, last_member_end, 97), *range(0, last_member_end + 512, 512)]:
        cut.write_bytes(whole[:end])
        with pytest.raises(DataError, match=str(cut)):
            list(scan_tar(cut))
    cut.write_bytes(whole[: last_member_end + 512])
    assert len(list(scan_tar(cut))) == 2


def test_a_flipped_bit_in_any_header_field_is_noticed(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "0.tar", PAIR)
    whole = tar.read_bytes()
    for position in (0, 100, 130, 156, 300, 400):  # name, mode, size, type, owner, prefix
        damaged = bytearray(whole)
        damaged[position] ^= 1
        tar.write_bytes(damaged)
        with pytest.raises(DataError, match=r"0\.tar: byte 0: no tar header"):
            list(scan_tar(tar))


@pytest.mark.parametrize(
    "data",
    [b"", b"short", b"<!DOCTYPE html>" * 100, gzip.compress(bytes(9000)), bytes(range(256)) * 8],
    ids=["empty", "short", "html", "gzip", "noise"],
)
def test_what_is_no_tar(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "0.tar").write_bytes(data)
    with pytest.raises(DataError, match=r"0\.tar: byte 0: "):
        write_index(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 1023), st.integers(0, 255)), max_size=4), st.booleans())
def test_a_damaged_tar_gives_a_data_error_or_is_read(
    tmp_path: Path, damage: list[tuple[int, int]], mend: bool
) -> None:
    info = tarfile.TarInfo("000.jpg")
    info.mtime = 0.5  # a pax header comes first
    data = bytearray(
        make_tar(tmp_path / "0.tar", [(info, jpeg()), PAIR[1]], tarfile.PAX_FORMAT).read_bytes()
    )
    for position, value in damage:
        data[position] = value
    if mend:  # so that damage gets past the check sum
        data[148:156] = b" " * 8
        data[148:156] = b"%06o\0 " % sum(data[:512])
    (tmp_path / "0.tar").write_bytes(data)
    try:
        members = list(scan_tar(tmp_path / "0.tar"))
    except DataError as error:
        assert str(tmp_path / "0.tar") in str(error)
    else:
        assert all(m.data + m.size <= len(data) for m in members)


def test_records_and_plain_samples_do_not_mix(tmp_path: Path) -> None:
    out = corpus(tmp_path / "c")
    make_tar(out / "zzz.tar", PAIR)
    index = (out / "index.npy").read_bytes()
    with pytest.raises(DataError, match="index them apart"):
        write_index(out)
    # The failure leaves the old index, which is still right for the shards it names.
    assert (out / "index.npy").read_bytes() == index
    assert len(Corpus.open(out)) == 5
    assert not list(out.glob(".*"))


def test_a_broken_record_of_ours_is_an_error(tmp_path: Path) -> None:
    broken = {"schema": 1, "captions": ["x"], "id": "a", "source": "s", "split": "t", "width": -1}
    make_tar(tmp_path / "0.tar", [PAIR[0], ("000.json", json.dumps(broken).encode())])
    with pytest.raises(DataError, match=r"0\.tar:000\.json: width is -1"):
        write_index(tmp_path)


def test_no_tars_and_no_such_tar(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tar to index"):
        index_tars([], tmp_path / "c", source="web")
    with pytest.raises(DataError, match=r"nowhere\.tar: cannot be opened"):
        index_tars([tmp_path / "nowhere.tar"], tmp_path / "c", source="web")
    with pytest.raises(DataError, match="no tar to index"):
        write_index(tmp_path)
    with pytest.raises(DataError, match="no folder"):
        write_index(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_the_order_of_the_arguments_does_not_matter(tmp_path: Path) -> None:
    tars = [make_tar(tmp_path / f"{n}.tar", [*PAIR, (f"{n}.jpg", b"")]) for n in range(3)]
    names: list[str] = []
    first = index_tars(tars, tmp_path / "c", source="web", progress=names.append)
    second = index_tars([*tars[::-1], tars[0]], tmp_path / "d", source="web")
    assert first["fingerprint"] == second["fingerprint"]
    assert names == ["0.tar", "1.tar", "2.tar"]


@pytest.mark.parametrize("rows", [0, 1, 9, 10, 101])
def test_the_index_file_is_plain_numpy(
    tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(IndexWriter, "_FLUSH_ROWS", 10)
    fields = len(INDEX_DTYPE.names)
    with IndexWriter(tmp_path / "index.npy") as writer:
        for row in range(rows):
            writer.add(tuple(range(row, row + fields)))
    found = np.load(tmp_path / "index.npy", allow_pickle=False)
    assert found.dtype == INDEX_DTYPE and found.shape == (rows,)
    assert [tuple(map(int, row)) for row in found.tolist()] == [
        tuple(range(row, row + fields)) for row in range(rows)
    ]


def test_an_exception_leaves_no_index(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), IndexWriter(tmp_path / "index.npy"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_index(tmp_path: Path) -> None:
    path = tmp_path / "index.npy"
    for data in (b"", b"noise" * 100):
        path.write_bytes(data)
        with pytest.raises(DataError, match="index"):
            open_index(path)
    np.save(path, np.zeros(3))
    with pytest.raises(DataError, match="another layout"):
        open_index(path)
    np.save(path, np.array([{}, None], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="index"):
        open_index(path)
    with pytest.raises(DataError, match="index"):
        open_index(tmp_path / "nowhere.npy")


def test_rows_are_compact() -> None:
    assert index_file.INDEX_DTYPE.itemsize == 56
