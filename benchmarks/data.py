"""How fast photos become batches, against decoding alone and against a straightforward pipeline.

    python -m benchmarks.data [--photos DIR] [--json FILE]

Each way works on the same photos, in turns in one process on one thread, and is compared by the
median of its rounds:

- decoding and resizing alone: what no pipeline can do without, in two forms: the whole photo, and
  the very crop that the pipeline shows;
- ours: read, decode, crop, resize, augment, tokenise, mask, collate;
- straightforward: webdataset, Pillow, torchvision's crop and RandAugment, a float image normalised
  in the worker, one text tokenised and padded.

Then the gain of shards whose photos were made smaller at conversion, loader workers from one to as
many as there are cores, and the share of time that training of the tiny model waits for data.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.data_corpora import make_corpora, make_tokenizer
from benchmarks.data_plain import plain_batches
from benchmarks.data_wait import wait_shares
from benchmarks.machine import facts
from wholegrain.data.augment import AugmentConfig, squeeze
from wholegrain.data.corpus import Corpus
from wholegrain.data.decode import decode_image
from wholegrain.data.masking import MaskingConfig
from wholegrain.data.sampling import ConceptSampling
from wholegrain.data.stream import Source, Stream
from wholegrain.data.views import View
from wholegrain.text import Tokenizer

RESOLUTION = 224
BATCH = 32
OURS = AugmentConfig(resolution=RESOLUTION, mode="crop", min_scale=0.2, flip="swap", colour=0.3)
XVLM = AugmentConfig(
    resolution=RESOLUTION, mode="xvlm", flip="blind", colour=0.0, randaugment_ops=2
)
SAMPLING = ConceptSampling(captions_per_image=1, max_regions=4, max_objects=4, max_concepts=5)


@dataclass
class Way:
    """Something that works through photos; `run` returns how many."""

    name: str
    run: Callable[[], int]


def decode_whole(corpus: Corpus, tokenizer: Tokenizer, rounds: int) -> Callable[[], int]:
    """The whole photo, decoded at the smallest scale that fills the square, and resized."""

    plans = iter([drawn_views(corpus, tokenizer, OURS, turn) for turn in range(rounds + 1)])

    def run() -> int:
        plan = next(plans)
        for number, _, width, height in plan:
            least = min(RESOLUTION, width, height)
            squeeze(decode_image(corpus.image_bytes(number), "", least).pixels, RESOLUTION)
        return len(plan)

    return run


def decode_views(
    corpus: Corpus, tokenizer: Tokenizer, config: AugmentConfig, rounds: int
) -> Callable[[], int]:
    """The very crops that the pipeline will draw in its rounds, decoded and resized, no more."""
    plans = iter([drawn_views(corpus, tokenizer, config, turn) for turn in range(rounds + 1)])

    def run() -> int:
        plan = next(plans)
        for number, view, width, height in plan:
            least = view.min_side(width, height, RESOLUTION)
            decoded = decode_image(corpus.image_bytes(number), "", least)
            rows, columns = decoded.pixels.shape[:2]
            x, y = columns / width, rows / height
            top, left = int(view.top * y), int(view.left * x)
            bottom, right = round((view.top + view.height) * y), round((view.left + view.width) * x)
            squeeze(decoded.pixels[top:bottom, left:right], RESOLUTION)
        return len(plan)

    return run


def drawn_views(
    corpus: Corpus, tokenizer: Tokenizer, config: AugmentConfig, turn: int
) -> list[tuple[int, View, int, int]]:
    """Sample, view, and stored size of each photo of the pipeline's `turn`-th run."""
    stream = make_stream(corpus, tokenizer, config, range(10**6))
    augment = stream.preparer.augment
    draw, views = augment.choose_view, []

    def note(width: int, height: int, *rest: Any) -> View:
        views.append((draw(width, height, *rest), width, height))
        return views[-1][0]

    augment.choose_view = note  # type: ignore[method-assign]
    samples = stream.batch(turn).extras["index"].tolist()
    return [(sample, *view) for sample, view in zip(samples, views, strict=True)]


def make_stream(
    corpus: Corpus, tokenizer: Tokenizer, config: AugmentConfig, steps: range, workers: int = 0
) -> Stream:
    """The pipeline of a training run."""
    return Stream(
        [Source("photos", corpus, BATCH)],
        seed=0,
        tokenizer=tokenizer,
        augment=config,
        sampling=SAMPLING,
        masking=MaskingConfig(),
        start_step=steps.start,
        stop_step=steps.stop,
        workers=workers,
    )


def ours(corpus: Corpus, tokenizer: Tokenizer, config: AugmentConfig) -> Callable[[], int]:
    """A batch of our pipeline, another one at each call."""
    stream = make_stream(corpus, tokenizer, config, range(10**6))
    steps = iter(range(10**6))
    return lambda: stream.batch(next(steps)).num_images


