"""fp16's loss scale: how it moves, and what counts as a lost update."""

import json
import math
from collections.abc import Iterable

import pytest
import torch

from wholegrain.errors import CheckpointError
from wholegrain.train.loss_scale import LossScale

CPU = torch.device("cpu")


def after(skipped: Iterable[int], scale: LossScale | None = None) -> tuple[float, list[float]]:
    """The scale after some updates, and which were lost."""
    scale = scale or LossScale()
    lost = [float(scale.update(torch.tensor(float(each)))) for each in skipped]
    return float(scale.on(CPU)), lost


def test_it_halves_where_the_gradient_is_not_finite() -> None:
    assert after([]) == (2.0**16, [])
    assert after([1, 0, 1]) == (2.0**14, [0.0, 0.0, 0.0])


def test_it_doubles_after_two_thousand_good_updates_in_a_row() -> None:
    assert after([0] * 1999)[0] == 2.0**16
    assert after([0] * 2000)[0] == 2.0**17
    assert after([0] * 1999 + [1] + [0] * 1999)[0] == 2.0**15
    assert after([0] * 4000)[0] == 2.0**18


def test_at_its_least_the_scale_is_no_excuse() -> None:
    scale, lost = after([1] * 20 + [0])
    assert scale == 1.0
    assert lost == [0.0] * 16 + [1.0] * 4 + [0.0]


def test_it_grows_to_a_bound() -> None:
    scale = LossScale()
    scale.load({"scale": 2.0**24, "good": 1999})
    assert after([0], scale)[0] == 2.0**24


def test_its_state_is_json_and_comes_back() -> None:
    scale, other = LossScale(), LossScale()
    after([1, 1, 0, 0, 0], scale)
    other.load(json.loads(json.dumps(scale.state())))
    assert other.state() == scale.state() == {"scale": 2.0**14, "good": 3}
    assert after([0] * 1997, other)[0] == 2.0**15


@pytest.mark.parametrize(
    "state",
    [{}, {"scale": "x", "good": 0}, {"scale": math.inf, "good": 0}, {"scale": 2.0, "good": -1}],
)
def test_a_foreign_state_is_refused(state: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match=r"loss scale .*resume from another checkpoint"):
        LossScale().load(state)
