"""What is measured: steps of both paths in turn, memory, the price of regions, inference."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.machine import PRECISIONS, Facts, seconds_of
from benchmarks.train_step_cases import (
    FAST,
    IMAGES_A_TEXT,
    ITERATIONS,
    PADDED,
    REFERENCE,
    SLOTS,
    Setup,
    Trainer,
    has_hook,
    make_batch,
    model_config,
    shape_of,
)
from benchmarks.train_step_memory import peak_in_child
from wholegrain.data.augment import squeeze, to_planes
from wholegrain.data.batch import ConceptBatch
from wholegrain.model.flops import reference_flops, step_flops
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.predict import Grounder
from wholegrain.text import SPECIAL_TOKENS, Tokenizer

Say = Callable[[str], None]
_WARM_SEED = 1_000


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    texts: int
    """Texts of a step."""
    rounds: int
    """Measured steps of each case; the cases take turns."""
    warm: int
    """Steps of each case before that, on batches of their own."""
    region_images: int
    """Images of the steps with more and more regions."""
    regions: Sequence[int] = (1, 2, 4, 8, 16, 32)
    """Regions an image."""
    region_rounds: int = 3
    """Steps for each of them."""
    expressions: Sequence[int] = (1, 8, 64)
    """Expressions on one photo."""

    def counts(self, iteration: str) -> tuple[int, int]:
        """Images and texts of a step."""
        return max(1, round(self.texts * IMAGES_A_TEXT[iteration])), self.texts


@dataclass
class StepRow:
    """One case: a path, a precision and an iteration of one model."""

    vision: str
    iteration: str
    path: str
    precision: str
    images: int
    texts: int
    seconds: list[float] = field(default_factory=list)
    """Of each measured step."""
    tokens: list[int] = field(default_factory=list)
    """Real tokens of each."""
    useful: list[int] = field(default_factory=list)
    """FLOP of each that real tokens, and an image's keys and values once, need."""
    padded: list[int] = field(default_factory=list)
    """FLOP of each that the reference computes."""
    recompiles: int = 0
    """Graphs compiled during the measured steps."""

    def report(self, peak: float, reference: StepRow | None) -> Facts:
        """The row with what follows from it.

        Args:
            peak: FLOP/s of the device's products in this precision.
            reference: the reference in fp32 on the same batches, if it was measured.
        """
        seconds = median(self.seconds)
        rate = sum(self.useful) / len(self.useful) / seconds
        return {
            **asdict(self),
            "median_seconds": seconds,
            "pairs_per_second": self.texts / seconds,
            "flop_per_second": rate,
            "share_of_peak": rate / peak,
            "ratio_to_reference_fp32": median(reference.seconds) / seconds if reference else None,
            "peak_bytes": None,
            "step_bytes": None,
        }


def measure_steps(setup: Setup, plan: Plan, peaks: dict[str, float], say: Say) -> list[Facts]:
    """Rows of both paths in both precisions, their steps taken in turn on the same batches."""
    trainers = {path: Trainer(path, setup) for path in (REFERENCE, FAST)}
    rows = []
    for iteration in ITERATIONS:
        images, texts = plan.counts(iteration)
        cases = [
            StepRow(setup.vision, iteration, path, precision, images, texts)
            for precision in PRECISIONS
            for path in trainers
        ]
        for turn in range(-plan.warm, plan.rounds):
            seed = turn if turn >= 0 else _WARM_SEED - turn
            batch = make_batch(trainers[FAST].config, iteration, images, texts, seed)
            moved = batch.to(setup.device)
            for row in cases:
                _take_step(trainers[row.path], row, batch, moved, measured=turn >= 0)
            say(
                f"{setup.vision} {iteration}: step {turn + plan.warm + 1}/{plan.warm + plan.rounds}"
            )
        slow = next(r for r in cases if (r.path, r.precision) == (REFERENCE, "fp32"))
        rows += [row.report(peaks[row.precision], slow) for row in cases]
    return rows


def _take_step(
    trainer: Trainer, row: StepRow, batch: ConceptBatch, moved: ConceptBatch, measured: bool
) -> None:
    before = compiled_graphs()
    seconds = seconds_of(lambda: trainer.step(moved, row.precision), trainer.device)
    if not measured:
        return
    shape = shape_of(trainer.config, batch)
    row.seconds.append(seconds)
    row.tokens.append(sum(shape.lengths))
    row.useful.append(step_flops(trainer.config, shape).total)
    row.padded.append(reference_flops(trainer.config, shape, PADDED, SLOTS).total)
    row.recompiles += compiled_graphs() - before


