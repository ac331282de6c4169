"""Kills a data stream at random moments and compares what it read with an undisturbed run.

    python -m benchmarks.soak --kills 200

A job of several ranks, each with loader workers, reads global batches and notes their samples, as a
training run notes its step. Again and again one of three things gets a SIGKILL: a worker (the
stream must go on by itself), a rank, or the whole job. Then the job is started again from the last
step that all ranks had, with another number of ranks and workers. In the end the sequence of global
batches must be that of one process without workers that nobody disturbed: none lost, none twice,
and the images and token ids in them the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import simplejpeg

from wholegrain.data.augment import AugmentConfig
from wholegrain.data.batch import ConceptBatch
from wholegrain.data.corpus import Corpus
from wholegrain.data.masking import MaskingConfig
from wholegrain.data.record import Record, Region
from wholegrain.data.sampling import ConceptSampling
from wholegrain.data.shard import ShardWriter
from wholegrain.data.stream import Source, Stream
from wholegrain.text import Tokenizer

BATCH = 12
WORLDS = (1, 2, 3, 4, 6)
WORKERS = (1, 2, 3)
CALM_STEPS = 20  # after the last kill
_SIDE = 48


@dataclass
class Outcome:
    """What a soak came to."""

    steps: int
    kills: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    topologies: set[tuple[int, int]] = field(default_factory=set)
    differing: list[int] = field(default_factory=list)
    """Steps whose global batch is not that of the undisturbed run."""


def make_corpus(folder: Path, size: int) -> None:
    """A corpus of small photos in several shards."""
    with ShardWriter(folder, source={"converter": "soak"}, max_samples=37) as writer:
        for number in range(size):
            colours = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
            pixels = np.kron(colours, np.ones((8, 8, 1), dtype=np.uint8))
            regions = (Region("region", (4.0, 4.0, 30.0, 30.0), (f"thing {number % 7}",)),)
            record = Record(
                f"soak/{number}", "soak", "train", _SIDE, _SIDE, (f"photo {number}",), regions
            )
            writer.write(record, bytes(simplejpeg.encode_jpeg(pixels)), "jpg")


def make_stream(
    corpora: Sequence[Corpus], steps: range, rank: int, world: int, workers: int
) -> Stream:
    """The stream under test: a mixture of the two orders, with all that draws at random."""
    return Stream(
        [
            Source("uniform", corpora[0], 7),
            Source("block-wise", corpora[1], 5, block=20, window=3),
        ],
        seed=3,
        tokenizer=_tokenizer(),
        augment=AugmentConfig(resolution=32),
        sampling=ConceptSampling(),
        masking=MaskingConfig(),
        rank=rank,
        world=world,
        start_step=steps.start,
        stop_step=steps.stop,
        workers=workers,
    )


@cache
def _tokenizer() -> Tokenizer:
    return Tokenizer.train([f"photo {n} thing" for n in range(10)], vocab_size=60)


def soak(folder: Path, kills: int, seed: int = 0, say: bool = False) -> Outcome:
    """Runs until `kills` processes have been killed, then to the end of some more steps."""
    chance = random.Random(seed)
    sizes = (101, 83)
    for number, size in enumerate(sizes):
        make_corpus(folder / str(number), size)
    _tokenizer()  # once, before the ranks are forked
    outcome = Outcome(steps=0)
    log = folder / "log"
    log.mkdir()
    done = 0
    while outcome.kills.total() < kills:
        world, workers = chance.choice(WORLDS), chance.choice(WORKERS)
        outcome.topologies.add((world, workers))
        outcome.starts += 1
        done = _attempt(folder, done, world, workers, outcome, kills, chance)
        if say:
            print(
                f"\r{outcome.kills.total()} kills, {done} steps",
                end="",
                file=sys.stderr,
                flush=True,
            )
    outcome.starts += 1
    done = _attempt(folder, done, 2, 1, outcome, kills, chance)  # undisturbed, to the end
    outcome.steps = done
    expected = undisturbed(folder, done)
    found = [(log / f"{step}").read_text() for step in range(done)]
    outcome.differing = [step for step in range(done) if found[step] != expected[step]]
    return outcome


def undisturbed(folder: Path, steps: int) -> list[str]:
    """What each global batch must be."""
    corpora = [Corpus.open(folder / str(number)) for number in range(2)]
    return ["\n".join(_lines(batch)) for batch in make_stream(corpora, range(steps), 0, 1, 0)]


def _attempt(
    folder: Path,
    start: int,
    world: int,
    workers: int,
    outcome: Outcome,
    kills: int,
    chance: random.Random,
) -> int:
    """Starts the job at `start`, kills until it is down, and returns the steps that are done."""
    context = get_context("fork")
    parts = folder / "parts"
    parts.mkdir(exist_ok=True)
    for leftover in parts.iterdir():
        leftover.unlink()
    ranks = [
        context.Process(target=_rank, args=(folder, start, rank, world, workers))
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    down = False
    while not down and outcome.kills.total() < kills:
        time.sleep(chance.uniform(0.05, 0.9))
        kind = chance.choice(("worker", "worker", "rank", "job"))
        if kind == "worker":
            victims = _children(chance.choice(ranks).pid)
            if victims:
                outcome.kills[kind] += _kill(chance.choice(victims))
        elif kind == "rank":
            outcome.kills[kind] += _kill(chance.choice(ranks).pid)
            down = True
        else:
            everything = [pid for rank in ranks for pid in (*_children(rank.pid), rank.pid)]
            outcome.kills[kind] += max(_kill(pid) for pid in everything)
            down = True
    while not down and _noted(parts, world) < CALM_STEPS:
        time.sleep(0.05)
    for process in ranks:  # what a launcher does when a rank is gone
        process.kill()
    for process in ranks:
        process.join()
    return _collect(folder, start, world)


def _noted(parts: Path, world: int) -> int:
    paths = [parts / str(rank) for rank in range(world)]
    return min(path.read_bytes().count(b"\n") if path.exists() else 0 for path in paths)


def _rank(folder: Path, start: int, rank: int, world: int, workers: int) -> None:
    corpora = [Corpus.open(folder / str(number)) for number in range(2)]
    stream = make_stream(corpora, range(start, start + 100_000), rank, world, workers)
    with open(folder / "parts" / str(rank), "a", encoding="utf-8") as file:
        for batch in stream:
            line = json.dumps([batch.extras["step"], _lines(batch)])
            file.write(line + "\n")
            file.flush()
            time.sleep(0.002)  # the step


def _lines(batch: ConceptBatch) -> list[str]:
    """A line for each image: its id and a digest of all that the model would see of it."""
    lines = []
    for row, sample in enumerate(batch.sample_ids):
        digest = hashlib.sha256(batch.images[row].numpy().tobytes())
        for concept in (batch.concept_image == row).nonzero()[:, 0].tolist():
            a, b = batch.cu_seqlens[concept : concept + 2].tolist()
            digest.update(batch.masked_tokens[a:b].numpy().tobytes())
            digest.update(batch.concept_box[concept].numpy().tobytes())
        lines.append(f"{sample} {digest.hexdigest()[:16]}")
    return lines


def _collect(folder: Path, start: int, world: int) -> int:
    """Writes down the steps that every rank has noted; returns the first that is not."""
    by_rank: list[dict[int, list[str]]] = []
    for rank in range(world):
        path = folder / "parts" / str(rank)
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        by_rank.append(dict(map(json.loads, lines)))
    step = start
    while all(step in noted for noted in by_rank):
        whole = [line for noted in by_rank for line in noted[step]]
        place = folder / "log" / str(step)
        if place.exists():
            raise AssertionError(f"step {step} came twice")
        place.write_text("\n".join(whole), encoding="utf-8")
        step += 1
    return step


def _children(pid: int | None) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(word) for word in text.split()]


def _kill(pid: int | None) -> int:
    try:
        if pid:
            os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return 0
    return 1


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        outcome = soak(Path(folder), args.kills, args.seed, say=True)
    kinds = ", ".join(f"{count} of a {kind}" for kind, count in sorted(outcome.kills.items()))
    print(
        f"\n{outcome.kills.total()} kills ({kinds}), {outcome.starts} starts in "
        f"{len(outcome.topologies)} settings of ranks and workers, {outcome.steps} global batches, "
        f"{len(outcome.differing)} of them other than undisturbed; "
        f"{time.monotonic() - began:.0f} s"
    )
    return 1 if outcome.differing else 0


if __name__ == "__main__":
    sys.exit(main())
