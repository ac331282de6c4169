"""Which tensors a file of X-VLM holds: the inventory of each kind, for reading and for writing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from wholegrain.errors import CheckpointError
from wholegrain.hub.xvlm_names import TIED, VISION, to_xvlm
from wholegrain.model.config import ClsBoxHead, ModelConfig, SwinVision, VitVision
from wholegrain.model.multigrain import MultiGrainModel

HEADS = {
    "contrastive": ("temp", "vision_proj.", "text_proj."),
    "matching": ("itm_head.",),
    "masked language": ("text_encoder.cls.",),
    "box": ("bbox_head.",),
}
"""Beginnings of the names of each head's tensors."""
LAYOUTS = {
    "pretrained": tuple(HEADS),
    "retrieval": ("contrastive", "matching"),
    "grounding": ("box",),
}
"""The heads that each kind of file holds."""
ORIGIN = "imported_from"
"""Key of a release's extras: name, sha256 and kind of the file that it was imported from."""
_BERT, _PLAIN = "text_encoder.bert.", "text_encoder."
_MASKED_SCORE = -100.0
_OTHERS = {
    "text_decoder.": "a VQA or captioning file (it has a text decoder)",
    "cls_head.": "an NLVR file (it has a classification head)",
    "text_encoder.roberta.": "a RoBERTa file, whose words and positions are others",
    "vision_encoder_m.": "an ALBEF file (it has momentum copies)",
    "visual_encoder.": "an ALBEF or BLIP file (its image encoder is named visual_encoder)",
}


def layout_of(names: Iterable[str]) -> str:
    """The kind of a file: a key of `LAYOUTS`.

    Raises:
        CheckpointError: a file of another task or model; says which, and what to import instead.
    """
    names = list(names)
    for start, kind in _OTHERS.items():
        found = next((name for name in names if name.startswith(start)), None)
        if found is not None:
            raise CheckpointError(
                f"tensor {found!r} belongs to {kind}; import the pretrained, a retrieval or a "
                "box-grounding file of X-VLM"
            )
    inner = [n for n in names if n.startswith(_BERT)]
    outer = [n for n in names if n.startswith((f"{_PLAIN}embeddings.", f"{_PLAIN}encoder."))]
    if inner and outer:
        raise CheckpointError(
            f"tensors {inner[0]!r} and {outer[0]!r} are of two layouts in one file; import a file "
            "as X-VLM wrote it"
        )
    if not any(name.startswith(VISION) for name in names) or not (inner or outer):
        raise CheckpointError(
            f"no tensors under {VISION!r} and {_BERT!r} or '{_PLAIN}encoder.' (the first of "
            f"{len(names)} is {next(iter(names), None)!r}); this is no checkpoint of X-VLM"
        )
    if inner:
        return "pretrained"
    heads = tuple(h for h, starts in HEADS.items() if any(n.startswith(starts) for n in names))
    for layout, own in LAYOUTS.items():
        if layout != "pretrained" and heads == own:
            return layout
    known = "; ".join(f"{k}: {', '.join(v)}" for k, v in LAYOUTS.items() if k != "pretrained")
    raise CheckpointError(
        f"a finetuned file with the heads {', '.join(heads) or '(none)'}, which is no kind that "
        f"is known ({known}); import the file that it was finetuned from"
    )


