"""One photo, many expressions: asked together against one by one, method by method.

    python -m benchmarks.inference [--hosts residual vit] [--methods ...] [--json FILE]

The methods and hosts are those of `benchmarks/grounding.yaml`; `swin_base` and `vit_base` have the
published sizes. Weights are random, which changes neither time nor work: what starts at zero is
drawn too, so that adapters have something to say. Asked is `wholegrain.predict.Grounder.ground`,
from a decoded photo to boxes in its pixels.

"image passes" counts how often an image leaves the encoder while all expressions are asked
together: once, unless the pass reads the text. The boxes of both ways must be the same; their
largest difference is printed, in pixels.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.grounding_recipes import Recipes, Settings, choose, merged
from benchmarks.machine import Facts, facts, synchronise
from wholegrain.config import from_dict
from wholegrain.errors import ConfigError, run_cli
from wholegrain.model.config import ModelConfig
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.predict import Grounder
from wholegrain.text import Tokenizer

COUNTS = (1, 4, 16, 64)
PHOTO = (480, 640)
_COLOURS = ("red", "blue", "green", "yellow")
_THINGS = ("dog", "wooden chair", "man in a long coat", "car")
_PLACES = ("", "on the left", "next to the small table", "behind the house")
EXPRESSIONS = tuple(
    " ".join(f"the {colour} {thing} {place}".split())
    for place, thing, colour in itertools.product(_PLACES, _THINGS, _COLOURS)
)
"""64 of 3 to 11 words."""
_STD = 0.02


@dataclass
class Passes:
    """Images that leave the image encoder, or the fusion that runs its blocks."""

    count: int = 0

    @contextmanager
    def counted(self, model: MultiGrainModel) -> Iterator[None]:
        """While the block runs."""
        self.count = 0

        def left_encoder(module: nn.Module, inputs: Any, output: Any) -> None:
            self.count += len(output.patches)

        def left_fusion(module: nn.Module, inputs: Any, output: Any) -> None:
            self.count += len(output.vectors)

        hooks = [model.vision.register_forward_hook(left_encoder)]
        if model.fusion is not None and model.fusion.image_per_text:
            hooks.append(model.fusion.register_forward_hook(left_fusion))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def grounder_of(recipes: Recipes, host: str, method: str, device: torch.device) -> Grounder:
    """A method on its host with random weights and a vocabulary of the expressions."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(EXPRESSIONS, 200)
    model = MultiGrainModel(
        from_dict(ModelConfig, model_settings(recipes, host, method, tokenizer.vocab_size))
    )
    with torch.no_grad():
        for weight in model.parameters():
            if not weight.any():
                nn.init.normal_(weight, std=_STD)
    return Grounder(model, tokenizer, device=device)


def model_settings(recipes: Recipes, host: str, method: str, vocabulary: int) -> Settings:
    """The model section that finetuning a method on a host ends with."""
    wanted = recipes.methods[method].on(host)
    parts: Settings = {
        name: wanted[name] for name in ("fusion", "adapters", "box_head") if name in wanted
    }
    settings = merged(recipes.hosts[host].model, {"text": {"vocab_size": vocabulary}})
    return {**settings, **parts}  # whole: a fusion or head replaces what the host has


