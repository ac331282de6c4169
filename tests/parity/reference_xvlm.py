"""X-VLM as its specification reads, plain and slow: the second opinion of the parity tests.

It shares no code with the library. Parameters carry the names of X-VLM's checkpoints, so that a
published file loads as it is. Evaluation mode: there is no dropout and no stochastic depth.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.parity.reference_vision import attend, build_vision

HIDDEN = -10000.0
UNSEEN_PATCH = -1e9
LOSSES = ("loss_itc", "loss_itm", "loss_mlm", "loss_bbox", "loss_giou")
Draws = tuple[Tensor, Tensor]


def linear_norm(module: nn.Module, width: int, source: int, eps: float) -> None:
    module.dense = nn.Linear(source, width)
    module.LayerNorm = nn.LayerNorm(width, eps=eps)


# --- text and cross encoder -----------------------------------------------------------------------


class Projections(nn.Module):
    def __init__(self, width: int, source: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(source, width)
        self.value = nn.Linear(source, width)


class Output(nn.Module):
    """``LayerNorm(dense(update) + states)``."""

    def __init__(self, width: int, source: int, eps: float) -> None:
        super().__init__()
        linear_norm(self, width, source, eps)

    def forward(self, update: Tensor, states: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(update) + states)


class BertAttention(nn.Module):
    def __init__(self, width: int, source: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.self = Projections(width, source)
        self.output = Output(width, width, eps)

    def forward(self, states: Tensor, source: Tensor, added: Tensor) -> Tensor:
        query, key, value = (
            self.self.query(states),
            self.self.key(source),
            self.self.value(source),
        )
        return self.output(attend(query, key, value, self.heads, added), states)


class Intermediate(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, hidden)


class BertLayer(nn.Module):
    def __init__(self, text: dict[str, Any], fuses: bool) -> None:
        super().__init__()
        width, heads = text["hidden_size"], text["num_attention_heads"]
        hidden, eps = text["intermediate_size"], text["layer_norm_eps"]
        self.attention = BertAttention(width, width, heads, eps)
        self.fuses = fuses
        if fuses:
            self.crossattention = BertAttention(width, text["encoder_width"], heads, eps)
        self.intermediate = Intermediate(width, hidden)
        self.output = Output(width, hidden, eps)

    def forward(self, states: Tensor, added: Tensor, image: Tensor, unseen: Tensor) -> Tensor:
        states = self.attention(states, states, added)
        if self.fuses:
            states = self.crossattention(states, image, unseen)
        return self.output(F.gelu(self.intermediate.dense(states)), states)


class Embeddings(nn.Module):
    def __init__(self, text: dict[str, Any]) -> None:
        super().__init__()
        width, places = text["hidden_size"], text["max_position_embeddings"]
        self.register_buffer("position_ids", torch.arange(places)[None])
        self.word_embeddings = nn.Embedding(text["vocab_size"], width)
        self.position_embeddings = nn.Embedding(places, width)
        self.token_type_embeddings = nn.Embedding(text["type_vocab_size"], width)
        self.LayerNorm = nn.LayerNorm(width, eps=text["layer_norm_eps"])

    def forward(self, ids: Tensor) -> Tensor:
        places = self.position_ids[:, : ids.shape[1]].expand_as(ids)
        words, types = self.word_embeddings(ids), self.token_type_embeddings(torch.zeros_like(ids))
        return self.LayerNorm(words + types + self.position_embeddings(places))


class Layers(nn.Module):
    def __init__(self, text: dict[str, Any]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            BertLayer(text, fuses=n >= text["fusion_layer"])
            for n in range(text["num_hidden_layers"])
        )


class Bert(nn.Module):
    def __init__(self, text: dict[str, Any]) -> None:
        super().__init__()
        self.embeddings = Embeddings(text)
        self.encoder = Layers(text)


class Transform(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        linear_norm(self, width, width, eps)


class Predictions(nn.Module):
    def __init__(self, text: dict[str, Any], words: nn.Embedding) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(text["vocab_size"]))
        self.transform = Transform(text["hidden_size"], text["layer_norm_eps"])
        self.decoder = nn.Linear(text["hidden_size"], text["vocab_size"])
        self.decoder.weight, self.decoder.bias = words.weight, self.bias

    def forward(self, states: Tensor) -> Tensor:
        return self.decoder(self.transform.LayerNorm(F.gelu(self.transform.dense(states))))


class WordHead(nn.Module):
    def __init__(self, text: dict[str, Any], words: nn.Embedding) -> None:
        super().__init__()
        self.predictions = Predictions(text, words)


class TextEncoder(nn.Module):
    def __init__(self, text: dict[str, Any]) -> None:
        super().__init__()
        self.fusion = text["fusion_layer"]
        self.bert = Bert(text)
        self.cls = WordHead(text, self.bert.embeddings.word_embeddings)

    def read(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Embeddings and the layers below the fusion."""
        return self._run(self.bert.embeddings(ids), mask, None, None, 0, self.fusion)

    def fuse(self, states: Tensor, mask: Tensor, image: Tensor, visible: Tensor) -> Tensor:
        """The layers from the fusion on."""
        count = len(self.bert.encoder.layer)
        return self._run(states, mask, image, visible, self.fusion, count)

    def _run(
        self,
        states: Tensor,
        mask: Tensor,
        image: Tensor | None,
        visible: Tensor | None,
        first: int,
        end: int,
    ) -> Tensor:
        added = (1.0 - mask[:, None, :].to(states.dtype)) * HIDDEN
        unseen = None
        if visible is not None:
            unseen = (1.0 - visible[:, None, :].to(states.dtype)) * UNSEEN_PATCH
        for layer in self.bert.encoder.layer[first:end]:
            states = layer(states, added, image, unseen)
        return states


