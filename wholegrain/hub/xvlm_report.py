"""What an import took from a file, and where it put it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from wholegrain.hub.xvlm_layout import HEADS
from wholegrain.hub.xvlm_names import TIED, VISION, is_index
from wholegrain.model.config import ModelConfig, SwinVision, VitVision

_TARGETS = {
    "vision": "vision",
    "text": "text",
    "cross": "cross",
    "contrastive": "image_projection, text_projection, temperature",
    "matching": "match_head",
    "masked language": "masked_language_head",
    "box": "box_head",
}


@dataclass
class ImportReport:
    """What went where; `str` gives it as lines to print."""

    layout: str
    """Kind of the file: pretrained, retrieval or grounding."""
    config: ModelConfig
    """The model's, at the size it was imported for."""
    path: Path = Path()
    sha256: str = ""
    tensors: Counter[str] = field(default_factory=Counter)
    """Tensors of the file by part of the model."""
    parameters: Counter[str] = field(default_factory=Counter)
    """Values in them."""
    resized: Counter[str] = field(default_factory=Counter)
    """Tables that were resized, by description."""
    recomputed: int = 0
    """Index tables that the model makes itself; those in the file were found equal."""
    tied: list[str] = field(default_factory=list)
    """Second names of tied weights, found equal and dropped."""
    fresh: dict[str, int] = field(default_factory=dict)
    """Heads that a file of this kind has not, with the parameters that were drawn at random."""

    def count(self, theirs: Mapping[str, Tensor]) -> None:
        """Counts a file's tensors, by the names of a pretraining file."""
        for name, tensor in theirs.items():
            if is_index(name):
                self.recomputed += 1
            elif name in TIED:
                self.tied.append(name)
            else:
                part = _part(name, self.config.text.fusion_layer)
                self.tensors[part] += 1
                self.parameters[part] += tensor.numel()

    def __str__(self) -> str:
        text = self.config.text
        lines = [
            f"file      {self.path} (sha256 {self.sha256})",
            f"kind      {self.layout}",
            f"model     {_vision(self.config)}; BERT of {text.fusion_layer} text and "
            f"{text.layers - text.fusion_layer} cross layers, {text.hidden_size} wide, "
            f"{text.heads} heads",
            f"\n{'part':<16} {'tensors':>7} {'parameters':>12}  went to",
        ]
        for part, target in _TARGETS.items():
            if self.tensors[part]:
                lines.append(
                    f"{part:<16} {self.tensors[part]:>7,} {self.parameters[part]:>12,}  {target}"
                )
        total = f"{self.tensors.total():>7,} {self.parameters.total():>12,}"
        lines.append(f"{'in all':<16} {total}\n")
        lines += [f"resized     {n} x {what}" for what, n in self.resized.items()]
        lines.append(f"recomputed  {self.recomputed} tables of indices and masks (found equal)")
        if self.tied:
            lines.append(f"tied        {', '.join(self.tied)}: equal to the first name, dropped")
        lines += [
            f"FRESH       the {head} head ({count:,} parameters) is not in a {self.layout} file: "
            "RANDOM, train it before use"
            for head, count in self.fresh.items()
        ]
        return "\n".join(lines)


def _part(name: str, fusion_layer: int) -> str:
    if name.startswith(VISION):
        return "vision"
    for head, starts in HEADS.items():
        if name.startswith(starts):
            return head
    layer = name.partition(".layer.")[2].partition(".")[0]
    return "cross" if layer and int(layer) >= fusion_layer else "text"


def _vision(config: ModelConfig) -> str:
    vision = config.vision
    if isinstance(vision, SwinVision):
        return (
            f"Swin of {vision.embed_dim} channels, depths {vision.depths}, heads {vision.heads}, "
            f"window {vision.window}, {vision.image_size} px"
        )
    if isinstance(vision, VitVision):
        kind = "CLIP-ViT" if vision.clip else "ViT"
        return (
            f"{kind} of {vision.width} channels, {vision.depth} blocks, {vision.heads} heads, "
            f"patch {vision.patch_size}, {vision.image_size} px, {vision.local_layers} local blocks"
        )
    return vision.kind
