import multiprocessing
import re
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from data_tools.sources.base import Bad, Draft, Source
from data_tools.sources.flickr30k_entities import (
    parse_annotation,
    parse_sentences,
    read_flickr30k_entities,
)
from wholegrain.errors import DataError


def everything(source: Source) -> list[Draft | Bad]:
    """All that a source holds, read in pieces of two units; what it leaves out is added to it."""
    pieces = (
        source.read(start, min(start + 2, source.units), source.left_out)
        for start in range(0, source.units, 2)
    )
    return [item for piece in pieces for item in piece]


def drafts(root: Path, split: str | None = None) -> list[Draft]:
    items = everything(read_flickr30k_entities(root, split=split))
    assert not any(isinstance(item, Bad) for item in items)
    return items  # type: ignore[return-value]


def test_pixels_count_from_one_and_both_ends_are_inside(flickr_layout: Path) -> None:
    data = (flickr_layout / "Annotations" / "100.xml").read_bytes()
    size, boxes = parse_annotation(data)
    assert size == (64, 48)
    assert boxes["1"] == [(0, 0, 64, 48)]  # 1..64 is the whole width
    assert boxes["3"] == [(39, 9, 11, 21)]


def test_an_object_with_two_names_gives_its_box_to_both(flickr_layout: Path) -> None:
    _, boxes = parse_annotation((flickr_layout / "Annotations" / "100.xml").read_bytes())
    assert boxes["2"] == [(0, 0, 64, 48), (10, 4, 10, 20)]
    assert "4" not in boxes


def test_every_mention_is_kept_in_the_order_of_the_text() -> None:
    captions, entities = parse_sentences(
        "[/EN#7/people The man] sees [/EN#8/bodyparts/people his hand] .\n"
        "[/EN#7/people A man] and [/EN#7/other The man] [/EN#9/scene ] .\n\n"
    )
    assert captions == ("The man sees his hand .", "A man and The man  .")
    assert entities["7"].words == ["The man", "A man", "The man"]
    assert entities["7"].types == ["people", "other"]
    assert entities["8"].types == ["bodyparts", "people"]
    assert "9" not in entities


def test_an_entity_becomes_one_region(flickr_layout: Path) -> None:
    first = drafts(flickr_layout)[0]
    assert first.id == "flickr30k/200"
    assert first.captions[0] == "A man with two dogs on a beach ."
    man, dogs, water = first.regions
    assert (man.texts, man.boxes, man.attributes) == (("A man", "A man"), (), ("people",))
    assert (dogs.box, dogs.attributes) == ((0, 0, 64, 48), ("animals", "other"))
    assert dogs.boxes == ((0, 0, 64, 48), (10, 4, 10, 20))
    assert water.texts == ("water",)


def test_splits_come_in_order_and_one_can_be_chosen(flickr_layout: Path) -> None:
    everything = [(draft.split, draft.id) for draft in drafts(flickr_layout)]
    assert everything == [
        ("train", "flickr30k/200"),
        ("train", "flickr30k/100"),
        ("val", "flickr30k/300"),
    ]
    assert [draft.id for draft in drafts(flickr_layout, "val")] == ["flickr30k/300"]
    with pytest.raises(DataError, match=r"no split 'test'.*it has: train, val"):
        read_flickr30k_entities(flickr_layout, split="test")


def test_phrases_without_a_box_are_counted(flickr_layout: Path) -> None:
    source = read_flickr30k_entities(flickr_layout)
    everything(source)
    assert source.left_out == {"phrase without box": 6}


def test_the_zip_reads_like_the_folders(flickr_layout: Path, tmp_path: Path) -> None:
    unpacked = drafts(flickr_layout)
    with zipfile.ZipFile(flickr_layout / "annotations.zip", "w") as archive:
        for name in ("Annotations", "Sentences"):
            for path in (flickr_layout / name).iterdir():
                archive.write(path, f"{name}/{path.name}")
    (flickr_layout / "Annotations").rename(tmp_path / "away")
    zipped = drafts(flickr_layout)
    assert [draft.regions for draft in zipped] == [draft.regions for draft in unpacked]
    assert "annotations.zip:Annotations/200.xml" in zipped[0].where


def test_the_other_name_of_the_photo_folder(flickr_layout: Path) -> None:
    (flickr_layout / "images").rename(flickr_layout / "flickr30k-images")
    assert drafts(flickr_layout)[0].image == flickr_layout / "flickr30k-images" / "200.jpg"


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (("<xmin>40</xmin>", "<xmin>forty</xmin>"), "<xmin> is 'forty'"),
        (("<width>64</width>", ""), "<size/width> is None"),
        (("</annotation>", ""), "broken XML"),
        (("<annotation>", "<!DOCTYPE a [<!ENTITY x 'y'>]><annotation>"), "document type"),
    ],
)
def test_a_broken_annotation_is_one_bad_sample(
    flickr_layout: Path, edit: tuple[str, str], reason: str
) -> None:
    file = flickr_layout / "Annotations" / "100.xml"
    text = file.read_text()
    assert edit[0] in text
    file.write_text(text.replace(*edit))
    items = everything(read_flickr30k_entities(flickr_layout))
    bad = [item for item in items if isinstance(item, Bad)]
    assert [item.cause for item in bad] == ["annotation broken"]
    assert reason in bad[0].detail and str(file) in bad[0].detail


