"""``augmentations``: an HTML page of photos as training sees them, to check a config by eye.

A row a photo: as stored, then some draws, each with the boxes and texts that a batch would hold.
"""

from __future__ import annotations

import argparse
import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.arguments import positive
from data_tools.looking.cards import COLOURS
from data_tools.looking.page import check_free, write_page
from wholegrain.config import dump_config, from_dict, load_config
from wholegrain.data.augment import AugmentConfig
from wholegrain.data.batch import GRAINS, IMAGE, Sample
from wholegrain.data.corpus import Corpus
from wholegrain.data.permutation import keyed_rng
from wholegrain.data.prepare import Preparer
from wholegrain.data.sampling import ConceptSampling
from wholegrain.errors import ConfigError, DataError
from wholegrain.text import Tokenizer

_LONGEST_SIDE = 448
"""Stored photos are reduced to this many px; their boxes are drawn in the record's pixels."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``augmentations``."""
    parser.add_argument("corpus", help="corpus folder or its address")
    parser.add_argument(
        "--config",
        type=Path,
        help="YAML of a run, of which data.augment and data.sampling count, or of an augmentation "
        "alone (default: the default augmentation)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change the augmentation: mode=xvlm, randaugment_ops=2; may be given again",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("augmentations.html"),
        help="page to write (default: augmentations.html)",
    )
    parser.add_argument("--split", help="this split only")
    parser.add_argument("--count", type=positive, default=8, help="photos (default: 8)")
    parser.add_argument("--draws", type=positive, default=6, help="draws a photo (default: 6)")
    parser.add_argument("--seed", type=int, default=0, help="photos and draws (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --out")


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    check_free(args.out, args.overwrite)
    augment, sampling = read_rules(args.config, args.set)
    corpus = Corpus.open(args.corpus).select(args.split)
    chosen = keyed_rng("augmentations", args.seed).permutation(len(corpus))[: args.count].tolist()
    preparer = Preparer(_tokenizer(corpus, chosen), augment, None)
    rows, bad = [], []
    for number in chosen:
        try:
            draws = [
                _draw(preparer, corpus, number, sampling, (args.seed, draw))
                for draw in range(args.draws)
            ]
            rows.append(Row(_stored(corpus, number), draws))
        except DataError as error:
            bad.append(str(error))
    if not rows:
        raise DataError(f"{args.corpus}: no photo could be shown; the first: {bad[0]}")
    values = {
        "name": corpus.manifest["name"],
        "split": corpus.split,
        "path": str(corpus.path),
        "rules": dump_config(augment),
        "rows": rows,
        "draws": args.draws,
        "seed": args.seed,
        "total": len(corpus),
        "bad": bad,
    }
    write_page(args.out, "augmentations", values)
    size = args.out.stat().st_size / 1e6
    print(f"{args.out}: {len(rows)} photos, {args.draws} draws of each, {size:.1f} MB")
    for message in bad:
        print(f"left out: {message}")
    return 0


@dataclass(frozen=True, slots=True)
class Mark:
    """A box and what is said of it: x, y, width, height in px of the picture."""

    number: int
    colour: str
    grain: str
    text: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as the page shows it; texts about the whole of it are `captions`."""

    image: str
    width: int
    height: int
    title: str
    captions: list[str]
    marks: list[Mark]


@dataclass(frozen=True, slots=True)
class Row:
    """A photo as it is stored, and as it was drawn."""

    stored: Picture
    draws: list[Picture]


def read_rules(path: Path | None, changes: Sequence[str]) -> tuple[AugmentConfig, ConceptSampling]:
    """The augmentation and the sampling of a run's file, or of a file of an augmentation alone.

    Raises:
        ConfigError: the file or a change is wrong; the message names it.
    """
    values: Mapping[str, Any] = load_config(dict, path) if path is not None else {}
    where = str(path or "augmentation")
    sampling: Mapping[str, Any] = {}
    if "data" in values:
        data = from_dict(dict, values["data"], f"{where}: data")
        values, sampling = data.get("augment", {}), data.get("sampling", {})
    for change in changes:
        key, _, text = change.partition("=")
        values = {**values, key: _plain(change, text)}
    return from_dict(AugmentConfig, values, where), from_dict(ConceptSampling, sampling, where)


def _plain(change: str, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: such as the 99th day of a month
        problem = str(getattr(error, "problem", None) or error)
        raise ConfigError(
            f"--set {change}: {text!r} is no YAML value ({problem}); put it in quotes"
        ) from None


def _tokenizer(corpus: Corpus, chosen: Sequence[int]) -> Tokenizer:
    """Texts are shown as they are, so any vocabulary does; a tiny one is learnt at once."""
    records = [corpus.record(number) for number in chosen]
    texts = [text for record in records for text in record.captions]
    texts += [text for record in records for region in record.regions for text in region.texts]
    return Tokenizer.train(texts, vocab_size=200)


def _draw(
    preparer: Preparer,
    corpus: Corpus,
    number: int,
    sampling: ConceptSampling,
    key: tuple[int, int],
) -> Picture:
    rng = keyed_rng("augmentations", *key, number)
    sample: Sample = preparer(corpus, number, sampling, rng)
    side = sample.image.shape[-1]
    marks = []
    for concept in sample.concepts:
        if concept.grain == IMAGE:
            continue
        x, y, width, height = (value * side for value in concept.box)
        box = (x - width / 2, y - height / 2, width, height)
        marks.append(_mark(concept.region, GRAINS[concept.grain], concept.text, box))
    captions = [concept.text for concept in sample.concepts if concept.grain == IMAGE]
    pixels = sample.image.permute(1, 2, 0).numpy()
    title = f"draw {key[1] + 1}"
    return Picture(_embedded(pixels, side), side, side, title, captions, marks)


def _stored(corpus: Corpus, number: int) -> Picture:
    from wholegrain.data.decode import decode_image

    record = corpus.record(number)
    pixels = decode_image(corpus.image_bytes(number), record.id).pixels
    marks = [
        _mark(place, region.grain, " · ".join(dict.fromkeys(region.texts)), region.box)
        for place, region in enumerate(record.regions)
    ]
    image = _embedded(pixels, _LONGEST_SIDE)
    captions = list(record.captions)
    return Picture(image, record.width, record.height, record.id, captions, marks)


def _mark(region: int, grain: str, text: str, box: tuple[float, float, float, float]) -> Mark:
    """The same number and colour for a region wherever it is seen."""
    rounded = (round(value, 2) for value in box)
    return Mark(region + 1, COLOURS[region % len(COLOURS)], grain, text, *rounded)


def _embedded(pixels: Any, longest: int) -> str:
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((longest, longest))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=92, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
