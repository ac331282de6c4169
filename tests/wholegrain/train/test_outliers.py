"""Outliers among gradient norms: which are flagged, what the window keeps, what the host sees."""

import json
import math
import statistics

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from wholegrain.errors import CheckpointError
from wholegrain.train.config import OutlierConfig
from wholegrain.train.outliers import OutlierSteps, OutlierWatch

NO, YES = torch.tensor(0.0), torch.tensor(1.0)


def norms(count: int, seed: int = 0) -> list[float]:
    """About 1, give or take a tenth."""
    generator = torch.Generator().manual_seed(seed)
    return (1 + 0.1 * torch.randn(count, generator=generator)).tolist()


def flagged(watch: OutlierWatch, values: list[float], skipped: Tensor = NO) -> list[int]:
    """Places in `values` of what the watch calls outliers."""
    seen = [float(watch.see(torch.tensor(value), skipped)) for value in values]
    assert set(seen) <= {0.0, 1.0}
    return [place for place, flag in enumerate(seen) if flag]


def kept(watch: OutlierWatch) -> list[float]:
    return [float.fromhex(norm) for norm in watch.state()["norms"]]


def test_a_spike_is_an_outlier_and_enters_cut_to_the_bound() -> None:
    watch = OutlierWatch(OutlierConfig(deviations=6.0, window=8))
    before = [1.0, 1.5, 0.5, 1.0]
    assert flagged(watch, before) == []
    bound = statistics.mean(before) + 6 * statistics.stdev(before)
    assert flagged(watch, [bound - 0.01]) == []
    watch = OutlierWatch(OutlierConfig(deviations=6.0, window=8))
    assert flagged(watch, [*before, bound + 0.01]) == [4]
    assert kept(watch)[:4] == before
    assert kept(watch)[4] == pytest.approx(bound, rel=1e-12)


def test_none_is_an_outlier_before_half_of_the_window_is_there() -> None:
    watch = OutlierWatch(OutlierConfig(window=9))
    assert flagged(watch, [1.0, 1.1, 0.9, 1.0, 500.0]) == []
    watch = OutlierWatch(OutlierConfig(window=9))
    assert flagged(watch, [1.0, 1.1, 0.9, 1.0, 1.0, 500.0]) == [5]


def test_noise_makes_no_outliers_and_a_spike_among_it_does() -> None:
    values = norms(600)
    values[300], values[450] = 3.0, 1000.0
    assert flagged(OutlierWatch(OutlierConfig()), values) == [300, 450]


def test_the_window_forgets_what_is_older() -> None:
    watch = OutlierWatch(OutlierConfig(window=8))
    flagged(watch, [9.0] * 8 + norms(8))
    assert sorted(kept(watch)) == pytest.approx(sorted(norms(8)))


def test_what_is_not_finite_or_skipped_neither_counts_nor_enters() -> None:
    watch = OutlierWatch(OutlierConfig(window=8))
    flagged(watch, norms(6))
    before = watch.state()
    assert flagged(watch, [math.nan, math.inf, -math.inf]) == []
    assert flagged(watch, [math.nan, 1e9, 1.0], skipped=YES) == []
    assert watch.state() == before


def test_a_lasting_change_is_accepted_in_time() -> None:
    watch = OutlierWatch(OutlierConfig())
    assert flagged(watch, norms(128)) == []
    higher = [10 * value for value in norms(128, seed=1)]
    places = flagged(watch, higher)
    assert places[0] == 0
    assert places == list(range(len(places)))
    assert 10 < len(places) < 40


def test_norms_that_never_vary_admit_another_level() -> None:
    watch = OutlierWatch(OutlierConfig())
    assert flagged(watch, [1.0] * 128 + [1.0 + 1e-6, 1.05]) == []
    assert flagged(watch, [1.1]) == [0]
    assert 0 < len(flagged(watch, [2.0] * 128)) < 60


def test_norms_of_zero_make_no_outlier_of_the_first_that_is_none() -> None:
    watch = OutlierWatch(OutlierConfig(window=8))
    assert flagged(watch, [0.0] * 8 + [1.0]) == []


def test_a_resumed_watch_goes_on_to_the_last_bit() -> None:
    values = norms(400)
    values[200], values[333] = 7.0, 9.0
    for cut in (3, 100, 201, 334):  # before the half, full or not, just after an outlier
        whole = OutlierWatch(OutlierConfig())
        first, second = OutlierWatch(OutlierConfig()), OutlierWatch(OutlierConfig())
        flagged(first, values[:cut])
        second.load(json.loads(json.dumps(first.state())))
        assert second.state() == first.state()
        expected = flagged(whole, values)
        assert [cut + place for place in flagged(second, values[cut:])] == [
            place for place in expected if place >= cut
        ]
        assert second.state() == whole.state()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: {},
        lambda state: {**state, "count": None},
        lambda state: {**state, "norms": state["norms"][:-1]},
        lambda state: {**state, "norms": ["what"] * 8},
        lambda state: {**state, "norms": ["nan"] * 8},
    ],
)
def test_a_state_of_another_window_is_refused(spoil: object) -> None:
    watch = OutlierWatch(OutlierConfig(window=8))
    flagged(watch, norms(20))
    state = watch.state()
    with pytest.raises(CheckpointError, match="outlier window"):
        watch.load(spoil(state))  # type: ignore[operator]
    assert watch.state() == state
    with pytest.raises(CheckpointError, match=r"run\.outliers\.window is 16"):
        OutlierWatch(OutlierConfig(window=16)).load(state)


def test_the_host_never_looks() -> None:
    """Fake tensors have no values: whatever asks for one raises."""
    watch, steps = OutlierWatch(OutlierConfig(window=8)), OutlierSteps()
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        for step in range(12):
            norm, skipped = (fake.from_tensor(torch.tensor(value)) for value in (1.0, 0.0))
            outlier = watch.see(norm, skipped)
            assert (outlier.shape, outlier.dtype) == ((), torch.float32)
            steps.add(step, norm, outlier)
        with pytest.raises(DataDependentOutputException):
            float(outlier)
        with pytest.raises(DataDependentOutputException):
            steps.take()


def test_a_gradient_norm_with_a_graph_leaves_none() -> None:
    watch = OutlierWatch(OutlierConfig(window=8))
    weight = torch.ones((), requires_grad=True)
    assert not watch.see(weight * 2, NO).requires_grad
    assert kept(watch) == [2.0]


def test_outlier_steps_are_named_once() -> None:
    steps = OutlierSteps()
    assert steps.take() == []
    for step, (norm, outlier) in enumerate([(1.0, NO), (50.0, YES), (2.0, NO), (60.5, YES)]):
        steps.add(step, torch.tensor(norm), outlier)
    assert steps.take() == [(1, 50.0), (3, 60.5)]
    assert steps.take() == []