def as_pretrained(state: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """A file's tensors by the names that a pretraining file has for them."""
    if layout == "pretrained":
        return dict(state)
    return {
        f"{_BERT}{name.removeprefix(_PLAIN)}" if name.startswith(_PLAIN) else name: tensor
        for name, tensor in state.items()
    }


def as_layout(state: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """A pretraining file's tensors as a file of another kind holds and names them."""
    missing = tuple(s for h, starts in HEADS.items() if h not in LAYOUTS[layout] for s in starts)
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(missing)}
    if layout == "pretrained":
        return kept
    return {
        f"{_PLAIN}{name.removeprefix(_BERT)}" if name.startswith(_BERT) else name: tensor
        for name, tensor in kept.items()
    }


def published_state(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Every entry of the pretraining file of a model, by X-VLM's names.

    Beside the weights these are the second names of tied weights and the index tables.

    Args:
        state: the model's state dict; one on the meta device gives the inventory alone.
        config: the model's.

    Raises:
        CheckpointError: X-VLM's layout cannot hold the model; says why.
    """
    vision = config.vision
    if not isinstance(vision, SwinVision | VitVision):
        raise _cannot(
            f"its image encoder is of kind {vision.kind!r}, X-VLM's are Swin, ViT and CLIP-ViT"
        )
    if not isinstance(config.box_head, ClsBoxHead):
        raise _cannot(f"its box head is of kind {config.box_head.kind!r}, X-VLM's is 'cls'")
    if config.adapters:
        raise _cannot("it has adapters, for which X-VLM has no place")
    if config.fusion.kind != "cross":
        raise _cannot(f"its fusion is `{config.fusion.kind}`, for which X-VLM has no place")
    clip = isinstance(vision, VitVision) and vision.clip
    theirs = to_xvlm(state, config.text.fusion_layer, clip)
    theirs.update({second: theirs[first] for second, first in TIED.items()})
    positions = torch.arange(config.text.max_positions)[None]
    theirs["text_encoder.bert.embeddings.position_ids"] = positions
    if isinstance(vision, SwinVision):
        theirs.update({f"{VISION}{k}": v for k, v in swin_tables(vision).items()})
    elif clip:
        patches = (vision.image_size // vision.patch_size) ** 2
        theirs[f"{VISION}position_ids"] = torch.arange(1 + patches)[None]
    return theirs


def _cannot(reason: str) -> CheckpointError:
    return CheckpointError(
        f"X-VLM's layout cannot hold this model: {reason}; share its release instead"
    )


def inventory(config: ModelConfig) -> dict[str, Tensor]:
    """Entries of the pretraining file of a configuration; weights on the meta device.

    Raises:
        CheckpointError: as `published_state`.
    """
    with torch.device("meta"):
        state = MultiGrainModel(config).state_dict()
    return published_state(state, config)


def swin_tables(config: SwinVision) -> dict[str, Tensor]:
    """Index tables of a Swin by X-VLM's names, without ``vision_encoder.``.

    Raises:
        CheckpointError: the windows do not tile the maps, as X-VLM's have to.
    """
    tables = {}
    for stage, depth in enumerate(config.depths):
        side = config.image_size // (config.patch_size * 2**stage)
        window = min(config.window, side)
        if side % window:
            raise CheckpointError(
                f"windows of {window} do not tile stage {stage}'s map of {side} patches a side, as "
                f"X-VLM's have to; use vision.window {config.image_size // config.final_patch}"
            )
        index = _relative_index(window)
        for block in range(depth):
            name = f"layers.{stage}.blocks.{block}"
            tables[f"{name}.attn.relative_position_index"] = index
            if block % 2 and window // 2 and side > window:
                tables[f"{name}.attn_mask"] = _shift_mask(side, window)
    return tables


def _relative_index(window: int) -> Tensor:
    """int64 (W², W²): row of the bias table for each pair of a window's patches."""
    row, column = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    rows, columns = (each.flatten()[:, None] - each.flatten()[None] for each in (row, column))
    return (rows + window - 1) * (2 * window - 1) + columns + window - 1


def _shift_mask(side: int, window: int) -> Tensor:
    """(windows, W², W²): -100 between patches that only the cyclic shift made neighbours."""
    # Three bands an axis: windows untouched by the shift, and the two halves of the last one.
    places = torch.arange(side)
    band = (places >= side - window).long() + (places >= side - window // 2)
    region = (band[:, None] * 3 + band[None]).unflatten(0, (-1, window)).unflatten(2, (-1, window))
    patches = region.transpose(1, 2).flatten(0, 1).flatten(1)
    apart = patches[:, None] != patches[:, :, None]
    return torch.where(apart, _MASKED_SCORE, 0.0)
