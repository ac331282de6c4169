import pytest

from data_tools.auditing.photo_ids import photo_id


@pytest.mark.parametrize(
    "name",
    [
        "COCO_val2014_000000391895.jpg",
        "val2014/COCO_train2014_000000391895.jpg",
        "COCO_train2014_000000391895_17.jpg",  # RefCOCO's file names end in the annotation
        "train2017/000000391895.jpg",
        "391895",
        391895,
        "coco/391895",
        "coco/000000391895",
        " 391895\n",
    ],
)
def test_all_names_of_a_coco_photo(name: str | int) -> None:
    assert photo_id(name, "coco") == "coco/391895"


@pytest.mark.parametrize("name", ["1000092795", "1000092795.jpg", "images/1000092795_a0f1.jpg"])
def test_names_of_a_flickr_photo(name: str) -> None:
    assert photo_id(name, "flickr30k") == "flickr30k/1000092795"


def test_an_identity_says_itself_what_it_is_of() -> None:
    for identity in ("vg/2407", "openimages/00a1b2", "flickr30k/36979"):
        assert photo_id(identity, "coco") == identity
        assert photo_id(identity, None) == identity
    assert photo_id("COCO_val2014_000000000009.jpg", None) == "coco/9"
    assert photo_id("COCO_val2014_000000000009.jpg", "flickr30k") == "coco/9"
    assert photo_id("38/images/38001.jpg", "saiapr") == "saiapr/38001"


@pytest.mark.parametrize(
    ("name", "space"),
    [("9", None), ("man.jpg", "coco"), ("", "coco"), ("a b", "saiapr"), ("man.jpg", "flickr30k")],
)
def test_what_names_no_photo(name: str, space: str | None) -> None:
    assert photo_id(name, space) is None
