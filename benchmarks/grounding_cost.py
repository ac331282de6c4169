"""What an answer costs: multiply-adds, seconds, memory, parameters, and what ScanFormer reads.

    python -m benchmarks.grounding_cost --order ORDER.json --json FILE

A process of its own, so that its threads and memory are those of inference alone. All models of an
order are held together and take turns, so that what else the machine does falls on all alike; the
peak of memory is measured with one model a process. Seconds and bytes are those of
`wholegrain.predict.Grounder.ground`, from a decoded photo to boxes in its pixels.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.grounding_cells import write_json
from benchmarks.machine import Facts, PeakMemory, can_watch, facts
from finetune.evaluation import load_batch
from finetune.samples import Expression, corpus_expressions, plan_batches
from wholegrain.data.corpus import Corpus
from wholegrain.data.decode import decode_image
from wholegrain.hub.release import load_release
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.predict import DEFAULT_MAX_TOKENS, Grounder

_WARM = 2  # rounds before those that count
CPU = torch.device("cpu")


def measure(order: Facts) -> Facts:
    """Everything but memory, of each release by its name.

    Args:
        order: ``releases`` (name -> folder), ``corpus``, ``split``, ``counts`` of expressions a
            photo, ``rounds``, and ``photos`` on which the selection is looked at.
    """
    grounders = {name: grounder_of(Path(folder)) for name, folder in order["releases"].items()}
    corpus = Corpus.open(order["corpus"]).select(order["split"])
    asked = corpus_expressions(corpus)
    some = [asked[round(at)] for at in _spread(len(asked), max(order["counts"]))]
    photo = decode_image(corpus.image_bytes(some[0].record), some[0].image).pixels
    # The first is asked alone as well: one of middling length.
    texts = sorted((one.text for one in some), key=len)
    texts.insert(0, texts.pop(len(texts) // 2))
    seconds: dict[tuple[str, int], list[float]] = {}
    for turn in range(_WARM + order["rounds"]):
        for name, grounder in grounders.items():
            for count in order["counts"]:
                begun = time.perf_counter()
                grounder.ground(photo, texts[:count])
                if turn >= _WARM:
                    seconds.setdefault((name, count), []).append(time.perf_counter() - begun)
    found: Facts = {"machine": facts(CPU), "texts": texts, "methods": {}}
    for name, grounder in grounders.items():
        counts: list[int] = order["counts"]
        found["methods"][name] = {
            "parameters": _count(grounder.model),
            "parameters_used": parameters_used(grounder.model),
            "macs": {str(count): macs(grounder, texts[:count]) for count in counts},
            "seconds": {str(count): median(seconds[name, count]) for count in counts},
            "kept": kept(grounder, corpus, asked, order["photos"]),
        }
    return found


def memory(order: Facts) -> Facts:
    """The peak of the one release ``release`` with ``count`` expressions on a photo, in bytes.

    `start` was held before the model was loaded: Python, torch and this program. None where this
    system does not tell.
    """
    if not can_watch(CPU):
        return {"start": None, "peak": None}
    corpus = Corpus.open(order["corpus"]).select(order["split"])
    asked = corpus_expressions(corpus)
    some = [asked[round(at)] for at in _spread(len(asked), order["count"])]
    photo = decode_image(corpus.image_bytes(some[0].record), some[0].image).pixels
    # Not getrusage's figure: a process inherits that of the one that started it.
    with PeakMemory(CPU).watch() as peak:
        grounder = grounder_of(Path(order["release"]))
        grounder.ground(photo, [one.text for one in some])
    return {"start": peak.before, "peak": peak.peak}


def grounder_of(folder: Path) -> Grounder:
    """A release on the CPU."""
    model, tokenizer, info = load_release(folder)
    tokens = info.extras.get("max_tokens", DEFAULT_MAX_TOKENS)
    assert isinstance(tokens, int)
    return Grounder(model, tokenizer, device=CPU, max_tokens=tokens)


def macs(grounder: Grounder, texts: Sequence[str]) -> int:
    """Multiply-adds of matrix products an expression, of all of them asked about one photo.

    Half of torch's count of FLOP. What the clock is not charged for is not counted either: parts of
    an image's pass that no text changes run once.
    """
    model = grounder.model
    side = model.config.vision.image_size
    ids, mask = grounder.tokenizer.encode_batch(list(texts), grounder.max_tokens)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, side, side, generator=generator)
    first = torch.zeros(len(texts), dtype=torch.long)
    # Without gradients, not in inference mode, in which the count would miss products. Fused
    # attention is counted by its two products only where it is made of them.
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), model.same_images(), counter:
        model.ground(images, ids, mask, first)
    return round(counter.get_total_flops() / 2 / len(texts))


def kept(
    grounder: Grounder, corpus: Corpus, asked: Sequence[Expression], photos: int
) -> Facts | None:
    """Shares of the patches that are read: of each scale, coarse to fine, and of all of them.

    None where a method reads all.
    """
    model = grounder.model
    if model.scales == 1:
        return None
    side = model.config.vision.image_size
    names = list(dict.fromkeys(one.image for one in asked))
    chosen = {names[round(at)] for at in _spread(len(names), photos)}
    shares = []
    for part in plan_batches([one for one in asked if one.image in chosen], 16, 64):
        batch = load_batch(corpus, part, side)
        ids, mask = batch.encode_texts(grounder.tokenizer, grounder.max_tokens)
        with torch.inference_mode():
            texts = model.read_texts(ids, mask)
            images = model.normalise_images(batch.images)
            features, rows = model.encode_for_texts(images, texts, batch.image_index)
            fused = model.fuse_texts(features, texts, rows)
        assert fused.kept is not None
        shares.append(fused.kept)
    scales = torch.cat(shares).double().mean(dim=0)
    rows_columns = model.vision.grid
    patches = torch.tensor(
        [(rows_columns[0] >> s) * (rows_columns[1] >> s) for s in reversed(range(len(scales)))],
        dtype=torch.float64,
    )
    return {
        "scales": scales.tolist(),
        "all": float((scales * patches).sum() / patches.sum()),
        "expressions": sum(len(part) for part in shares),
    }


def parameters_used(model: MultiGrainModel) -> int:
    """Weights that an answer runs through: not those of pretraining's other objectives, and not the
    cross encoder where another fusion stands in its place."""
    parts: list[nn.Module] = [model.vision, model.text, model.box_head, model.adapters]
    parts.append(model.cross if model.fusion is None else model.fusion)
    return sum(map(_count, parts))


def _count(part: nn.Module) -> int:
    return sum(weight.numel() for weight in part.parameters())


def _spread(count: int, wanted: int) -> list[float]:
    """Places of `wanted` (or all) of so many things, evenly spread."""
    wanted = min(count, wanted)
    return [at * (count - 1) / max(wanted - 1, 1) for at in range(wanted)]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what the order says, and writes JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grounding_cost")
    parser.add_argument("--order", type=Path, required=True, help="JSON: what is measured")
    parser.add_argument("--json", type=Path, required=True, help="file for the figures")
    arguments = parser.parse_args(argv)
    order: dict[str, Any] = json.loads(arguments.order.read_text(encoding="utf-8"))
    write_json(arguments.json, memory(order) if "release" in order else measure(order))
    return 0


if __name__ == "__main__":
    sys.exit(main())
