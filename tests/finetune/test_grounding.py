"""The box loss over expressions, and the model as evaluation sees it."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from finetune.config import FinetuneConfig
from finetune.evaluation import load_batch
from finetune.grounding import GroundingModule, predictor, training_stream
from finetune.samples import corpus_expressions
from finetune.start import starting_model
from wholegrain.config import from_dict
from wholegrain.data.batch import Sample, collate
from wholegrain.data.corpus import Corpus
from wholegrain.data.decode import decode_image
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.predict import Grounder
from wholegrain.text import Tokenizer

Settings = dict[str, Any]
Started = tuple[FinetuneConfig, Corpus, MultiGrainModel, Tokenizer]
VISION = {
    "vit": {"kind": "vit", "image_size": 32, "patch_size": 8, "width": 24, "depth": 2, "heads": 2},
    "swin": {
        "kind": "swin",
        "image_size": 64,
        "embed_dim": 8,
        "depths": [1, 1, 1, 1],
        "heads": [1, 1, 2, 2],
        "window": 2,
    },
}


def started(settings: Settings, **changes: Any) -> Started:
    config = from_dict(FinetuneConfig, copy.deepcopy(settings) | changes)
    corpus = Corpus.open(config.data.train.path).select("train")
    return config, corpus, *starting_model(config, corpus)


def forward(given: Started) -> tuple[GroundingModule, dict[str, torch.Tensor]]:
    config, corpus, model, tokenizer = given
    module = GroundingModule(model, config.loss).train()
    (batch,) = training_stream(config, corpus, model, tokenizer)(0, 1, 0, 1)
    return module, module(batch)


@pytest.mark.parametrize("vision", [None, "vit", "swin"])
@pytest.mark.parametrize("head", ["cls", "patch"])
@pytest.mark.parametrize("condition", [None, "both", "text", "image"])
@pytest.mark.parametrize("train_host", [True, False])
def test_all_that_learns_takes_part(
    tiny_finetune: Settings, vision: str | None, head: str, condition: str | None, train_host: bool
) -> None:
    # On several ranks a parameter without a gradient would stop the run at its second step.
    model = tiny_finetune["model"] | ({"vision": VISION[vision]} if vision else {})
    adapter = {
        "kind": "mmca",
        "rank": 4,
        "embed_dim": 8,
        "gate_dim": 4,
        "blocks": 1,
        "condition": condition,
    }
    if vision == "swin" and head == "patch":
        model = model | {"vision": VISION["swin"] | {"image_size": 128, "window": 4}}
    module, losses = forward(
        started(
            tiny_finetune,
            model=model,
            box_head={"kind": head},
            adapters=[adapter] if condition else [],
            train_host=train_host,
        )
    )
    losses["loss"].backward()
    idle = [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []
    asleep = [n for n, p in module.named_parameters() if not p.requires_grad and p.grad is not None]
    assert asleep == []


CA2M = {
    "kind": "ca2m",
    "groups": 1,
    "stage_width": 8,
    "group_width": 8,
    "group_layers": 1,
    "fusion_layers": 1,
    "heads": 2,
    "group_feed_forward": 16,
    "feed_forward": 16,
}
REG = {"kind": "reg", "width": 16, "layers": 1, "heads": 2, "feed_forward": 16}
SCAN = {"kind": "scan", "scales": 2, "selector_width": 8}
MMA = {"kind": "mma", "rank": 4, "blocks": 1, "alpha": 0.1}
MMCA = {"kind": "mmca", "rank": 4, "embed_dim": 8, "gate_dim": 4, "blocks": 1}


METHODS = pytest.mark.parametrize(
    ("vision", "fusion", "adapters"),
    [
        (None, CA2M, []),
        (None, CA2M, [MMCA]),
        (None, REG, [MMCA]),
        ("vit", SCAN, []),
        ("vit", SCAN, [MMA, MMCA]),
        ("vit", None, [MMA]),
        ("swin", None, [MMA | {"cross": True}, MMCA]),
    ],
)


@pytest.mark.parametrize("train_host", [True, False])
@METHODS
def test_all_that_learns_takes_part_in_every_method(
    tiny_finetune: Settings,
    vision: str | None,
    fusion: Settings | None,
    adapters: list[Settings],
    train_host: bool,
) -> None:
    model = tiny_finetune["model"] | ({"vision": VISION[vision]} if vision else {})
    module, losses = forward(
        started(
            tiny_finetune,
            model=model,
            fusion=fusion,
            box_head={"kind": "mlp"},
            adapters=adapters,
            train_host=train_host,
            loss={"budget": 0.1},
        )
    )
    assert ("budget" in losses) == ("kept" in losses) == (fusion is SCAN)
    losses["loss"].backward()
    for name, parameter in module.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name


@METHODS
def test_photos_without_expressions_teach_nothing(
    tiny_finetune: Settings, vision: str | None, fusion: Settings | None, adapters: list[Settings]
) -> None:
    # A rank may draw such photos alone; the others have something to say, and wait for it.
    model = tiny_finetune["model"] | ({"vision": VISION[vision]} if vision else {})
    given = started(
        tiny_finetune,
        model=model,
        fusion=fusion,
        box_head={"kind": "mlp"},
        adapters=adapters,
        loss={"budget": 0.1, "self_paced": {}},
    )
    size = given[2].config.vision.image_size
    photos = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    batch = collate([Sample(str(number), photo, []) for number, photo in enumerate(photos)])
    module = GroundingModule(given[2], given[0].loss).train()
    losses = module(batch)
    assert losses["box_l1"] == losses["acc@0.5"] == 0
    assert losses["self_paced/d_mean_l1"].isnan()
    losses["loss"].backward()
    for name, parameter in module.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
        if parameter.grad is not None:
            assert not parameter.grad.any(), name


def test_the_loss_is_the_weighted_sum_of_its_terms(tiny_finetune: Settings) -> None:
    given = started(tiny_finetune, loss={"l1": 2.0, "giou": 3.0, "vote": 0.25})
    torch.manual_seed(0)
    _, losses = forward(given)
    assert set(losses) == {"box_l1", "box_giou", "box_vote", "acc@0.5", "loss"}
    expected = 2 * losses["box_l1"] + 3 * losses["box_giou"] + 0.25 * losses["box_vote"]
    torch.testing.assert_close(losses["loss"], expected)
    assert 0 <= losses["acc@0.5"] <= 1


def test_a_frozen_norm_keeps_its_statistics(tiny_finetune: Settings) -> None:
    def statistics(train_host: bool) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        given = started(tiny_finetune, train_host=train_host)
        named = dict(given[2].named_buffers())
        before = {name: value.clone() for name, value in named.items() if "running" in name}
        forward(given)
        return before, {name: named[name] for name in before}

    before, after = statistics(train_host=False)
    assert before
    assert all(torch.equal(after[name], value) for name, value in before.items())
    before, after = statistics(train_host=True)
    assert not any(torch.equal(after[name], value) for name, value in before.items())


def test_batches_hold_expressions_of_regions_alone(tiny_finetune: Settings) -> None:
    config, corpus, model, tokenizer = started(tiny_finetune)
    stream = training_stream(config, corpus, model, tokenizer)
    whole = list(stream(0, 3, 0, 1))
    for batch in whole:
        assert batch.num_images == 4
        assert batch.images.shape[-1] == 64
        assert set(batch.grain.tolist()) == {1}
        assert np.bincount(batch.concept_image.tolist()).max() <= 3
    halves = [list(stream(0, 3, rank, 2)) for rank in range(2)]
    for batch, first, second in zip(whole, *halves, strict=True):
        assert batch.sample_ids == first.sample_ids + second.sample_ids
        assert torch.equal(batch.concept_box, torch.cat([first.concept_box, second.concept_box]))


def test_evaluation_and_use_give_the_same_boxes(tiny_finetune: Settings) -> None:
    config, corpus, model, tokenizer = started(tiny_finetune)
    expressions = corpus_expressions(corpus)[:6]
    batch = load_batch(corpus, expressions, 64)
    model.train()
    predict = predictor(model, tokenizer, config.data.max_tokens, torch.device("cpu"))
    with torch.inference_mode():
        boxes, scores = predict(batch)
    assert not model.training
    grounder = Grounder(model, tokenizer, max_tokens=config.data.max_tokens)
    for one, box, score in zip(expressions, boxes.tolist(), scores.tolist(), strict=True):
        photo = decode_image(corpus.image_bytes(one.record), one.image).pixels
        (found,) = grounder.ground(photo, [one.text])
        assert found.box == pytest.approx(box, abs=1e-3)
        assert found.score == pytest.approx(score, abs=1e-5)


@METHODS
def test_a_text_without_words_is_answered(
    tiny_finetune: Settings, vision: str | None, fusion: Settings | None, adapters: list[Settings]
) -> None:
    # Annotators wrote "?", which training skips; the benchmarks count it, so it must be asked.
    model = tiny_finetune["model"] | ({"vision": VISION[vision]} if vision else {})
    head = {"kind": "mlp"}
    given = {"model": model, "fusion": fusion, "box_head": head, "adapters": adapters}
    config, corpus, grounding, tokenizer = started(tiny_finetune, **given)
    size = grounding.config.vision.image_size
    predict = predictor(grounding, tokenizer, config.data.max_tokens, torch.device("cpu"))
    expressions = [replace(one, text="?!") for one in corpus_expressions(corpus)[:1]]
    expressions += corpus_expressions(corpus)[1:4]
    with torch.inference_mode():
        boxes, scores = predict(load_batch(corpus, expressions, size))
        alone, score = predict(load_batch(corpus, expressions[:1], size))
        others, _ = predict(load_batch(corpus, expressions[1:], size))
    assert boxes.isfinite().all()
    assert scores.isfinite().all()
    torch.testing.assert_close(boxes[:1], alone, atol=1e-2, rtol=0)  # pixels
    torch.testing.assert_close(scores[:1], score, atol=1e-4, rtol=0)
    torch.testing.assert_close(boxes[1:], others, atol=1e-2, rtol=0)


def test_a_step_with_the_default_weights_moves_the_whole_head(tiny_finetune: Settings) -> None:
    assert "loss" not in tiny_finetune
    module, losses = forward(started(tiny_finetune))
    expected = losses["box_l1"] + losses["box_giou"] + 0.5 * losses["box_vote"]
    torch.testing.assert_close(losses["loss"], expected)
    head = dict(module.model.box_head.named_parameters())
    before = {name: value.clone() for name, value in head.items()}
    losses["loss"].backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    assert [name for name, value in head.items() if torch.equal(value, before[name])] == []
