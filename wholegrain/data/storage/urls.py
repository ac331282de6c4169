"""URLs of corpora and their files: which there are, and how they are put together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from wholegrain.errors import ConfigError


class Driver(NamedTuple):
    """The fsspec protocol of a scheme, and the package that it needs besides fsspec."""

    protocol: str
    package: str | None


DRIVERS = {
    "s3": Driver("s3", "s3fs"),
    "s3a": Driver("s3", "s3fs"),
    "gs": Driver("gs", "gcsfs"),
    "gcs": Driver("gs", "gcsfs"),
    "hdfs": Driver("hdfs", "pyarrow"),
    "http": Driver("http", "aiohttp"),
    "https": Driver("http", "aiohttp"),
    "memory": Driver("memory", None),
    "file": Driver("file", None),
}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
# What a `Path` makes of a URL. `file:` and `hdfs:` lose a slash that cannot be told any more.
_COLLAPSED = re.compile(r"(s3a?|gs|gcs|https?|memory):/(?!/)")
_SECRET = re.compile(r"(?<=://)[^/@]+@|\?.*")


def is_url(path: str | Path) -> bool:
    """Whether ``path`` is a URL rather than a path, also one that a ``Path`` has shortened."""
    text = str(path)
    return bool(_URL.match(text) or _COLLAPSED.match(text))


def as_url(path: str | Path) -> str:
    """The URL that ``path`` is, with the slash that a ``Path`` drops, and no slash at its end."""
    text = _COLLAPSED.sub(r"\1://", str(path))
    return text if _query(text) else text.rstrip("/")


def join(url: str, name: str) -> str:
    """The URL of ``name`` in the folder ``url``; a query (a signature, say) stays at the end."""
    query = _query(url)
    return f"{url.removesuffix(query).rstrip('/')}/{name}{query}"


def file_name(url: str | Path) -> str:
    """The last part of a URL's or a path's name, without a query."""
    text = str(url)
    return text.removesuffix(_query(text)).rstrip("/").rpartition("/")[2]


def scheme_of(url: str) -> str:
    """The lower-case scheme.

    Raises:
        ConfigError: we read no such URLs, or ``url`` is a chain of several.
    """
    match = _URL.match(url)
    scheme = match[1].lower() if match else ""
    if scheme not in DRIVERS or "::" in url:
        known = ", ".join(f"{name}://" for name in DRIVERS)
        raise ConfigError(f"{shown(url)}: no storage of ours; use one of {known} or a plain path")
    return scheme


def local_path(url: str) -> Path | None:
    """The path of a ``file://`` URL, which needs neither driver nor cache; None for others."""
    if scheme_of(url) != "file":
        return None
    return Path(unquote(urlsplit(url).path))


def place_of(url: str) -> str:
    """The storage that answers for a URL: scheme and host or bucket."""
    return f"{scheme_of(url)}://{urlsplit(url).netloc}"


def shown(url: str) -> str:
    """The URL as messages show it: without passwords and signatures."""
    return _SECRET.sub("", url)


def _query(url: str) -> str:
    # Elsewhere than in HTTP a question mark may be part of a name.
    if not url.lower().startswith(("http://", "https://")):
        return ""
    mark = url.find("?")
    return url[mark:] if mark >= 0 else ""
