"""Where reference numbers are looked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.parity.folders import given_folders, named, within


def test_every_entry_of_the_variable_leads_to_numbers() -> None:
    """A slip in $XVLM_FIXTURES must not pass as parity."""
    for entry in named():
        assert within(entry), f"$XVLM_FIXTURES: no fixture.json at or below {entry}"


def test_a_folder_its_parents_a_pattern_and_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [tmp_path / "first" / name for name in ("a", "b")] + [tmp_path / "second" / "a"]
    for folder in made:
        folder.mkdir(parents=True)
        (folder / "fixture.json").write_text("{}")
    (tmp_path / "first" / "empty").mkdir()
    assert within(str(made[0])) == made[:1]
    assert within(str(tmp_path / "first")) == made[:2]
    assert within(str(tmp_path)) == made
    assert within(str(tmp_path / "*" / "a")) == [made[0], made[2]]
    assert within(str(tmp_path / "nowhere")) == []
    monkeypatch.setenv("XVLM_FIXTURES", os.pathsep.join(map(str, (tmp_path / "first", made[2]))))
    assert named() == [str(tmp_path / "first"), str(made[2])]
    assert given_folders()[:3] == made
    monkeypatch.setenv("XVLM_FIXTURES", os.pathsep.join(map(str, (made[1], tmp_path / "first"))))
    assert given_folders()[:2] == [made[1], made[0]], "each folder once"
