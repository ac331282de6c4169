"""Settings that do not go together are refused before anything is read."""

from typing import Any

import pytest

from pretrain.config import PretrainConfig
from wholegrain.config import from_dict
from wholegrain.errors import ConfigError

TWO = [{"path": "a", "per_batch": 3}, {"path": "b", "per_batch": 4}]


def test_defaults_are_xvlms_objectives() -> None:
    config = from_dict(PretrainConfig, {"data": {"train": [{"path": "a"}]}})
    weights = config.objective.weights()
    assert {n: w for n, w in weights.items() if n != "box_vote"} == dict.fromkeys(
        ("contrastive", "matching", "masked_language", "box_l1", "box_giou"), 1.0
    )


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
            {"data": {"train": [{"path": "a"}]}, "run": {"batch_size": 10, "accumulation": 4}},
            r"batch_size 10 .*accumulation 4",
        ),
    ],
)
def test_clashes(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(PretrainConfig, settings)
