"""``preview``: an HTML page of samples with their boxes drawn on the photos.

``--out page.html`` makes one file that holds everything; ``--out folder`` makes ``index.html`` and
the photos beside it, for many samples, and a marker file by which ``--overwrite`` knows the folder
again. The page loads nothing from elsewhere. Its one script, named by its digest in the page's
policy, filters what is shown; without it everything is shown.
"""

from __future__ import annotations

import argparse
import base64
import io
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from data_tools.arguments import positive
from data_tools.looking.cards import Card, card_of, highlight_rules
from data_tools.looking.filters import RecordFilter, add_filter_arguments, filter_of
from data_tools.looking.page import PAGE_SUFFIXES, check_free, write_page
from data_tools.looking.sample import Reading, draw, nothing_found, progress, read_matching
from wholegrain.data.corpus import Corpus
from wholegrain.data.decode import decode_image
from wholegrain.data.record import Record
from wholegrain.data.shard_folder import atomic_folder
from wholegrain.data.storage import StorageGone
from wholegrain.errors import DataError

_PAGE = "index.html"
_MARKER = ".preview"
"""Of a folder that may be overwritten: an index.html alone would be anybody's website."""
_EMBEDDED_SIDE = 640
"""Photos inside a page are reduced to this many px; the boxes are drawn in the record's pixels."""
_ORIENTATION = 0x0112  # EXIF
_MOST_READ = 20_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``preview``."""
    parser.add_argument("corpus", help="corpus folder or its address")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("preview.html"),
        help="page.html (one file) or a folder (default: preview.html)",
    )
    add_filter_arguments(parser)
    parser.add_argument("--count", type=positive, default=24, help="samples (default: 24)")
    parser.add_argument(
        "--read",
        type=positive,
        default=_MOST_READ,
        metavar="N",
        help=f"records to look through for them at most (default: {_MOST_READ:,})",
    )
    parser.add_argument("--boxes", type=positive, default=12, help="boxes a photo (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="which samples (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --out")


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    corpus = Corpus.open(args.corpus).select(args.split)
    one_file = args.out.suffix.lower() in PAGE_SUFFIXES
    if one_file:
        check_free(args.out, args.overwrite)
    reading = Reading(total=len(corpus))
    wanted = filter_of(args)
    chosen = _choose(corpus, wanted, reading, args)
    if one_file:
        photo = partial(_shown, reading, partial(embed, corpus))
        cards = [card_of(r, args.boxes, wanted, partial(photo, n)) for n, r in chosen]
        write_page(args.out, "preview", _values(cards, corpus, reading, wanted, args))
        page = args.out
    else:
        with atomic_folder(args.out, overwrite=args.overwrite, marker=_MARKER) as folder:
            (folder / _MARKER).write_text("written by python -m data_tools preview\n")
            (folder / "images").mkdir()
            photo = partial(_shown, reading, partial(_beside, corpus, folder))
            cards = [card_of(r, args.boxes, wanted, partial(photo, n)) for n, r in chosen]
            write_page(
                folder / _PAGE,
                "preview",
                _values(cards, corpus, reading, wanted, args),
                images="'self'",
            )
        page = args.out / _PAGE
    print(f"{page}: {len(cards)} samples, {page.stat().st_size / 1e6:.1f} MB")
    if wanted:
        print(f"{reading.matched:,} of {reading.read:,} records read match {wanted}")
    if reading.bad:
        print(f"left out as bad: {reading.told()}; the first: {reading.faults[0]}")
    return 0


def embed(corpus: Corpus, number: int) -> str:
    """The photo as a data URI, reduced where it is larger than a page needs."""
    data, kind = _photo(corpus, number, _EMBEDDED_SIDE)
    kind_name = "jpeg" if kind == "jpg" else kind
    return f"data:image/{kind_name};base64,{base64.b64encode(data).decode()}"


def _choose(
    corpus: Corpus, wanted: RecordFilter, reading: Reading, args: argparse.Namespace
) -> list[tuple[int, Record]]:
    """The first ``--count`` matches of a random order, in the corpus's order."""
    positions = draw(len(corpus), args.read, args.seed)
    chosen = []
    with progress(positions) as bar:
        for found in read_matching(corpus, bar, wanted, reading):
            chosen.append(found)
            if len(chosen) == args.count:
                break
    if not chosen:
        remedy = "change the filter" if reading.read == reading.total else "raise --read"
        raise nothing_found(corpus, wanted, reading, remedy)
    return sorted(chosen, key=lambda found: found[0])


def _beside(corpus: Corpus, folder: Path, number: int) -> str:
    """Puts the photo beside the page; returns its relative address."""
    data, kind = _photo(corpus, number)
    name = f"images/{number:09d}.{kind}"
    (folder / name).write_bytes(data)
    return name


def _photo(corpus: Corpus, number: int, most_side: int | None = None) -> tuple[bytes, str]:
    """The photo's file and kind: as stored, unless it is too large or a browser would turn it.

    Boxes mean the stored pixels, and a browser obeys the note that a camera was held upright.

    Raises:
        DataError: it cannot be read or decoded.
    """
    from PIL import Image

    data, kind = corpus.image_bytes(number), corpus.image_kind(number)
    decoded = decode_image(data, f"{corpus.path}: sample {number}")
    too_large = most_side is not None and max(decoded.width, decoded.height) > most_side
    if not (too_large or _is_turned(data)):
        return data, kind
    image = Image.fromarray(decoded.pixels)
    if most_side is not None:
        image.thumbnail((most_side, most_side))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return buffer.getvalue(), "jpg"


def _is_turned(data: bytes) -> bool:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as file:
            return bool(file.getexif().get(_ORIENTATION, 1) != 1)
    except Exception:  # notes that Pillow cannot read, in whatever way; a browser might
        return True


def _shown(reading: Reading, photo: Any, number: int) -> str:
    """The photo's address; "" for one that cannot be decoded, which is counted."""
    try:
        return str(photo(number))
    except StorageGone:
        raise
    except DataError as error:
        reading.add_fault(error)
        return ""


def _values(
    cards: list[Card],
    corpus: Corpus,
    reading: Reading,
    wanted: RecordFilter,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """What the template asks for."""
    grains: Counter[str] = Counter()
    for card in cards:
        texts = [*card.captions, *card.absent, *(t for mark in card.marks for t in mark.texts)]
        grains.update({text.grain for text in texts})
    return {
        "name": corpus.manifest["name"],
        "path": str(corpus.path),
        "split": corpus.split,
        "seed": args.seed,
        "most_read": args.read,
        "counts": {name: count for name, count in corpus.manifest["counts"].items() if count},
        "reading": reading,
        "wanted": wanted,
        "cards": cards,
        "grains": grains,
        "sources": Counter(card.record.source for card in cards),
        "splits": Counter(card.record.split for card in cards),
        "rules": highlight_rules(max((len(card.marks) for card in cards), default=0)),
    }
