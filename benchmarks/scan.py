"""ScanFormer's prediction: seconds and multiply-adds against the share of patches that is read.

``python -m benchmarks.scan [--size base|small] [--json FILE]``

The selection is by lot, so that the share is what the row says: it is of all patches of the
pyramid, whose coarsest scale is always read whole. The model's weights are random, which changes
neither time nor work. Compared are

- merged: the selected patches and one token for all others, as the model predicts;
- unmerged: the whole grid with as many copies of that token, as it trains (forward pass alone);
- finest scale: text and the finest scale's patches in one pass in which all see all, the dense
  model that reads every patch of the full image and no pyramid;
- all scales: the same with the whole pyramid in the pass.

The last two do not depend on the share. A saving is only one against a named baseline: at 65 % the
pyramid saves a third against itself and little against the finest scale.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import DTYPES, Facts, facts, synchronise
from wholegrain.model.adapters.condition import Condition
from wholegrain.model.config import ScanFusion, VitVision
from wholegrain.model.grounding.records import TextStates
from wholegrain.model.grounding.scan import ScanFormer
from wholegrain.model.grounding.scan_body import patch_side
from wholegrain.model.grounding.scan_flops import Body, joint_macs, scan_macs, selected_counts
from wholegrain.model.grounding.scan_tokens import patchify
from wholegrain.model.vision import VitEncoder

SIZES = {
    "base": VitVision(image_size=640, patch_size=32, width=768, depth=12, heads=12),
    "small": VitVision(image_size=320, patch_size=16, width=192, depth=6, heads=3),
    "tiny": VitVision(image_size=64, patch_size=8, width=32, depth=2, heads=2),
}
SHARES = (1.0, 0.65, 0.4, 0.2)
Work = Callable[[], list[float]]
"""Runs once; seconds of its parts: text and scales, or all in one."""


@dataclass
class Bench:
    """A model and what it is asked."""

    vision: VitEncoder
    fusion: ScanFormer
    texts: TextStates
    images: Tensor
    device: torch.device

    @classmethod
    def of(cls, order: Facts, texts: int) -> Bench:
        """So many texts, each in an image of its own."""
        torch.manual_seed(0)
        device, dtype = torch.device(order["device"]), DTYPES[order["precision"]]
        config = SIZES[order["size"]]
        vision = VitEncoder(config)
        fusion = ScanFormer(ScanFusion(scales=order["scales"]), vision, config.width)
        for part in (vision, fusion):
            part.to(device, dtype).eval()
        states = torch.randn(texts, order["tokens"], config.width).to(device, dtype)
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=device)
        images = torch.randn(texts, 3, config.image_size, config.image_size).to(device, dtype)
        return cls(vision, fusion, TextStates(states, mask), images, device)

    @property
    def patches(self) -> tuple[int, ...]:
        """Of each scale's grid, coarse to fine."""
        scales = self.fusion.scales
        return tuple((self.vision.grid[0] >> (scales - 1 - s)) ** 2 for s in range(scales))

    def scanning(self, selected: Sequence[int], merge: bool) -> Work:
        """Reads so many patches of each scale, drawn beforehand."""
        generator = torch.Generator().manual_seed(1)
        count = len(self.texts)
        masks = [
            (torch.rand(count, n, generator=generator).argsort(1).argsort(1) < k).to(self.device)
            for n, k in zip(self.patches, selected, strict=True)
        ]
        image = torch.arange(count, device=self.device)
        config = ScanFusion(scales=self.fusion.scales, merge=merge)

        def work() -> list[float]:
            self.fusion.config = config
            marks = [self._now()]
            features = self.fusion.encode(self.vision, self.images)
            scanning = self.fusion.scan(
                self.vision, self.texts, features, image, Condition(), lambda scale, _: masks[scale]
            )
            marks.append(self._now())
            for _ in scanning:
                marks.append(self._now())
            return [after - before for before, after in pairwise(marks)]

        return work

    def joint(self, first: int) -> Work:
        """Text and the scales from `first` on in one pass in which all see all."""

        def work() -> list[float]:
            start = self._now()
            fusion, vision = self.fusion, self.vision
            pyramid = fusion.encode(vision, self.images).pyramid[::-1]
            parts = [fusion.enter_text(vision, self.texts)]
            for scale in range(first, fusion.scales):
                pixels = patchify(pyramid[scale], patch_side(vision))
                reg = fusion.enter_reg(vision, scale).expand(len(self.texts), 1, -1)
                parts += [reg, fusion.enter_patches(vision, pixels, scale)]
            states = torch.cat(parts, dim=1)
            for block in vision.blocks():
                states = block(states)
            vision.backbone.norm(states)
            return [self._now() - start]

        return work

    def _now(self) -> float:
        synchronise(self.device)
        return time.perf_counter()


