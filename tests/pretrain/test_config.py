"""Settings that do not go together are refused before anything is read."""

from typing import Any

import pytest

from pretrain.config import ObjectiveConfig, PretrainConfig
from wholegrain.config import from_dict
from wholegrain.errors import ConfigError

TWO = [{"path": "a", "per_batch": 3}, {"path": "b", "per_batch": 4}]


def test_defaults_are_xvlms_objectives() -> None:
    config = from_dict(PretrainConfig, {"data": {"train": [{"path": "a"}]}})
    xvlm = ("contrastive", "matching", "masked_language", "box_l1", "box_giou")
    assert config.objective.weights() == {**dict.fromkeys(xvlm, 1.0), "box_vote": 0.5}


def test_each_loss_has_the_weight_of_its_name() -> None:
    given = {"contrastive": 2.0, "matching": 3.0, "masked_language": 5.0}
    given |= {"box_l1": 7.0, "box_giou": 11.0, "box_vote": 13.0}
    assert from_dict(ObjectiveConfig, given).weights() == given


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": {"train": []}}, r"data\.train is empty; name at least one corpus"),
        ({"data": {}}, r"'data\.train' is missing"),
        (
            {"data": {"train": TWO}, "run": {"batch_size": 8}},
            r"per_batch add up to 7, run\.batch_size is 8; make them equal",
        ),
        (
            {
                "data": {"train": [{"path": "a"}], "max_tokens": 40},
                "model": {"text": {"max_positions": 32}},
            },
            r"max_tokens 40 exceeds model\.text\.max_positions 32; lower it",
        ),
        (
            {"data": {"train": [{"path": "a", "spilt": "val"}]}},
            r"unknown key 'data\.train\.0\.spilt'; did you mean 'split'",
        ),
        (
            {"data": {"train": [{"path": "a"}, {"path": "b", "per_batch": 64}]}},
            r"data\.train\[0\]\.per_batch is 0; in a mixture each corpus has at least 1",
        ),
        (
            {"data": {"train": [{"path": "a"}], "region_updates": {"train": []}}},
            r"data\.region_updates\.train is empty; name at least one corpus",
        ),
        (
            {"data": {"train": [{"path": "a"}], "region_updates": {"train": TWO, "images": 8}}},
            r"data\.region_updates\.train\[\]\.per_batch add up to 7, data\.region_updates\.images "
            r"is 8; make them equal",
        ),
        (
            {
                "data": {
                    "train": [{"path": "a"}],
                    "region_updates": {"train": [{"path": "a"}], "images": 8, "texts": 9},
                },
                "run": {"accumulation": 2},
            },
            r"region_updates\.texts 9 does not divide into run\.accumulation 2 parts; make it a",
        ),
        (
            {"data": {"train": [{"path": "a"}], "max_concepts": 9}, "run": {"accumulation": 2}},
            r"data\.max_concepts 9 does not divide into run\.accumulation 2 parts; make it a",
        ),
        (
            {"data": {"train": [{"path": "a"}]}, "objective": {"contrastive_gradient": "right"}},
            r"contrastive_gradient.*right",
        ),
        (
            {"data": {"train": [{"path": "a"}]}, "run": {"batch_size": 10, "accumulation": 4}},
            r"batch_size 10 .*accumulation 4",
        ),
        (
            {"data": {"train": [{"path": "a"}]}, "objective": {"contrastive_form": "sigmoid"}},
            r"contrastive_form is 'sigmoid' and model\.contrastive_bias None; the sigmoid form",
        ),
        (
            {"data": {"train": [{"path": "a"}]}, "model": {"contrastive_bias": -10.0}},
            r"contrastive_form is 'softmax' and model\.contrastive_bias -10\.0; the sigmoid form",
        ),
    ],
)
def test_clashes(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(PretrainConfig, settings)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        ({"adapters": [{"kind": "mmca"}]}, r"model.adapters is \['mmca'\].*belongs to finetuning"),
        ({"box_head": {"kind": "mlp"}}, "model.box_head is mlp.*pretrain with cls or patch"),
        (
            {"fusion": {"kind": "ca2m"}, "box_head": {"kind": "mlp"}},
            "model.fusion is ca2m.*pretrain with cross",
        ),
    ],
)
def test_parts_of_finetuning_are_refused(model: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        from_dict(PretrainConfig, {"data": {"train": [{"path": "c"}]}, "model": model})
