"""A run goes on at another number of ranks and under another engine."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import torch

from tests.wholegrain.train.engines_program import Case, train
from tests.wholegrain.train.start_engines import (
    SHIPPED,
    Ranks,
    difference,
    start,
    whole_moments,
    zero,
)

pytestmark = [pytest.mark.ranks, pytest.mark.slow]

STEPS = 4


class Chain(NamedTuple):
    """What the ranks of each leg saw."""

    alone: dict[str, Any]
    """Plain in one process, steps 0 to 3."""
    two: Ranks
    """Two ranks, which began with stage 1, and with 2 and 3 went on from `alone`."""
    one: Ranks
    """One process of stage 3, which went on from two ranks of stage 1."""
    four: Ranks
    """Four ranks that went on from that, with stage 0 and with stage 2."""
    last: dict[str, Any]
    """Plain in one process again, steps 12 to 15."""


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """2 ranks of stage 1, 1 of stage 3, 4 of stage 0 or 2, plain; and plain, 2 of stage 2 or 3."""
    folder = tmp_path_factory.mktemp("chain")
    runs = {name: str(folder / f"run-{name}") for name in ("alone", "two", "one", "four")}
    stage3 = zero(folder, 3, stage3_param_persistence_threshold=0)

    def leg(name: str, **settings: Any) -> Case:
        return Case(name, steps=STEPS, **settings)

    alone = train(leg("alone", save=runs["alone"]))
    two = start(
        2,
        [
            leg("begun", deepspeed=SHIPPED[1], save=runs["two"]),
            leg("zero2", deepspeed=SHIPPED[2], resume=runs["alone"]),
            leg("zero3", deepspeed=stage3, resume=runs["alone"]),
        ],
        folder / "two",
    )
    one = start(
        1, [leg("zero3", deepspeed=stage3, resume=runs["two"], save=runs["one"])], folder / "one"
    )
    four = start(
        4,
        [
            leg("zero0", deepspeed=zero(folder, 0), resume=runs["one"], save=runs["four"]),
            leg("zero2", deepspeed=SHIPPED[2], resume=runs["one"]),
        ],
        folder / "four",
    )
    return Chain(alone, two, one, four, train(leg("last", resume=runs["four"])))


def held(ranks: Ranks, case: str, when: str) -> list[Mapping[str, Any]]:
    return [rank[case][when] for rank in ranks]


def assert_same(found: list[Mapping[str, Any]], expected: list[Mapping[str, Any]]) -> None:
    """Weights, masters, moments and counts of updates are equal to the bit."""
    weights = expected[0]["weights"]
    assert found[0]["weights"].keys() == weights.keys()
    assert all(torch.equal(found[0]["weights"][name], weights[name]) for name in weights)
    for rank in found:
        for (name, begin), piece in rank["masters"].items():
            assert torch.equal(piece, weights[name].flatten()[begin : begin + len(piece)]), name
    moments, wanted = whole_moments(found), whole_moments(expected)
    assert moments.keys() == wanted.keys()
    for name, (step, both) in wanted.items():
        assert moments[name][0] == step, name
        assert torch.equal(moments[name][1], both), name


def test_what_is_loaded_is_what_was_saved(chain: Chain) -> None:
    begun = held(chain.two, "begun", "end")
    assert_same(held(chain.one, "zero3", "loaded"), begun)
    for case in ("zero0", "zero2"):
        assert_same(held(chain.four, case, "loaded"), held(chain.one, "zero3", "end"))
    assert_same([chain.last["loaded"]], held(chain.four, "zero0", "end"))
    for case in ("zero2", "zero3"):
        assert_same(held(chain.two, case, "loaded"), [chain.alone["end"]])


def test_the_state_is_divided_and_not_copied(chain: Chain) -> None:
    for ranks, case in ((chain.two, "zero3"), (chain.four, "zero2")):
        whole = sum(both[0].numel() for _, both in whole_moments(held(ranks, case, "end")).values())
        largest = max(
            sum(tensors["exp_avg"].numel() for _, tensors in rank["moments"].values())
            for rank in held(ranks, case, "end")
        )
        assert largest < 1.3 * whole / len(ranks)
    # Where every rank holds the whole state, one of them is asked for it.
    assert [bool(rank["moments"]) for rank in held(chain.four, "zero0", "end")] == [
        True,
        False,
        False,
        False,
    ]


def test_the_legs_together_are_one_run(chain: Chain) -> None:
    one = train(Case("one", steps=4 * STEPS))
    assert one["state"]["updates"] == chain.last["state"]["updates"] == 4 * STEPS
    # Running statistics are of what the saving rank saw, a half or a quarter of each batch.
    expected, found = (
        {n: w for n, w in run["end"]["weights"].items() if not n.startswith("norm.")}
        for run in (one, chain.last)
    )
    assert difference(found, expected) < 1e-5
    assert chain.last["losses"] == pytest.approx(one["losses"][-STEPS:], rel=1e-5)
