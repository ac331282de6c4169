"""The catalogue: which files a data set has, where they lie, and what their bytes must be.

It is a YAML file (``data_tools/fetch.yaml``), so that an address is corrected without touching
code. Sizes and digests are facts that somebody published; ``origin`` says who. A file without a
digest is taken on trust the first time, and held to that from then on (see ``ledger``).
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Sequence
from dataclasses import field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from wholegrain.config import config, load_config
from wholegrain.errors import ConfigError

CATALOGUE = Path(__file__).resolve().parent.parent / "fetch.yaml"
_HEX = {"sha256": re.compile(r"[0-9a-f]{64}"), "md5": re.compile(r"[0-9a-f]{32}")}
# Endings of the files that lie beside what is fetched.
_OWN = ("fetched.json", ".partial", ".partial.json", ".rejected", ".unpacked.json")
_NAME = re.compile(r"[a-z0-9][a-z0-9_+.-]*")


@config
class File:
    """One published file."""

    name: str
    """Path below the folder of the data set; unique in it."""
    urls: tuple[str, ...] = ()
    """Addresses of the same bytes, the best first. None: it is got by hand, at ``page``."""
    page: str | None = None
    """Where a person gets the file, when there is no address to fetch it from."""
    bytes: int | None = None
    """Exact size, where known."""
    sha256: str | None = None
    md5: str | None = None
    origin: str | None = None
    """Who published size and digests."""
    unpack: str | None = None
    """Folder that ``--unpack`` makes of this archive, below the folder of the data set. Archives
    with one folder are unpacked together."""
    allow_http: bool = False
    """Whether addresses may be plain http, which lets anybody on the way change the file."""

    def __post_init__(self) -> None:
        where = f"file {self.name!r}"
        for key in ("name", "unpack"):
            if (value := getattr(self, key)) is not None and not is_plain_path(value):
                raise ConfigError(
                    f"{where}: {key} is {value!r}; it must be a path below the folder of the "
                    "data set, without ., .. or backslashes"
                )
        for url in self.urls:
            parts = urlsplit(url)
            schemes = ("https", "http") if self.allow_http else ("https",)
            if parts.scheme not in schemes or not parts.hostname:
                raise ConfigError(f"{where}: urls has {url!r}; it must start with https://")
        for key, form in _HEX.items():
            if (value := getattr(self, key)) is not None and not form.fullmatch(value):
                raise ConfigError(f"{where}: {key} is {value!r}; it takes lower-case hex digits")
        if self.bytes is not None and self.bytes < 1:
            raise ConfigError(f"{where}: bytes is {self.bytes}; leave it out where unknown")
        if (self.bytes or self.digests) and not self.origin:
            raise ConfigError(f"{where}: has a size or digest but no origin; say who published it")

    @property
    def digests(self) -> dict[str, str]:
        """Name of the hash function -> published digest; empty where none is known."""
        known = {name: getattr(self, name) for name in _HEX}
        return {name: digest for name, digest in known.items() if digest is not None}


@config
class DataSet:
    """One entry of the catalogue."""

    title: str
    licence: str
    page: str
    """Where the publisher describes the data set and its terms."""
    files: tuple[File, ...]
    convert: tuple[str, ...] = ()
    """Arguments of ``convert`` that read these files: its source and options, without ``--out``."""
    click: str | None = None
    """What a person has to agree to or to ask for before the files may be had."""
    then: str | None = None
    """What is to be done with the files afterwards. Here and in ``convert``, ``{dir}`` stands for
    their folder."""

    def __post_init__(self) -> None:
        if not self.files:
            raise ConfigError(f"{self.title}: files is empty; list at least one")
        names = [file.name for file in self.files]
        if own := [name for name in names if name.endswith(_OWN)]:
            raise ConfigError(
                f"{self.title}: {own[0]} is a name that `fetch` uses itself; rename it"
            )
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"{self.title}: files lists {', '.join(twice)} more than once")
        folders = {file.unpack for file in self.files if file.unpack}
        if clash := sorted(folders & set(names)):
            raise ConfigError(f"{self.title}: {', '.join(clash)} is both a file and a folder")
        if nested := sorted(a for a in folders for b in folders if a.startswith(f"{b}/")):
            raise ConfigError(f"{self.title}: {', '.join(nested)} lies in another unpack folder")
        for line in self.convert:
            try:
                shlex.split(line)
            except ValueError as error:
                raise ConfigError(f"{self.title}: convert has {line!r}: {error}") from None
        for file in self.files:
            if not file.urls and not (file.page or self.click):
                raise ConfigError(f"{self.title}: {file.name}: neither urls nor page nor click")

    @property
    def sources(self) -> set[str]:
        """The readers of ``convert`` that take these files."""
        return {shlex.split(line)[0] for line in self.convert}

    def chosen(self, patterns: Sequence[str]) -> list[File]:
        """Files whose name matches one of the patterns; all without patterns.

        Raises:
            ConfigError: a pattern matches nothing.
        """
        for pattern in patterns:
            if not any(fnmatchcase(file.name, pattern) for file in self.files):
                names = ", ".join(file.name for file in self.files)
                raise ConfigError(f"--only {pattern}: no such file; {self.title} has {names}")
        return [
            file
            for file in self.files
            if not patterns or any(fnmatchcase(file.name, pattern) for pattern in patterns)
        ]


@config
class Catalogue:
    """All data sets that ``fetch`` knows."""

    sets: dict[str, DataSet]
    unlisted: dict[str, str] = field(default_factory=dict)
    """Readers of ``convert`` that have no entry, and why."""

    def __post_init__(self) -> None:
        for name in self.sets:
            if not _NAME.fullmatch(name):
                raise ConfigError(f"sets: {name!r} is no name; use a-z, 0-9 and _ + . -")

    def find(self, name: str) -> DataSet:
        """The entry of that name. ConfigError lists near names."""
        if name in self.sets:
            return self.sets[name]
        near = difflib.get_close_matches(name.lower(), self.sets, n=3, cutoff=0.5)
        near += [other for other in self.sets if name.lower() in other and other not in near]
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise ConfigError(f"unknown data set {name!r}; {hint}`fetch --list` shows all")


def load_catalogue(path: Path | None = None) -> Catalogue:
    """Read a catalogue; the shipped one by default. ConfigError names file, field and value."""
    return load_config(Catalogue, path or CATALOGUE)


def is_plain_path(name: str) -> bool:
    """Whether a name from outside stays below the folder it is joined to, on any system."""
    path = PurePosixPath(name)
    return (
        bool(name)
        and not path.is_absolute()
        and not re.match(r"[A-Za-z]:", name)
        and not set(name) & {"\\", "\0", "\n", "\r"}
        and all(part not in ("", ".", "..") for part in name.split("/"))
    )
