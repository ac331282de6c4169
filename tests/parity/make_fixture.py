"""Writes folders of reference numbers from the slow reference, in the layout of the shipped ones.

    python -m tests.parity.make_fixture FOLDER [--case clip ...]

A folder holds ``checkpoint.th``, ``batch.safetensors``, ``expected.safetensors``,
``gradients.safetensors`` and ``fixture.json``. Weights are random and every one of them is moved
off its trivial value, so that no bias, norm or table could be left out unnoticed.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.parity.reference_optim import AdamW, parameter_groups
from tests.parity.reference_xvlm import LOSSES, Xvlm, total

Facts = dict[str, Any]
# What the first norms read is kept small, so that their epsilons show.
EMBEDDINGS = ("_embeddings.", "pos_embed", "cls_token", "class_embedding", "patch_embed.proj.")
SMALL = 0.02
TEXT: Facts = {
    "architectures": ["BertForMaskedLM"],
    "hidden_act": "gelu",
    "hidden_size": 40,
    "intermediate_size": 96,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 24,
    "model_type": "bert",
    "num_attention_heads": 5,
    "num_hidden_layers": 5,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 150,
    "fusion_layer": 3,
}
CLIP: Facts = {
    "vision_width": 48,
    "patch_size": 16,
    "hidden_act": "quick_gelu",
    "num_attention_heads": 4,
    "attention_dropout": 0.0,
    "intermediate_size": 112,
    "num_hidden_layers": 6,
    "local_attn_depth": 4,
}
VIT: Facts = {
    "vision_width": 36,
    "patch_size": 8,
    "num_attention_heads": 3,
    "intermediate_size": 144,
    "num_hidden_layers": 5,
    "local_attn_depth": 4,
}
SWIN: Facts = {
    "vision_width": 96,
    "image_res": 96,
    "window_size": 3,
    "embed_dim": 12,
    "depths": [1, 2, 3, 2],
    "num_heads": [1, 3, 4, 6],
}


@dataclass(frozen=True)
class Case:
    """One folder."""

    kind: str
    """swin, clip or vit."""
    image_size: int
    vision: Facts
    text: Facts = field(default_factory=lambda: TEXT)
    embed_dim: int = 24
    temperature: float = 0.05
    told: tuple[str, ...] | None = None
    """Keys of `vision` that ``fixture.json`` tells; None tells all."""
    negatives: bool = False
    """Whether the logits of negatives are recorded too, which the shipped folders leave out."""

    def facts(self) -> Facts:
        """The configuration part of ``fixture.json``."""
        config = {
            "use_clip_vit": self.kind == "clip",
            "use_swin": self.kind == "swin",
            "image_res": self.image_size,
            "patch_size": 32 if self.kind == "swin" else self.vision["patch_size"],
            "use_roberta": False,
            "embed_dim": self.embed_dim,
            "temp": self.temperature,
        }
        return {"config": config, "text_config": self.text, "vision_config": self.vision}


CASES = {
    "swin": Case("swin", 96, SWIN, negatives=True),
    "clip": Case("clip", 64, CLIP, negatives=True),
    "vit": Case("vit", 48, VIT, temperature=0.2),
    # A text stack of other proportions, fewer local layers, CLIP's shape with another activation.
    "clip_gelu": Case(
        "clip",
        64,
        CLIP | {"hidden_act": "gelu", "local_attn_depth": 2, "num_hidden_layers": 3},
        TEXT | {"hidden_size": 32, "num_attention_heads": 2, "fusion_layer": 1},
        embed_dim=16,
    ),
    # Every layer is local.
    "clip_local": Case("clip", 32, CLIP | {"num_hidden_layers": 4}, embed_dim=8),
    # X-VLM gives its plain ViT no file of sizes.
    "vit_untold": Case("vit", 48, VIT | {"num_hidden_layers": 6}, told=()),
}


def random_weights(model: Xvlm, seed: int) -> None:
    """Fills every parameter: matrices keep the scale of states, the rest is far from trivial."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name == "temp":
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1 and name.endswith("weight"):
            value = 1 + 0.15 * noise
        elif any(part in name for part in EMBEDDINGS) or name.endswith(".patch_embed.weight"):
            value = SMALL * noise
        elif name.endswith("bias"):
            value = 0.15 * noise
        else:
            value = 0.9 * noise / math.sqrt(parameter[0].numel())
        parameter.data.copy_(value)


# --- batches --------------------------------------------------------------------------------------


