"""Reads BERT as Hugging Face stores it: ``bert.encoder.layer.*``, with or without ``bert.``.

Layers below the fusion layer become the text encoder, the others the cross encoder, whose
cross-attention BERT does not have. X-VLM names its text stack as BERT does, so its names lead on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from wholegrain.errors import CheckpointError
from wholegrain.hub.backbone_files import Mapped, WeightFile, missing_tensor, unknown_tensor
from wholegrain.hub.xvlm_names import from_xvlm

LAYOUT = "BERT (Hugging Face)"
# Parts of the model that this layout never fills.
FRESH = re.compile(r"^cross\.layers\.\d+\.(cross_attention|cross_residual)\.")
HEAD = "masked_language_head."

_LAYER = re.compile(r"^(bert\.)?encoder\.layer\.\d+\.attention\.self\.query\.weight$")
_KNOWN = re.compile(
    r"^(embeddings\.((word|position|token_type)_embeddings\.weight|LayerNorm\.(weight|bias))"
    r"|encoder\.layer\.\d+\.(attention\.self\.(query|key|value)|attention\.output\.(dense|LayerNorm)"
    r"|intermediate\.dense|output\.(dense|LayerNorm))\.(weight|bias)"
    r"|cls\.predictions\.(bias|transform\.(dense|LayerNorm)\.(weight|bias)))$"
)
# The pooler and the next-sentence head of BERT's own pretraining.
_DROPPED = re.compile(r"^(pooler|cls\.seq_relationship)\.")
_FIRST_NAMES = {"gamma": "weight", "beta": "bias"}  # as converted from TensorFlow
# The head's output matrix is the word embedding and its bias is stored twice, or once.
_TIED = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


def is_bert(names: Iterable[str]) -> bool:
    """Whether the names are those of BERT."""
    return any(_LAYER.match(name) for name in names)


def from_bert(file: WeightFile, fusion_layer: int) -> Mapped:
    """BERT's tensors under our names.

    Args:
        file: of `read_weights`.
        fusion_layer: first layer of the cross encoder.

    Raises:
        CheckpointError: a tensor that BERT does not have, or weights that cannot be tied.
    """
    kind = file.described.get("model_type", "bert")
    if kind != "bert":
        raise CheckpointError(
            f"{file.path}: its config.json calls it {kind!r}, which shares BERT's names but not "
            "its arithmetic or vocabulary; take a BERT"
        )
    mapped = Mapped(LAYOUT)
    named: dict[str, Tensor] = {}
    for original, tensor in file.tensors.items():
        name = _plain(original)
        if _DROPPED.match(name):
            mapped.dropped.append(original)
        elif name in named or not (_KNOWN.match(name) or name in _TIED):
            raise unknown_tensor(file, original, LAYOUT)
        else:
            named[name] = tensor
            if name in _TIED:
                mapped.redundant.append(original)
    _untie(file, named)
    theirs = {
        ("text_encoder." if name.startswith("cls.") else "text_encoder.bert.") + name: tensor
        for name, tensor in named.items()
    }
    mapped.tensors = from_xvlm(theirs, fusion_layer)
    return mapped


def _plain(name: str) -> str:
    name = name.removeprefix("bert.")
    stem, _, kind = name.rpartition(".")
    if kind in _FIRST_NAMES and stem.endswith("LayerNorm"):
        return f"{stem}.{_FIRST_NAMES[kind]}"
    return name


def _untie(file: WeightFile, named: dict[str, Tensor]) -> None:
    """Leaves each tied tensor under its first name alone."""
    for second, first in _TIED.items():
        tensor = named.pop(second, None)
        if tensor is None:
            continue
        if first not in named:
            if not first.startswith("cls."):
                raise missing_tensor(file, first, LAYOUT)
            named[first] = tensor
        elif not torch.equal(named[first], tensor):
            raise CheckpointError(
                f"{file.path}: tensor {second!r} differs from {first!r}, but here they are one; "
                "take a BERT whose masked-language head is tied, or remove 'cls.predictions.*'"
            )
