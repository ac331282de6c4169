"""What an answer costs: multiply-adds that can be counted by hand, and what ScanFormer reads."""

import dataclasses
from typing import Any

import pytest
import torch

from benchmarks.grounding_cost import kept, macs, memory, parameters_used
from benchmarks.grounding_recipes import Host, Method, Recipes
from benchmarks.inference import EXPRESSIONS, grounder_of
from benchmarks.machine import can_watch
from finetune.samples import corpus_expressions
from wholegrain.data.corpus import Corpus
from wholegrain.predict import Grounder

CPU = torch.device("cpu")
VIT = {"kind": "vit", "image_size": 64, "patch_size": 8, "width": 32, "depth": 2, "heads": 2}


@pytest.fixture
def recipes(tiny_model: dict[str, Any]) -> Recipes:
    def scan(bias: float) -> Method:
        fusion = {"kind": "scan", "selector_width": 8, "gate_bias": bias}
        settings = {"fusion": fusion, "box_head": {"kind": "mlp"}}
        return Method("scan", ("small",), ("cross",), settings)

    return dataclasses.replace(
        Recipes.read(),
        hosts={"small": Host("small", {**tiny_model, "vision": VIT})},
        methods={"cross": Method("cross", ("small",)), "all": scan(50.0), "least": scan(-50.0)},
    )


def made(recipes: Recipes, method: str) -> Grounder:
    return grounder_of(recipes, "small", method, CPU)


def test_what_is_read_is_weighted_by_the_patches_of_the_scales(
    recipes: Recipes, tiny_corpora: Any
) -> None:
    corpus = Corpus.open(tiny_corpora.expressions).select("val")
    asked = corpus_expressions(corpus)
    photos = list(dict.fromkeys(one.image for one in asked))
    for method, scales, share in (("all", [1, 1, 1], 1), ("least", [1, 0, 0], 4 / 84)):
        found = kept(made(recipes, method), corpus, asked, photos=2)
        assert found is not None
        assert found["scales"] == pytest.approx(scales)
        assert found["all"] == pytest.approx(share)
        ends = {photos[0], photos[-1]}
        assert found["expressions"] == sum(one.image in ends for one in asked)
    assert kept(made(recipes, "cross"), corpus, asked, photos=2) is None


def test_what_is_not_read_is_not_computed(recipes: Recipes) -> None:
    everything, least = (macs(made(recipes, name), EXPRESSIONS[:1]) for name in ("all", "least"))
    # Tokens in the blocks: text and [REG] of each scale, and 84 patches against 4.
    assert least < 0.35 * everything


def test_an_image_is_counted_once_for_all_its_expressions(recipes: Recipes) -> None:
    cross = made(recipes, "cross")
    text = EXPRESSIONS[0]
    one, four = macs(cross, [text]), macs(cross, [text] * 4)
    width, patches = 32, 64
    # qkv, projection and MLP of 65 tokens, their attention, and the patches' embedding.
    block = 65 * 12 * width**2 + 2 * 65**2 * width
    image = 2 * block + patches * 3 * 8**2 * width
    shared = (one - four) * 4 / 3  # one = image + text, four = image / 4 + text
    memory_of_image = 2 * 65 * width * 32  # the cross layer's keys and values
    assert shared == pytest.approx(image + memory_of_image, rel=0.05)


def test_parameters_of_other_objectives_are_not_used(recipes: Recipes) -> None:
    cross, scan = (made(recipes, name).model for name in ("cross", "all"))
    total = sum(weight.numel() for weight in cross.parameters())
    unused = (cross.image_projection, cross.text_projection, cross.match_head)
    unused += (cross.masked_language_head,)
    apart = sum(weight.numel() for part in unused for weight in part.parameters())
    assert parameters_used(cross) == total - apart - 1  # and the temperature
    assert parameters_used(scan) < sum(weight.numel() for weight in scan.parameters()) - apart


def test_memory_counts_from_before_the_model(pretrained: Any, tiny_corpora: Any) -> None:
    if not can_watch(CPU):
        pytest.skip("this system does not tell a process its high-water mark")
    order = {"corpus": str(tiny_corpora.expressions), "split": "val", "count": 3}
    found = memory({**order, "release": str(pretrained.out / "release")})
    assert 0 < found["start"] < found["peak"]