def patch_mask(box: Tensor, image_size: int, patch: int) -> Tensor:
    """0/1 (1 + P,): [CLS], then the patches that a box cxcywh in the unit square touches."""
    grid = image_size // patch
    x, y, w, h = ((box[:2] - box[2:] / 2).tolist()) + box[2:].tolist()
    mask = torch.zeros(grid, grid, dtype=torch.long)
    ends = []
    for start, side in ((y, h), (x, w)):
        first = min(int(start * image_size // patch), grid - 1)
        last = math.ceil(round((start + side) * image_size, 3) / patch)
        ends.append(slice(max(first, 0), min(max(last, first + 1), grid)))
    mask[ends[0], ends[1]] = 1
    return torch.cat([torch.ones(1, dtype=torch.long), mask.flatten()])


def random_texts(
    count: int, length: int, vocabulary: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Texts of 2 to `length` tokens, each with one to three of its words hidden."""
    sizes = torch.randint(2, length + 1, (count,), generator=generator)
    sizes[-1], sizes[0] = length, 2
    ids = torch.randint(5, vocabulary, (count, length), generator=generator)
    ids[:, 0] = 1
    mask = (torch.arange(length) < sizes[:, None]).long()
    ids = ids * mask
    masked, slots = ids.clone(), 3
    places = torch.zeros(count, slots, dtype=torch.long)
    labels = torch.full((count, slots), -100)
    for row, size in enumerate(sizes.tolist()):
        hidden = (1 + torch.randperm(size - 1, generator=generator))[: max(1, size // 4)]
        hidden = hidden[:slots]
        places[row, : len(hidden)], labels[row, : len(hidden)] = hidden, ids[row, hidden]
        masked[row, hidden] = 3
    return {
        "text_ids": ids,
        "text_atts": mask,
        "text_ids_masked": masked,
        "masked_pos": places,
        "masked_ids": labels,
    }


def random_batches(facts: Facts, seed: int) -> dict[str, dict[str, Tensor]]:
    """Five image-text pairs; and eight concepts of four images, one of which nobody speaks of."""
    generator = torch.Generator().manual_seed(seed)
    config, vocabulary = facts["config"], facts["text_config"]["vocab_size"]
    size, patch = config["image_res"], config["patch_size"]
    image = random_texts(5, 11, vocabulary, generator)
    image["image"] = torch.randn(5, 3, size, size, generator=generator)
    region = random_texts(8, 9, vocabulary, generator)
    region["image"] = torch.randn(4, 3, size, size, generator=generator)
    region["idx_to_group_img"] = torch.tensor([0, 0, 0, 3, 1, 1, 3, 0])
    region["is_image"] = torch.tensor([1, 0, 0, 0, 1, 0, 0, 0])
    sides = 0.1 + 0.7 * torch.rand(8, 2, generator=generator)
    centre = sides / 2 + (1 - sides) * torch.rand(8, 2, generator=generator)
    box = torch.cat([centre, sides], dim=1)
    box[6] = torch.tensor([0.01, 0.99, 0.02, 0.02])  # within one patch of a corner
    box[region["is_image"] == 1] = torch.tensor([0.5, 0.5, 1.0, 1.0])
    region["target_bbox"] = box
    region["image_atts"] = torch.stack([patch_mask(each, size, patch) for each in box])
    return {"image": image, "region": region}


# --- the folder -----------------------------------------------------------------------------------


def make_fixture(folder: Path, case: Case, seed: int = 0, draw_seed: int = 3) -> None:
    """Writes one folder."""
    facts = case.facts()
    model = Xvlm(facts).eval()
    random_weights(model, seed)
    batches = random_batches(facts, seed + 1)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save({"model": state, "config": facts["config"]}, folder / "checkpoint.th")
    expected: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    losses: Facts = {}
    for kind, batch in batches.items():
        model.zero_grad()
        out = model(batch, seed=draw_seed)
        total(out).backward()
        given = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        gradients |= {f"{kind}.{name}": gradient for name, gradient in given.items()}
        norm = torch.stack([gradient.norm() for gradient in given.values()]).norm()
        losses[kind] = losses_of(out) | {"total": total(out).item(), "grad_norm": norm.item()}
        if not case.negatives:
            del out["itm_logits_neg"]
        expected |= {f"{kind}.{name}": tensor.detach() for name, tensor in out.items()}
    flat = {f"{kind}.{name}": t for kind, batch in batches.items() for name, t in batch.items()}
    save_file(flat, folder / "batch.safetensors")
    save_file({n: t.contiguous() for n, t in expected.items()}, folder / "expected.safetensors")
    save_file(gradients, folder / "gradients.safetensors")
    facts |= {
        "losses": losses,
        "one_step": two_updates(copy.deepcopy(model), batches, draw_seed),
        "parameter_groups": parameter_groups(model),
        "draw_seed": draw_seed,
    }
    if case.told is not None:
        facts["vision_config"] = {key: case.vision[key] for key in case.told}
    (folder / "fixture.json").write_text(json.dumps(facts, indent=1))


def losses_of(out: dict[str, Tensor]) -> dict[str, float]:
    return {name: out[name].item() for name in LOSSES if name in out}


def two_updates(model: Xvlm, batches: dict[str, dict[str, Tensor]], draw_seed: int) -> Facts:
    """Losses and norms of a region update, then an image update, and the losses after both."""
    found: Facts = {}
    model.zero_grad()
    optimizer = AdamW(model)
    for kind in ("region", "image"):
        out = model(batches[kind], seed=draw_seed)
        total(out).backward()
        found[kind], found[f"{kind}_norm"] = losses_of(out), optimizer.step().item()
    for kind in ("region", "image"):
        with torch.no_grad():
            found[f"{kind}_after"] = losses_of(model(batches[kind], seed=draw_seed))
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where one folder a case is written")
    parser.add_argument("--case", nargs="+", choices=sorted(CASES), default=sorted(CASES))
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    given = parser.parse_args()
    for name in given.case:
        make_fixture(given.folder / name, CASES[name], given.seed)
        print(given.folder / name)


if __name__ == "__main__":
    main()
