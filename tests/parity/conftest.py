"""Folders of reference numbers: those that were given, and small ones made on the spot."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity.folders import Folder, given_folders
from tests.parity.make_fixture import CASES, make_fixture

GIVEN = given_folders()


def _name(source: Path | str) -> str:
    if isinstance(source, str):
        return f"made-{source}"
    return source.name if [p.name for p in GIVEN].count(source.name) == 1 else str(source)


@pytest.fixture(scope="session", params=[*CASES, *GIVEN], ids=_name)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """One folder after the other; each test of it runs before the next one's."""
    source: Path | str = request.param
    if isinstance(source, Path):
        return Folder(source)
    path = tmp_path_factory.mktemp("xvlm") / source
    make_fixture(path, CASES[source])
    return Folder(path)
