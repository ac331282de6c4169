import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_tools.__main__ import build_parser
from wholegrain.data.corpus import Corpus

Run = Callable[..., Any]


@pytest.fixture
def many_tars(
    tmp_path: Path, write_tar: Callable[..., Path], photo: Callable[..., bytes]
) -> Callable[..., str]:
    """Writes `count` pairs, of which `bad` are HTML pages, and returns the glob."""

    def make(count: int, bad: int = 0) -> str:
        members = []
        for number in range(count):
            page = b"<html>gone</html>"
            image = page if number < bad else photo(number, 16, 16)
            members += [(f"{number:04d}.jpg", image), (f"{number:04d}.txt", b"a caption")]
        write_tar(tmp_path / "pairs" / "0.tar", members)
        return str(tmp_path / "pairs" / "*.tar")

    return make


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "out" in path.name)


def test_coco(coco_layout: Any, tmp_path: Path, data_tools: Run) -> None:
    ran = data_tools("convert", "coco", *coco_layout.flags, "--out", tmp_path / "out")
    assert ran.status == 0, ran.err
    assert "left out: crowd box" in ran.out
    corpus = Corpus.open(tmp_path / "out")
    assert corpus.manifest["counts"]["captions"] == 6
    assert corpus.manifest["counts"]["objects"] == 3
    assert corpus.splits == {"val": 3}
    assert corpus.record(0).license == "Attribution License"
    photo = coco_layout.images / "000000000009.jpg"
    assert corpus.image_bytes(0) == photo.read_bytes()


def test_refcoco(refer_layout: Any, tmp_path: Path, data_tools: Run) -> None:
    flags = ["--root", refer_layout.root, "--images", refer_layout.images, "--split-by", "unc"]
    ran = data_tools("convert", "refcoco", *flags, "--out", tmp_path / "out")
    assert ran.status == 0, ran.err
    corpus = Corpus.open(tmp_path / "out")
    assert corpus.splits == {"train": 2, "val": 1}
    assert corpus.manifest["counts"]["expressions"] == 4
    assert corpus.manifest["name"] == "refcoco-unc"


def test_flickr30k_entities(flickr_layout: Path, tmp_path: Path, data_tools: Run) -> None:
    out = tmp_path / "out"
    flags = ["--root", flickr_layout, "--split", "val", "--name", "mine"]
    ran = data_tools("convert", "flickr30k_entities", *flags, "--out", out)
    assert ran.status == 0, ran.err
    corpus = Corpus.open(out)
    assert (corpus.splits, corpus.manifest["name"]) == ({"val": 1}, "mine")
    assert corpus.manifest["counts"]["phrases"] == 4
    assert len(corpus.record(0).regions[1].boxes) == 2


def test_image_text(many_tars: Any, tmp_path: Path, data_tools: Run) -> None:
    out = tmp_path / "out"
    flags = ["--tars", many_tars(7), "--shard-size", "3", "--limit", "5"]
    ran = data_tools("convert", "image_text", *flags, "--out", out)
    assert ran.status == 0, ran.err
    corpus = Corpus.open(out)
    assert [shard.samples for shard in corpus.shards] == [3, 2]


def test_a_second_run_has_nothing_to_do(coco_layout: Any, tmp_path: Path, data_tools: Run) -> None:
    out = tmp_path / "out"
    assert data_tools("convert", "coco", *coco_layout.flags, "--out", out).status == 0
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    ran = data_tools("convert", "coco", *coco_layout.flags, "--out", out, "--workers", "3")
    assert (ran.status, "up to date" in ran.out) == (0, True)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


@pytest.mark.parametrize("change", ["option", "annotation", "photo"])
def test_other_inputs_are_refused_until_overwrite(
    coco_layout: Any, tmp_path: Path, data_tools: Run, photo: Any, change: str
) -> None:
    command = ["convert", "coco", *coco_layout.flags, "--out", tmp_path / "out"]
    assert data_tools(*command).status == 0
    before = Corpus.open(tmp_path / "out").fingerprint
    if change == "option":
        command += ["--max-side", "32"]
    elif change == "photo":
        (coco_layout.images / "000000000009.jpg").write_bytes(photo(7))
    else:
        coco_layout.change(
            coco_layout.captions, lambda x: x["annotations"][0].update(caption="new")
        )
    ran = data_tools(*command)
    assert ran.status == 2
    assert "--overwrite" in ran.err and str(tmp_path / "out") in ran.err
    assert Corpus.open(tmp_path / "out").fingerprint == before
    assert data_tools(*command, "--overwrite").status == 0
    assert Corpus.open(tmp_path / "out").fingerprint != before