def test_entities_are_never_expanded(flickr_layout: Path) -> None:
    bomb = "<!DOCTYPE a [<!ENTITY a '" + "x" * 1000 + "'><!ENTITY b '" + "&a;" * 1000 + "'>]>"
    with pytest.raises(ValueError, match="document type"):
        parse_annotation((bomb + "<annotation>&b;</annotation>").encode())
    with pytest.raises(ValueError, match="document type"):
        parse_annotation((bomb + "<annotation>&b;</annotation>").encode("utf-16"))


def test_a_missing_annotation_is_one_bad_sample(flickr_layout: Path) -> None:
    (flickr_layout / "Sentences" / "100.txt").unlink()
    items = everything(read_flickr30k_entities(flickr_layout))
    assert Counter(type(item) for item in items) == {Draft: 2, Bad: 1}


def test_what_is_missing_is_said(tmp_path: Path, flickr_layout: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_flickr30k_entities(tmp_path / "nowhere")
    (flickr_layout / "Sentences").rename(tmp_path / "away")
    with pytest.raises(DataError, match=r"annotations\.zip"):
        read_flickr30k_entities(flickr_layout)


def test_a_list_can_name_no_file_outside(flickr_layout: Path) -> None:
    (flickr_layout / "val.txt").write_text("../../etc/passwd\n")
    with pytest.raises(DataError, match="is no image id"):
        read_flickr30k_entities(flickr_layout)


def test_an_image_listed_twice_is_one_sample(flickr_layout: Path) -> None:
    (flickr_layout / "val.txt").write_text("300\n300\n")
    source = read_flickr30k_entities(flickr_layout, split="val")
    assert [item.id for item in everything(source)] == ["flickr30k/300"]
    assert source.left_out["image listed twice"] == 1


def test_a_photo_is_known_by_its_number(flickr_layout: Path) -> None:
    assert {draft.photo for draft in drafts(flickr_layout, "val")} == {"flickr30k/300"}


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_a_damaged_member_of_the_zip_is_one_bad_sample(
    flickr_layout: Path, tmp_path: Path, method: int
) -> None:
    archive = flickr_layout / "annotations.zip"
    with zipfile.ZipFile(archive, "w", method) as written:
        for name in ("Annotations", "Sentences"):
            for path in (flickr_layout / name).iterdir():
                written.write(path, f"{name}/{path.name}")
    (flickr_layout / "Annotations").rename(tmp_path / "away")
    sound = archive.read_bytes()
    with zipfile.ZipFile(archive) as opened:
        member = opened.getinfo("Annotations/100.xml")
    end = member.header_offset + member.compress_size + 40
    for at in range(member.header_offset, end, 31):
        damaged = bytearray(sound)
        damaged[at] ^= 0x55
        archive.write_bytes(damaged)
        items = everything(read_flickr30k_entities(flickr_layout))
        bad = [item for item in items if isinstance(item, Bad)]
        assert len(bad) <= 1 and len(items) == 3, at
        for item in bad:
            assert (item.id, item.cause) == ("flickr30k/100", "annotation broken")
    archive.write_bytes(
        sound[: member.header_offset] + bytes(4) + sound[member.header_offset + 4 :]
    )
    items = everything(read_flickr30k_entities(flickr_layout))
    assert Counter(type(item) for item in items) == {Draft: 2, Bad: 1}


def test_only_a_line_feed_ends_a_sentence() -> None:
    captions, _ = parse_sentences("A man\u2028with a\x85dog .\r\nA dog\x0b.\n")
    assert captions == ("A man\u2028with a\x85dog .", "A dog\x0b.")


def test_processes_may_share_an_open_zip(flickr_layout: Path, tmp_path: Path) -> None:
    numbers = range(1000, 1200)
    with zipfile.ZipFile(flickr_layout / "annotations.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in numbers:
            xml = (flickr_layout / "Annotations" / "100.xml").read_text()
            archive.writestr(f"Annotations/{number}.xml", xml)
            archive.writestr(f"Sentences/{number}.txt", f"[/EN#1/people man {number}] waits .")
    (flickr_layout / "Annotations").rename(tmp_path / "away")
    (flickr_layout / "train.txt").write_text("\n".join(map(str, numbers)))
    source = read_flickr30k_entities(flickr_layout, split="train")
    context = multiprocessing.get_context("fork")  # as the pool of `convert` does
    results = context.SimpleQueue()

    def read() -> None:
        found = source.read(0, source.units, Counter())
        results.put([item.captions[0] for item in found if isinstance(item, Draft)])

    processes = [context.Process(target=read) for _ in range(3)]
    for process in processes:
        process.start()
    expected = [f"man {number} waits ." for number in numbers]
    assert [results.get() for _ in processes] == [expected] * 3
    for process in processes:
        process.join()


def test_published_counts(real_data: Path) -> None:
    root = real_data / "flickr30k_entities_8k"
    text = re.sub(r"\s+", " ", (real_data / "README.md").read_text())
    assert "7,559 train / 247 val images; 98,000 / 3,239 (image, phrase) with boxes" in text
    images: Counter[str] = Counter()
    phrases: Counter[str] = Counter()
    single: Counter[str] = Counter()
    for draft in drafts(root):
        images[draft.split] += 1
        for region in draft.regions:
            phrases[draft.split] += len(region.texts)
            single[draft.split] += len(region.texts) * (not region.boxes)
    assert images == {"train": 7559, "val": 247}
    assert phrases == {"train": 98_000, "val": 3_239}
    assert round(100 * single["val"] / phrases["val"], 1) == 82.6