def cases(bench: Bench, order: Facts) -> list[tuple[Facts, Work]]:
    """What is measured: its name, sizes and work, and how it is run."""
    patches, config = bench.patches, SIZES[order["size"]]
    body = Body(config.width, config.depth, config.mlp_ratio, config.patch_size)
    tokens, made = order["tokens"], []
    for share in order["shares"]:
        selected = selected_counts(patches, share)
        for name, merged in (("merged", True), ("unmerged", False)):
            macs = scan_macs(body, tokens, patches, selected, config.width, merged=merged)
            row = {"method": name, "share": sum(selected) / sum(patches), "read": selected}
            row |= {"macs": macs.total, "block_macs": macs.blocks}
            made.append((row, bench.scanning(selected, merged)))
    for name, first in (("finest scale", len(patches) - 1), ("all scales", 0)):
        blocks = joint_macs(body, tokens, patches[first:])
        others = body.embedding(sum(patches[first:])) + tokens * config.width**2
        row = {"method": name, "share": None, "read": (0,) * first + patches[first:]}
        row |= {"macs": blocks + others, "block_macs": blocks}
        made.append((row, bench.joint(first)))
    return made


def measure(order: Facts) -> list[Facts]:
    """A row a case and number of texts."""
    rows = []
    for texts in order["texts"]:
        bench = Bench.of(order, texts)
        made = cases(bench, order)
        taken: list[list[list[float]]] = [[] for _ in made]
        with torch.inference_mode():
            # In turns, so that what else the machine does falls on all alike.
            for turn in range(order["warm"] + order["rounds"]):
                for seconds, (_, work) in zip(taken, made, strict=True):
                    parts = work()
                    if turn >= order["warm"]:
                        seconds.append(parts)
        for seconds, (row, work) in zip(taken, made, strict=True):
            rows.append(
                row
                | {"texts": texts, "macs_counted": counted(work, texts)}
                | {"seconds": median(sum(parts) for parts in seconds)}
                | {"part_seconds": [median(each) for each in zip(*seconds, strict=True)]}
            )
    return rows


def counted(work: Work, texts: int) -> int:
    """MACs a text by torch's own count."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        work()
    return counter.get_total_flops() // (2 * texts)


def parameters(order: Facts) -> Facts:
    """Weights of the body and of what ScanFormer adds to it."""
    bench = Bench.of(order, 1)

    def count(part: nn.Module) -> int:
        return sum(weight.numel() for weight in part.parameters())

    return {"body": count(bench.vision), "added": count(bench.fusion)}


def table(found: list[Facts], order: Facts) -> Table:
    """A row a case; times in milliseconds."""
    scales = order["scales"]
    result = Table(
        title=f"ScanFormer {order['size']}, {order['tokens']} text tokens, {order['precision']} on "
        f"{order['device']}: median ms of {order['rounds']} rounds, 10^9 MACs a text"
    )
    for heading in ("texts", "method", "share", "read", "ms", "text and scales, ms", "MACs"):
        result.add_column(heading, justify="right")
    for row in found:
        parts = row["part_seconds"]
        result.add_row(
            str(row["texts"]),
            row["method"],
            "" if row["share"] is None else f"{row['share']:.0%}",
            " ".join(map(str, row["read"])),
            f"{1000 * row['seconds']:.1f}",
            " ".join(f"{1000 * part:.1f}" for part in parts) if len(parts) == scales + 1 else "",
            f"{row['macs'] / 1e9:.3g}",
        )
    return result


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.scan", description=__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--size", choices=SIZES, default="base", help="of the model")
    made.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of all patches")
    made.add_argument("--scales", type=int, default=3, help="of the pyramid")
    made.add_argument("--texts", type=int, nargs="+", default=[1, 8], help="in one call")
    made.add_argument("--tokens", type=int, default=40, help="of a text")
    made.add_argument("--rounds", type=int, default=5, help="measured rounds")
    made.add_argument("--warm", type=int, default=1, help="rounds before them")
    made.add_argument("--precision", choices=DTYPES, default="fp32")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints a table, and writes JSON when asked."""
    options = vars(build_parser().parse_args(arguments))
    file: Path | None = options.pop("json")
    found = measure(options)
    Console(width=120).print(table(found, options))
    if file is not None:
        report: Facts = {"machine": facts(torch.device(options["device"])), "order": options}
        report |= {"parameters": parameters(options), "figures": found}
        file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