def test_a_damaged_corpus_is_not_up_to_date(
    coco_layout: Any, tmp_path: Path, data_tools: Run
) -> None:
    command = ["convert", "coco", *coco_layout.flags, "--out", tmp_path / "out"]
    assert data_tools(*command).status == 0
    next((tmp_path / "out").glob("*.tar")).unlink()
    ran = data_tools(*command)
    assert ran.status == 2 and "--overwrite" in ran.err
    assert data_tools(*command, "--overwrite").status == 0
    assert len(Corpus.open(tmp_path / "out")) == 3


def test_a_folder_of_others_is_never_replaced(
    coco_layout: Any, tmp_path: Path, data_tools: Run
) -> None:
    precious = tmp_path / "out" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years of work")
    command = ["convert", "coco", *coco_layout.flags, "--out", precious.parent]
    for flags in ([], ["--overwrite"]):
        ran = data_tools(*command, *flags)
        assert ran.status == 2 and str(precious.parent) in ran.err
    assert precious.read_text() == "years of work"
    assert leftovers(tmp_path) == ["out"]


def test_workers_do_not_change_the_bytes(many_tars: Any, tmp_path: Path, data_tools: Run) -> None:
    tars = many_tars(40, bad=3)
    made = []
    for workers in (1, 5):
        out = tmp_path / f"out{workers}"
        flags = ["--tars", tars, "--workers", workers, "--max-bad", "10%", "--name", "same"]
        assert data_tools("convert", "image_text", *flags, "--out", out).status == 0
        made.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert made[0] == made[1]


def test_bad_samples_are_counted_and_listed(
    many_tars: Any, tmp_path: Path, data_tools: Run
) -> None:
    out = tmp_path / "out"
    flags = ["--tars", many_tars(200, bad=2), "--out", out]
    ran = data_tools("convert", "image_text", *flags)
    assert ran.status == 0, ran.err
    assert "skipped: image: not an image" in ran.out
    lines = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["image_text/0/0000", "image_text/0/0001"]
    assert {line["cause"] for line in lines} == {"image: not an image"}
    manifest = Corpus.open(out).manifest
    assert manifest["counts"]["images"] == 198
    assert manifest["source"]["skipped"] == {"image: not an image": 2}
    assert data_tools("lint", out).status == 0


def test_too_many_bad_samples_leave_nothing(
    many_tars: Any, tmp_path: Path, data_tools: Run
) -> None:
    flags = ["--tars", many_tars(200, bad=3), "--out", tmp_path / "out"]
    ran = data_tools("convert", "image_text", *flags)
    assert ran.status == 2
    assert "3 of 200 samples are bad (3 x image: not an image)" in ran.err
    assert "0.tar:0000" in ran.err and "--max-bad" in ran.err
    assert leftovers(tmp_path) == ["out.work"]
    # What is converted is used again: the photos need not be read once more.
    part = tmp_path / "out.work" / "shard-000000.tar"
    before = part.stat().st_mtime_ns
    assert data_tools("convert", "image_text", *flags, "--max-bad", "1.5%").status == 0
    assert (tmp_path / "out" / part.name).stat().st_mtime_ns == before
    assert leftovers(tmp_path) == ["out"]


def test_a_known_total_stops_the_run_early(
    coco_layout: Any, tmp_path: Path, data_tools: Run
) -> None:
    (coco_layout.images / "000000000009.jpg").unlink()
    ran = data_tools("convert", "coco", *coco_layout.flags, "--out", tmp_path / "out")
    assert ran.status == 2
    assert "1 of 1 samples are bad (1 x image: missing)" in ran.err
    assert "000000000009.jpg: no such file" in ran.err
    assert leftovers(tmp_path) == ["out.work"]


def test_a_truncated_tar_is_one_bad_sample(many_tars: Any, tmp_path: Path, data_tools: Run) -> None:
    tars = many_tars(20)
    tar = tmp_path / "pairs" / "0.tar"
    tar.write_bytes(tar.read_bytes()[:9000])
    flags = ["--tars", tars, "--out", tmp_path / "out"]
    ran = data_tools("convert", "image_text", *flags)
    assert ran.status == 2 and f"{tar}: byte " in ran.err and "1 x tar: damaged" in ran.err
    assert not (tmp_path / "out").exists()
    assert data_tools("convert", "image_text", *flags, "--max-bad", "30%").status == 0
    corpus = Corpus.open(tmp_path / "out")
    assert 0 < len(corpus) < 20
    assert corpus.manifest["source"]["skipped"] == {"tar: damaged": 1}


def test_a_source_without_samples_leaves_nothing(
    tmp_path: Path, write_tar: Any, data_tools: Run
) -> None:
    tar = write_tar(tmp_path / "0.tar", [])
    ran = data_tools("convert", "image_text", "--tars", tar, "--out", tmp_path / "out")
    assert ran.status == 2 and "no sample" in ran.err
    assert leftovers(tmp_path) == ["out.work"]


def doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the reader list an image as often as the split list does."""
    monkeypatch.setattr(
        "data_tools.sources.flickr30k_entities._read_splits",
        lambda root, split, left_out: [("train", image) for image in ("100", "200", "100")],
    )


def test_a_repeated_id_is_one_bad_sample(
    flickr_layout: Path, tmp_path: Path, data_tools: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubled(monkeypatch)
    flags = ["--root", flickr_layout, "--out", tmp_path / "out", "--max-bad", "50%"]
    ran = data_tools("convert", "flickr30k_entities", *flags)
    assert ran.status == 0, ran.err
    assert "skipped: record: id" in ran.out
    assert Corpus.open(tmp_path / "out").splits == {"train": 2}
    (line,) = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    # The same wherever the corpus is written.
    assert str(tmp_path / "out") not in line and "already in this split" in line


def test_an_id_in_two_parts_is_refused(
    flickr_layout: Path, tmp_path: Path, data_tools: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubled(monkeypatch)
    flags = ["--root", flickr_layout, "--out", tmp_path / "out", "--shard-size", "2"]
    ran = data_tools("convert", "flickr30k_entities", *flags)
    assert ran.status == 2 and "id 'flickr30k/100' occurs twice in split 'train'" in ran.err
    assert not (tmp_path / "out").exists()


def test_parts_of_another_plan_are_refused(many_tars: Any, tmp_path: Path, data_tools: Run) -> None:
    flags = ["convert", "image_text", "--tars", many_tars(9), "--out", tmp_path / "out"]
    assert data_tools(*flags, "--task", "2/2").status == 0  # one part, and not its own
    other = [*flags, "--max-side", "8"]
    ran = data_tools(*other)
    assert ran.status == 2
    assert "out.work: holds parts of other inputs or options (key " in ran.err
    assert "max_side None, now 8); pass --restart" in ran.err
    ran = data_tools(*other, "--task", "1/2")
    assert ran.status == 2 and "remove it to begin anew" in ran.err
    assert data_tools(*other, "--restart").status == 0
    assert leftovers(tmp_path) == ["out"]
    assert Corpus.open(tmp_path / "out").record(0).width == 8


def test_excluded_photos_are_left_out_and_counted(
    coco_layout: Any, tmp_path: Path, data_tools: Run
) -> None:
    listed = tmp_path / "audit.json"
    audit: dict[str, Any] = {"audit": 1, "perceptual": None, "protected": [], "corpora": []}
    audit["columns"] = [["refcoco", "val"], ["flickr30k", "test"]]
    audit["photos"] = [{"columns": [0], "ids": ["coco/25"]}]
    listed.write_text(json.dumps(audit))
    command = ["convert", "coco", *coco_layout.flags, "--out", tmp_path / "out"]
    ran = data_tools(*command, "--exclude", listed)
    assert ran.status == 0, ran.err
    assert "left out: excluded: refcoco val" in ran.out
    corpus = Corpus.open(tmp_path / "out")
    assert [corpus.record(i).id for i in range(len(corpus))] == ["coco/9", "coco/30"]
    assert corpus.manifest["source"]["left_out"]["excluded: refcoco val"] == 1
    # The list is an input: without it, this is another corpus.
    assert data_tools(*command).status == 2
    assert data_tools(*command, "--exclude", tmp_path / "none.json").status == 2


def test_counts_are_compared_with_the_published(
    coco_layout: Any, tmp_path: Path, data_tools: Run
) -> None:
    command = ["convert", "coco", *coco_layout.flags, "--out", tmp_path / "out"]
    ran = data_tools(*command)
    assert ran.status == 0
    assert "counts: coco2017 val images: published 5,000, here 3" in ran.out
    compared = Corpus.open(tmp_path / "out").manifest["source"]["published"]
    assert compared["set"] == "coco2017"
    assert any(line.startswith("coco2017 val captions") for line in compared["differences"])
    # After the corpus is there, and when it is up to date, too.
    assert data_tools(*command, "--strict-counts").status == 1
    assert data_tools(*command, "--strict-counts", "--limit", "2", "--overwrite").status == 0
    assert "published" not in Corpus.open(tmp_path / "out").manifest["source"]
    shutil.rmtree(tmp_path / "out")
    assert data_tools(*command, "--strict-counts").status == 1
    assert len(Corpus.open(tmp_path / "out")) == 3


def test_workers_is_another_name_of_processes() -> None:
    given = ["convert", "image_text", "--tars", "a", "--out", "o", "--workers", "3"]
    assert build_parser("convert").parse_args(given).processes == 3