def compiled_graphs() -> int:
    """Graphs that torch.compile has made in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def measure_memory(
    setup: Setup, plan: Plan, precisions: Sequence[str], say: Say
) -> tuple[list[Facts], list[str]]:
    """Peak memory of both paths and of the fast one with activation checkpointing.

    Returns:
        Rows, each with ``ratio_to_reference`` of the bytes that a step adds, and notes on what
        could not be measured.
    """
    # Checkpointing has a row of its own, so the plain rows are without it.
    plain = replace(setup, checkpoint_activations=False)
    variants: list[tuple[str, Setup]] = [(REFERENCE, plain), (FAST, plain)]
    notes = []
    if has_hook("checkpointing"):
        variants.append((FAST, plain.checkpointed()))
    else:
        notes.append("wholegrain.model.checkpointing is not there: its memory is not measured.")
    counts = {iteration: plan.counts(iteration) for iteration in ITERATIONS}
    rows: list[Facts] = []
    for precision in precisions:
        held: dict[str, int] = {}
        for path, variant in variants:
            say(f"{setup.vision} memory: {path} {precision}")
            found = peak_in_child(path, precision, variant, counts)
            if found is None:
                return [], ["This system does not tell a process's peak memory: not measured."]
            for iteration, bytes_held in found.items():
                base = held.setdefault(iteration, bytes_held["step_bytes"])
                rows.append(
                    {
                        "vision": setup.vision,
                        "iteration": iteration,
                        "path": path,
                        "checkpointed": variant.checkpoint_activations,
                        "precision": precision,
                        "images": counts[iteration][0],
                        "texts": counts[iteration][1],
                        **bytes_held,
                        "ratio_to_reference": bytes_held["step_bytes"] / base,
                    }
                )
    return rows, notes


def add_memory(steps: list[Facts], memory: list[Facts], checkpointed: bool) -> None:
    """Puts the peaks into the rows of the steps that they belong to."""
    names = ("vision", "iteration", "path", "precision")
    for row in steps:
        wanted = [row[name] for name in names]
        for found in memory:
            run_so = checkpointed and row["path"] == FAST
            if [found[name] for name in names] == wanted and found["checkpointed"] == run_so:
                row["peak_bytes"], row["step_bytes"] = found["peak_bytes"], found["step_bytes"]


def measure_regions(setup: Setup, plan: Plan, precision: str, say: Say) -> Facts:
    """Seconds of a fast step against regions an image, at a fixed number of images.

    Returns:
        ``rows``; ``image_seconds`` of the image encoder alone, forward and backward; and the line
        ``fixed_seconds + seconds_per_region * regions`` that fits the rows best.
    """
    trainer = Trainer(FAST, setup)
    images, iteration = plan.region_images, "region"
    rows: list[Facts] = []
    alone: list[float] = []
    for count in plan.regions:
        texts = images * count
        seconds = []
        for turn in range(-1, plan.region_rounds):
            batch = make_batch(trainer.config, iteration, images, texts, _WARM_SEED + turn)
            moved = batch.to(setup.device)
            taken = seconds_of(lambda b=moved: trainer.step(b, precision), trainer.device)
            encoded = seconds_of(lambda b=moved: trainer.images_alone(b, precision), trainer.device)
            if turn >= 0:
                seconds.append(taken)
                alone.append(encoded)
        say(f"{setup.vision} regions: {count} an image")
        flops = step_flops(trainer.config, shape_of(trainer.config, batch))
        rows.append(
            {
                "regions_per_image": count,
                "texts": texts,
                "seconds": seconds,
                "median_seconds": median(seconds),
                "seconds_per_region": median(seconds) / texts,
                "vision_share_of_flop": flops.vision.total / flops.total,
            }
        )
    each, fixed = np.polyfit(
        [row["texts"] for row in rows], [row["median_seconds"] for row in rows], 1
    ).tolist()
    return {
        "vision": setup.vision,
        "precision": precision,
        "images": images,
        "image_seconds": median(alone),
        "fixed_seconds": fixed,
        "seconds_per_region": each,
        "rows": rows,
    }


def measure_inference(setup: Setup, plan: Plan, say: Say) -> list[Facts]:
    """Expressions a second on one photo, in fp32, as `wholegrain.predict` answers them."""
    config = model_config(setup.size, setup.vision)
    torch.manual_seed(0)
    words = [f"word{number}" for number in range(config.text.vocab_size - len(SPECIAL_TOKENS))]
    tokenizer = _tokenizer(words)
    grounder = Grounder(MultiGrainModel(config), tokenizer, device=setup.device)
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
    rows = []
    for count in plan.expressions:
        # Region texts: 2 to 9 words behind [CLS].
        texts = [" ".join(rng.choice(words, rng.integers(2, 10))) for _ in range(count)]
        ways: dict[str, Callable[[], object]] = {
            "batched": lambda t=texts: grounder.ground(photo, t),
            "one by one, photo kept": lambda t=texts: _one_by_one(grounder, photo, t),
            "one by one, photo anew": lambda t=texts: [grounder.ground(photo, [x]) for x in t],
        }
        for name, work in ways.items():
            seconds_of(lambda t=texts: grounder.ground(photo, t[:1]), grounder.device)
            # The many single answers of the slowest way are their own repetition.
            repeats = 3 if count <= 8 or name == "batched" else 1
            seconds = [seconds_of(work, grounder.device) for _ in range(repeats)]
            say(f"{setup.vision} inference: {count} expressions {name}")
            rows.append(
                {
                    "vision": setup.vision,
                    "expressions": count,
                    "way": name,
                    "seconds": seconds,
                    "median_seconds": median(seconds),
                    "expressions_per_second": count / median(seconds),
                }
            )
    return rows


def _tokenizer(words: list[str]) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocab.txt"
        vocabulary.write_text("\n".join([*SPECIAL_TOKENS, *words]), encoding="utf-8")
        return Tokenizer.from_vocab(vocabulary)


@torch.inference_mode()
def _one_by_one(grounder: Grounder, photo: Any, texts: Sequence[str]) -> list[torch.Tensor]:
    """The photo is encoded once, each expression by itself."""
    model, device = grounder.model, grounder.device
    pixels = to_planes(squeeze(photo, model.config.vision.image_size))
    features = model.encode_images(model.normalise_images(pixels[None].to(device)))
    row = torch.zeros(1, dtype=torch.long, device=device)
    boxes = []
    for text in texts:
        ids, mask = grounder.tokenizer.encode_batch([text], grounder.max_tokens)
        ids, mask = ids.to(device), mask.to(device)
        prediction, _, _ = model.ground_encoded(features, model.read_texts(ids, mask), row)
        boxes.append(prediction.boxes.cpu())
    return boxes
