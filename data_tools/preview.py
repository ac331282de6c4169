"""``preview``: an HTML page of samples with their boxes drawn on the photos.

``--out page.html`` makes one file that holds everything; ``--out folder`` makes ``index.html`` and
the photos beside it, for many samples. The page loads nothing from elsewhere and runs no script.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.arguments import positive
from wholegrain.data.corpus import Corpus
from wholegrain.data.decode import decode_image
from wholegrain.data.record import Box, Record, Region
from wholegrain.data.shard_folder import atomic_folder
from wholegrain.errors import DataError

COLOURS = (
    "#ffa02e", "#6ff0d0", "#7db4ff", "#ff7eb6", "#c3f04a",
    "#ffd84d", "#b89cff", "#ff7a5c", "#5fd8ff", "#e6e2da",
)  # fmt: skip
_PAGE = "index.html"
_PAGE_SUFFIXES = (".html", ".htm")
_EMBEDDED_SIDE = 640
"""Photos inside a page are reduced to this many px; the boxes are drawn in the record's pixels."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``preview``."""
    parser.add_argument("corpus", type=Path, help="corpus folder")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("preview.html"),
        help="page.html (one file) or a folder (default: preview.html)",
    )
    parser.add_argument("--split", help="this split only")
    parser.add_argument("--count", type=positive, default=24, help="samples (default: 24)")
    parser.add_argument("--boxes", type=positive, default=12, help="boxes a photo (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="which samples (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --out")


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    corpus = Corpus.open(args.corpus).select(args.split)
    chosen = random.Random(args.seed).sample(range(len(corpus)), min(args.count, len(corpus)))
    chosen.sort()
    if args.out.suffix.lower() in _PAGE_SUFFIXES:
        if os.path.lexists(args.out) and not args.overwrite:
            raise DataError(f"{args.out}: exists; pass --overwrite or another --out")
        cards = [_card(corpus, number, args.boxes, embed(corpus, number)) for number in chosen]
        args.out.parent.mkdir(parents=True, exist_ok=True)
        aside = args.out.with_name(f".{args.out.name}.partial-{os.getpid()}")
        aside.write_text(render(corpus, cards, args.seed), encoding="utf-8")
        aside.replace(args.out)
        page = args.out
    else:
        with atomic_folder(args.out, overwrite=args.overwrite, marker=_PAGE) as folder:
            (folder / "images").mkdir()
            cards = []
            for number in chosen:
                name = f"images/{number:09d}.{corpus.image_kind(number)}"
                (folder / name).write_bytes(corpus.image_bytes(number))
                cards.append(_card(corpus, number, args.boxes, name))
            (folder / _PAGE).write_text(render(corpus, cards, args.seed), encoding="utf-8")
        page = args.out / _PAGE
    print(f"{page}: {len(cards)} samples, {page.stat().st_size / 1e6:.1f} MB")
    return 0


@dataclass(frozen=True, slots=True)
class Mark:
    """One region as drawn: ``boxes`` xywh px of the stored photo, ``corners`` in % of it."""

    number: int
    grain: str
    colour: str
    texts: str
    note: str
    boxes: tuple[Box, ...]
    corners: tuple[tuple[float, float], ...]


def render(corpus: Corpus, cards: list[dict[str, Any]], seed: int) -> str:
    """The page as text. All that comes from the corpus is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("preview.html.j2").render(
        name=corpus.manifest["name"],
        path=str(corpus.path),
        split=corpus.split,
        seed=seed,
        total=len(corpus),
        counts={name: count for name, count in corpus.manifest["counts"].items() if count},
        cards=cards,
        most=max((len(card["marks"]) for card in cards), default=0),
    )


def marks(record: Record) -> list[Mark]:
    """What to draw, numbered from 1. Regions with the same boxes (object and phrase) share one."""
    groups: dict[tuple[Box, ...], list[Region]] = {}
    for region in record.regions:
        groups.setdefault(region.boxes or (region.box,), []).append(region)
    return [
        Mark(
            number=number,
            grain="object" if all(region.grain == "object" for region in regions) else "region",
            colour=COLOURS[(number - 1) % len(COLOURS)],
            texts=_words(regions),
            note=_note(regions),
            boxes=boxes,
            corners=tuple(
                (round(100 * x / record.width, 3), round(100 * y / record.height, 3))
                for x, y, _, _ in boxes
            ),
        )
        for number, (boxes, regions) in enumerate(groups.items(), start=1)
    ]


def embed(corpus: Corpus, number: int) -> str:
    """The photo as a data URI, reduced where it is larger than a page needs."""
    from PIL import Image

    data, kind = corpus.image_bytes(number), corpus.image_kind(number)
    decoded = decode_image(data, f"{corpus.path}: sample {number}")
    if max(decoded.width, decoded.height) > _EMBEDDED_SIDE:
        image = Image.fromarray(decoded.pixels)
        image.thumbnail((_EMBEDDED_SIDE, _EMBEDDED_SIDE))
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=85)
        data, kind = buffer.getvalue(), "jpg"
    kind_name = "jpeg" if kind == "jpg" else kind
    return f"data:image/{kind_name};base64,{base64.b64encode(data).decode()}"


def _card(corpus: Corpus, number: int, most: int, image: str) -> dict[str, Any]:
    record = corpus.record(number)
    drawn = marks(record)
    return {
        "id": record.id,
        "split": record.split,
        "width": record.width,
        "height": record.height,
        "image": image,
        "alt": record.captions[0] if record.captions else record.id,
        "captions": record.captions,
        "marks": drawn[:most],
        # Names of categories stand in a row, phrases below each other.
        "short": all(mark.grain == "object" for mark in drawn),
        "rest": max(0, len(drawn) - most),
    }


def _words(regions: list[Region]) -> str:
    """Texts without repetitions, the number of times beside each."""
    counts = Counter(text for region in regions for text in region.texts)
    return " · ".join(f"{text} ×{n}" if n > 1 else text for text, n in counts.items())


def _note(regions: list[Region]) -> str:
    parts = [word for region in regions for word in region.attributes]
    parts += [f"{region.ref.set} {region.ref.ref_id}" for region in regions if region.ref]
    return f"({', '.join(dict.fromkeys(parts))})" if parts else ""
