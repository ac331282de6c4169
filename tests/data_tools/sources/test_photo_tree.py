from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools.sources.photo_tree import PhotoTree
from wholegrain.errors import DataError


@pytest.fixture
def root(tmp_path: Path, photo: Callable[..., bytes]) -> Path:
    root = tmp_path / "photos"
    for name in ("v1/patch0/a.jpg", "v1/patch1/b.jpg", "c.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(photo(1))
    (root / "v1" / "notes.txt").write_text("no photo")
    return root


def test_leading_folders_may_be_missing_or_too_many(root: Path) -> None:
    tree = PhotoTree(root)
    assert tree.count == 3
    assert tree.find("images/v1/patch0/a.jpg") == root / "v1/patch0/a.jpg"
    assert tree.find("v1/patch0/a.jpg") == root / "v1/patch0/a.jpg"
    assert tree.find("somewhere/c.png") == root / "c.png"
    assert PhotoTree(root / "v1" / "patch1").find("v1/patch1/b.jpg").name == "b.jpg"
    assert tree.find("x.jpg", "v1/patch1/b.jpg") == root / "v1/patch1/b.jpg"
    assert tree.find("v1/patch7/x.jpg", "y.jpg") == root / "v1/patch7/x.jpg"  # missing


@pytest.mark.parametrize("name", ["../secret.jpg", "/secret.jpg", "..\\secret.jpg", "..", "", "\0"])
def test_no_name_leads_out(root: Path, photo: Callable[..., bytes], name: str) -> None:
    (root.parent / "secret.jpg").write_bytes(photo(1))
    found = PhotoTree(root / "v1").find(name)
    assert found.is_relative_to(root / "v1") and not found.exists()


def test_the_digest_is_that_of_names_and_sizes(root: Path, photo: Callable[..., bytes]) -> None:
    before = PhotoTree(root).digest()
    assert PhotoTree(root).digest() == before
    (root / "v1/patch0/a.jpg").rename(root / "v1/patch1/a.jpg")
    moved = PhotoTree(root).digest()
    (root / "c.png").write_bytes(photo(1) + b"x")
    assert len({before, moved, PhotoTree(root).digest()}) == 3


def test_a_loop_of_links_ends(root: Path) -> None:
    (root / "v1" / "again").symlink_to(root)
    assert PhotoTree(root).count > 3


def test_folders_of_no_use_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder of images"):
        PhotoTree(tmp_path / "none")
    with pytest.raises(DataError, match="in it or below"):
        PhotoTree(tmp_path)