def measure(grounder: Grounder, photo: np.ndarray, counts: Sequence[int], rounds: int) -> Facts:
    """Seconds together and one by one, and whether the boxes are the same.

    Args:
        grounder: the model.
        photo: uint8 RGB (H, W, 3).
        counts: expressions asked about it.
        rounds: measured, in turns; one more comes before them.
    """
    passes = Passes()
    taken: dict[tuple[int, bool], list[float]] = {}
    found: dict[str, Facts] = {}
    for turn in range(rounds + 1):
        for count in counts:
            texts = EXPRESSIONS[:count]
            begun = _now(grounder)
            together = grounder.ground(photo, texts)
            middle = _now(grounder)
            alone = [grounder.ground(photo, [text])[0] for text in texts]
            seconds = (middle - begun, _now(grounder) - middle)
            if turn:
                for kind, value in zip((True, False), seconds, strict=True):
                    taken.setdefault((count, kind), []).append(value)
                continue
            differences = [
                abs(ours - theirs)
                for one, other in zip(together, alone, strict=True)
                for ours, theirs in zip(one.box, other.box, strict=True)
            ]
            with passes.counted(grounder.model):
                grounder.ground(photo, texts)
            found[str(count)] = {"pixels": max(differences), "image_passes": passes.count}
    for count in counts:
        together_s, alone_s = (median(taken[count, kind]) for kind in (True, False))
        found[str(count)] |= {"together_s": together_s, "one_by_one_s": alone_s}
        found[str(count)]["ratio"] = alone_s / together_s
    return found


def _now(grounder: Grounder) -> float:
    synchronise(grounder.device)
    return time.perf_counter()


def table(rows: Sequence[Facts], rounds: int) -> Table:
    """A row a method and number of expressions."""
    result = Table(title=f"Expressions on one photo, median of {rounds} rounds")
    result.add_column("host")
    result.add_column("method")
    heads = ("expressions", "together, ms", "one by one, ms", "ratio", "together, expressions/s")
    for head in (*heads, "image passes", "boxes differ, px"):
        result.add_column(head, justify="right")
    for row in rows:
        for count, one in row["counts"].items():
            result.add_row(
                row["host"],
                row["title"],
                count,
                f"{1000 * one['together_s']:.1f}",
                f"{1000 * one['one_by_one_s']:.1f}",
                f"{one['ratio']:.2f}",
                f"{int(count) / one['together_s']:.1f}",
                str(one["image_passes"]),
                f"{one['pixels']:.1g}",
            )
    return result


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    add = made.add_argument
    add("--hosts", nargs="+", metavar="NAME", help="of grounding.yaml; default: the trained ones")
    add("--methods", nargs="+", metavar="NAME", help="likewise; default: all")
    add("--counts", type=int, nargs="+", default=COUNTS, help=f"expressions, 1..{max(COUNTS)}")
    add("--rounds", type=int, default=7, help="measured rounds")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--json", type=Path, metavar="FILE", help="write the figures here, too")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints a table, and writes JSON when asked."""
    arguments = build_parser().parse_args(argv)
    if not all(1 <= count <= len(EXPRESSIONS) for count in arguments.counts):
        raise ConfigError(f"--counts is {arguments.counts}; give numbers of 1..{len(EXPRESSIONS)}")
    if arguments.rounds < 1:
        raise ConfigError(f"--rounds is {arguments.rounds}; it must be 1 or more")
    recipes = Recipes.read()
    hosts = choose("--hosts", arguments.hosts or list(recipes.compared_hosts), recipes.hosts)
    methods = choose("--methods", arguments.methods, recipes.methods)
    device = torch.device(arguments.device)
    generator = np.random.default_rng(0)
    photo = generator.integers(0, 256, (*PHOTO, 3), dtype=np.uint8)
    rows: list[Facts] = []
    built: list[tuple[str, Settings]] = []
    for host, method in recipes.pairs(hosts, methods):
        settings = model_settings(recipes, host, method, 0)
        if (host, settings) in built:  # another loss alone: the same model
            continue
        built.append((host, settings))
        grounder = grounder_of(recipes, host, method, device)
        title = recipes.methods[method].title
        counts = measure(grounder, photo, arguments.counts, arguments.rounds)
        rows.append({"host": host, "method": method, "title": title, "counts": counts})
        print(f"{host} {method}", flush=True)
    Console(width=160).print(table(rows, arguments.rounds))
    if arguments.json is not None:
        report = {"machine": facts(device), "rounds": arguments.rounds, "photo": PHOTO}
        text = json.dumps({**report, "rows": rows}, indent=1)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
