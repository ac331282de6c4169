"""Pages that hold all they need: one file, no request, a policy that forbids the rest."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from wholegrain.errors import DataError

_TEMPLATES = "data_tools", "templates"
_REPORT_STYLE = "wholegrain.report", "templates/report.css"
"""Palette, type and charts are those of a stage's report."""
_WITH_SCRIPT = ("preview",)
PAGE_SUFFIXES = (".html", ".htm")


def check_free(path: Path, overwrite: bool) -> None:
    """Refuses to replace a page.

    Raises:
        DataError: there is something at ``path`` and ``overwrite`` is off, or it is a folder.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give the page another name")
    if os.path.lexists(path) and not overwrite:
        raise DataError(f"{path}: exists; pass --overwrite or another --out")


def write_page(path: Path, template: str, values: Mapping[str, Any], images: str = "data:") -> None:
    """Renders ``NAME.html.j2`` to ``path`` piece by piece; it appears whole or not at all.

    All that comes from a corpus is escaped. Its styles go into the page, and its script
    if it has one; no other script can run there.

    Args:
        path: the file.
        template: NAME.
        values: what the template needs besides ``style``, ``script`` and ``policy``.
        images: where the page's images may come from, in the policy's words.

    Raises:
        DataError: the file cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(*_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = _text(*_REPORT_STYLE) + _own("common.css") + _own(f"{template}.css")
    script = _own(f"{template}.js") if template in _WITH_SCRIPT else ""
    stream = environment.get_template(f"{template}.html.j2").stream(
        style=Markup(style), script=Markup(script), policy=policy(script, images), **values
    )
    stream.enable_buffering(64)
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "w", encoding="utf-8") as file:
            file.writelines(stream)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        remedy = "choose a place that you may write to, with room"
        raise DataError(f"{path}: cannot be written ({error.strerror}); {remedy}") from error
    finally:
        aside.unlink(missing_ok=True)


def policy(script: str, images: str) -> str:
    """The content security policy of a page with this very script ('' for none)."""
    parts = [
        "default-src 'none'",
        f"img-src {images}",
        "style-src 'unsafe-inline'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        parts.append(f"script-src 'sha256-{digest}'")
    return "; ".join(parts)


def _own(name: str) -> str:
    return _text(_TEMPLATES[0], f"{_TEMPLATES[1]}/{name}")


def _text(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")