# --- the model ------------------------------------------------------------------------------------


def head(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, out)
    )


def corners(box: Tensor) -> Tensor:
    return torch.cat([box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2], dim=1)


def generalized_iou(first: Tensor, second: Tensor) -> Tensor:
    """Of corner boxes (B, 4), pair by pair."""

    def area(box: Tensor) -> Tensor:
        return (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])

    low = torch.maximum(first[:, :2], second[:, :2])
    high = torch.minimum(first[:, 2:], second[:, 2:])
    sides = (high - low).clamp(min=0)
    shared = sides[:, 0] * sides[:, 1]
    union = area(first) + area(second) - shared
    low = torch.minimum(first[:, :2], second[:, :2])
    high = torch.maximum(first[:, 2:], second[:, 2:])
    hull = (high[:, 0] - low[:, 0]) * (high[:, 1] - low[:, 1])
    return shared / union - (hull - union) / hull


class Xvlm(nn.Module):
    """All that pretraining needs; `facts` as in a fixture's ``fixture.json``."""

    def __init__(self, facts: dict[str, Any]) -> None:
        super().__init__()
        config = facts["config"]
        self.temp = nn.Parameter(torch.tensor(float(config["temp"])))
        self.vision_encoder = build_vision(config, facts["vision_config"])
        text = facts["text_config"] | {"encoder_width": self.vision_encoder.width}
        width = text["hidden_size"]
        self.text_encoder = TextEncoder(text)
        self.vision_proj = nn.Linear(self.vision_encoder.width, config["embed_dim"])
        self.text_proj = nn.Linear(width, config["embed_dim"])
        self.itm_head = head(width, 2)
        self.bbox_head = head(width, 4)

    def forward(
        self, batch: dict[str, Tensor], draws: Draws | None = None, seed: int = 0
    ) -> dict[str, Tensor]:
        """Everything that a fixture records of a batch, by the fixture's names.

        Args:
            batch: its tensors without the leading ``image.`` or ``region.``.
            draws: negatives (images, texts); None draws them from the CPU's generator.
            seed: of that generator.
        """
        out = self._see(batch)
        out["text_embeds"] = self.text_encoder.read(batch["text_ids"], batch["text_atts"])
        with torch.no_grad():
            self.temp.clamp_(0.001, 0.5)
        out["image_feat"] = F.normalize(self.vision_proj(out["image_embeds"][:, 0]), dim=-1)
        out["text_feat"] = F.normalize(self.text_proj(out["text_embeds"][:, 0]), dim=-1)
        self._contrast(out)
        self._match(out, batch["text_atts"], draws, seed)
        self._guess_words(out, batch)
        if "target_bbox" in batch:
            self._find_boxes(out, batch)
        return out

    def _see(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if "idx_to_group_img" not in batch:
            states = self.vision_encoder(batch["image"])
            return {"image_embeds": states, "image_atts": torch.ones(states.shape[:2]).long()}
        rows, visible = batch["idx_to_group_img"], batch["image_atts"]
        states, whole = self.vision_encoder(batch["image"], rows, visible)
        return {
            "image_embeds": states,
            "image_embeds_full": whole[rows],
            "image_atts": visible,
        }

    def _contrast(self, out: dict[str, Tensor]) -> None:
        similarity = out["image_feat"] @ out["text_feat"].T / self.temp
        target = torch.arange(len(similarity))
        out["loss_itc"] = (
            F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)
        ) / 2
        with torch.no_grad():
            for name, matrix in (("i2t", similarity), ("t2i", similarity.T)):
                weights = matrix.softmax(dim=1) + 1e-5
                out[f"weights_{name}"] = weights.fill_diagonal_(0)

    def _match(self, out: dict[str, Tensor], mask: Tensor, draws: Draws | None, seed: int) -> None:
        if draws is None:
            torch.manual_seed(seed)
            draws = (
                torch.cat([torch.multinomial(row, 1) for row in out["weights_t2i"]]),
                torch.cat([torch.multinomial(row, 1) for row in out["weights_i2t"]]),
            )
        image, text = draws
        out["neg_image_idx"], out["neg_text_idx"] = image, text
        states, seen, visible = out["text_embeds"], out["image_embeds"], out["image_atts"]
        positive = self.text_encoder.fuse(states, mask, seen, visible)
        negative = self.text_encoder.fuse(
            torch.cat([states, states[text]]),
            torch.cat([mask, mask[text]]),
            torch.cat([seen[image], seen]),
            torch.cat([visible[image], visible]),
        )
        out["cross_embeds_pos"] = positive
        out["itm_logits_pos"] = self.itm_head(positive[:, 0])
        out["itm_logits_neg"] = self.itm_head(negative[:, 0])
        logits = torch.cat([out["itm_logits_pos"], out["itm_logits_neg"]])
        labels = torch.cat([torch.ones(len(mask)), torch.zeros(2 * len(mask))]).long()
        out["loss_itm"] = F.cross_entropy(logits, labels)

    def _guess_words(self, out: dict[str, Tensor], batch: dict[str, Tensor]) -> None:
        mask = batch["text_atts"]
        states = self.text_encoder.read(batch["text_ids_masked"], mask)
        states = self.text_encoder.fuse(states, mask, out["image_embeds"], out["image_atts"])
        row = torch.arange(len(states))[:, None]
        out["mlm_logits"] = self.text_encoder.cls.predictions(states[row, batch["masked_pos"]])
        out["loss_mlm"] = F.cross_entropy(
            out["mlm_logits"].flatten(0, 1), batch["masked_ids"].flatten(), ignore_index=-100
        )

    def _find_boxes(self, out: dict[str, Tensor], batch: dict[str, Tensor]) -> None:
        whole = out["image_embeds_full"]
        states = self.text_encoder.fuse(
            out["text_embeds"], batch["text_atts"], whole, torch.ones(whole.shape[:2])
        )
        box, target = self.bbox_head(states[:, 0]).sigmoid(), batch["target_bbox"]
        out["output_coord"] = box
        counts = (batch["is_image"] == 0).to(box.dtype)
        apart = (box - target).abs().sum(dim=1)
        overlap = generalized_iou(corners(box), corners(target))
        out["loss_bbox"] = (apart * counts).sum() / counts.sum()
        out["loss_giou"] = ((1 - overlap) * counts).sum() / counts.sum()


def total(out: dict[str, Tensor]) -> Tensor:
    """The summed losses: every weight is 1."""
    return torch.stack([out[name] for name in LOSSES if name in out]).sum()