def straightforward(corpus: Corpus, tokenizer: Tokenizer) -> Callable[[], int]:
    """A batch of the pipeline that a user would write."""

    def batches() -> Iterator[int]:
        while True:
            yield from plain_batches(corpus, tokenizer, RESOLUTION, BATCH)

    endless = batches()
    return lambda: next(endless)


def compare(ways: Sequence[Way], rounds: int) -> dict[str, list[float]]:
    """Processor seconds a photo of each way, round by round; in a round each has its turn.

    Turns are short, so that what slows the machine down slows all of them.
    """
    times: dict[str, list[float]] = {way.name: [] for way in ways}
    for number in range(rounds + 1):
        for way in ways:
            began = time.thread_time()
            count = way.run()
            if number:  # the first round fills caches
                times[way.name].append((time.thread_time() - began) / count)
    return times


def ratio(times: dict[str, list[float]], way: str, to: str) -> float:
    """How many times as fast one way is as another: the median over rounds."""
    return statistics.median(b / a for a, b in zip(times[way], times[to], strict=True))


def scaling(corpus: Corpus, tokenizer: Tokenizer, cores: int, seconds: float) -> dict[int, float]:
    """Photos a second with one worker to one a core, for a consumer that takes no time."""
    found = {}
    for workers in range(1, cores + 1):
        stream = iter(make_stream(corpus, tokenizer, OURS, range(10**6), workers))
        for _ in range(2 * workers):
            next(stream)
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            count += next(stream).num_images
        found[workers] = count / (time.perf_counter() - began)
        stream.close()  # type: ignore[attr-defined]
    return found


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=Path, help="COCO layout: images/, captions, instances")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measure with workers")
    parser.add_argument("--max-side", type=int, nargs="*", default=[384, 256])
    parser.add_argument("--no-wait", action="store_true", help="leave out the training run")
    parser.add_argument("--json", type=Path)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        corpora = make_corpora(Path(place), args.photos, args.max_side)
        whole = Corpus.open(corpora["as stored"])
        tokenizer = make_tokenizer(whole)
        ways = [
            Way("decode + resize, whole photo", decode_whole(whole, tokenizer, args.rounds)),
            Way("decode + resize, the crops", decode_views(whole, tokenizer, OURS, args.rounds)),
            Way(
                "decode + resize, X-VLM's crops", decode_views(whole, tokenizer, XVLM, args.rounds)
            ),
            Way("ours", ours(whole, tokenizer, OURS)),
            Way("ours, X-VLM's augmentation", ours(whole, tokenizer, XVLM)),
            Way("straightforward", straightforward(whole, tokenizer)),
        ]
        smaller = {name: path for name, path in corpora.items() if name != "as stored"}
        ways += [
            Way(f"ours, {n}", ours(Corpus.open(p), tokenizer, OURS)) for n, p in smaller.items()
        ]
        figures["photos"] = {"count": len(whole), "bytes": whole.shards.total_bytes}
        figures["bytes"] = {n: Corpus.open(p).shards.total_bytes for n, p in corpora.items()}
        times = compare(ways, args.rounds)
        figures["photos_per_s"] = {n: 1 / statistics.median(found) for n, found in times.items()}
        pairs = [
            ("ours", "decode + resize, the crops"),
            ("ours", "decode + resize, whole photo"),
            ("ours, X-VLM's augmentation", "decode + resize, X-VLM's crops"),
            ("ours", "straightforward"),
            ("ours, X-VLM's augmentation", "straightforward"),
            *((f"ours, {name}", "ours") for name in smaller),
        ]
        figures["ratios"] = {f"{way} / {to}": ratio(times, way, to) for way, to in pairs}
        workers = scaling(whole, tokenizer, os.cpu_count() or 1, args.seconds)
        figures["photos_per_s_by_workers"] = workers
        if not args.no_wait:
            figures["training"] = wait_shares(Path(place), corpora, args.seconds)
    show(figures)
    if args.json:
        report = {"machine": facts(torch.device("cpu")), "figures": figures}
        args.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return 0


def show(figures: dict[str, Any]) -> None:
    """The figures as tables."""
    console = Console()
    for title, values in figures.items():
        table = Table(title=title.replace("_", " "), title_justify="left", show_header=False)
        for name, value in values.items():
            cells = value.values() if isinstance(value, dict) else [value]
            shown = [f"{v:,.3f}" if isinstance(v, float) and v < 10 else f"{v:,.0f}" for v in cells]
            table.add_row(str(name), *shown)
        console.print(table)


if __name__ == "__main__":
    sys.exit(main())
