"""The pipeline that a user would write: webdataset, Pillow and torchvision.

It does what published training codes do, in their order, with nothing wasted on purpose: a
sequential read of the shards, Pillow's decoder with its reduced scale left unused (as there), a
random resized crop, a mirror, RandAugment, a float tensor normalised in the worker, a caption drawn
and tokenised, texts padded to a fixed length.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image

from wholegrain.data.corpus import Corpus
from wholegrain.text import Tokenizer

MAX_TOKENS = 40
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def plain_batches(
    corpus: Corpus, tokenizer: Tokenizer, resolution: int, batch: int
) -> Iterator[int]:
    """Batches of one pass over the shards; yields how many photos each holds."""
    import webdataset
    from torchvision import transforms as T

    augment = T.Compose(
        [
            T.RandomResizedCrop(
                resolution, scale=(0.2, 1.0), interpolation=T.InterpolationMode.BICUBIC
            ),
            T.RandomHorizontalFlip(),
            T.RandAugment(2, 7),
            T.ToTensor(),
            T.Normalize(MEAN, STD),
        ]
    )

    def sample(raw: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        image = Image.open(io.BytesIO(raw["jpg"])).convert("RGB")
        record = json.loads(raw["json"])
        texts = record["captions"] or [t for region in record["regions"] for t in region["texts"]]
        ids = tokenizer.encode(random.choice(texts), MAX_TOKENS)
        padded = torch.zeros(MAX_TOKENS, dtype=torch.long)
        padded[: len(ids)] = torch.tensor(ids)
        return augment(image), padded

    shards = sorted(str(path) for path in corpus.path.glob("*.tar"))  # type: ignore[union-attr]
    dataset = webdataset.WebDataset(shards, shardshuffle=False).shuffle(100).map(sample)
    for images, _ in dataset.batched(batch, partial=False):
        yield len(images)
