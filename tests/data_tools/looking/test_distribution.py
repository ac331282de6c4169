import json
import math

import numpy as np
import pytest

from data_tools.looking.distribution import Distribution, Scale, bins_for


def of(values: object, scale: Scale) -> Distribution:
    found = Distribution(scale)
    for value in np.asarray(values).tolist():
        found.add(value)
    return found


def test_whole_numbers_are_exact() -> None:
    values = np.random.default_rng(1).geometric(0.08, 5000)
    found = of(values, "whole")
    row = found.summary()
    assert (row["count"], row["min"], row["max"]) == (5000, values.min(), values.max())
    assert row["mean"] == pytest.approx(values.mean(), rel=1e-4)
    for name, share in (("5 %", 0.05), ("median", 0.5), ("95 %", 0.95)):
        assert row[name] == np.quantile(values, share, method="inverted_cdf")


def test_real_numbers_are_known_to_a_quarter_percent() -> None:
    values = np.random.default_rng(2).lognormal(0, 2, 5000)
    found = of(values, "log")
    assert (found.least, found.greatest) == (values.min(), values.max())
    assert found.mean == pytest.approx(values.mean())
    for share in (0.05, 0.5, 0.95):
        assert found.quantile(share) == pytest.approx(
            np.quantile(values, share, method="inverted_cdf"), rel=0.0026
        )


def test_memory_does_not_grow_with_what_is_counted() -> None:
    found = of(np.random.default_rng(3).uniform(0.01, 100, 50_000), "log")
    assert len(found.cells) <= 200 * math.log(1e4) + 2


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_what_has_no_logarithm_is_left_out(value: float) -> None:
    assert of([value, 2.0], "log").count == 1


@pytest.mark.parametrize("scale", ["whole", "log"])
def test_parts_merge_into_the_whole(scale: Scale) -> None:
    values = np.random.default_rng(4).integers(1, 99, 300)
    whole, left = of(values, scale), of(values[:100], scale)
    left.merge(of(values[100:], scale))
    assert left.cells == whole.cells and left.summary() == whole.summary()


def test_a_summary_is_plain_json() -> None:
    assert json.loads(json.dumps(of([1, 2, 3], "whole").summary()))["median"] == 2


@pytest.mark.parametrize("scale", ["whole", "log"])
@pytest.mark.parametrize("values", [[7], [1, 1, 1, 2], range(1, 5000), [1] * 999 + [10**6]])
def test_every_value_falls_into_a_bar(scale: Scale, values: list[int]) -> None:
    found = of(list(values), scale)
    bins = bins_for(found, 40)
    counts = found.binned(bins)
    assert counts.sum() == len(values)
    assert 1 <= len(counts) <= 40 and (np.diff(bins.edges) > 0).all()


def test_bars_of_whole_numbers_hold_equally_many() -> None:
    found = of(list(range(300)) * 2, "whole")
    bins = bins_for(found, 40)
    assert set(np.diff(bins.edges)) == {10.0}
    assert found.binned(bins).tolist() == [20] * 30
    assert not bins.open_end


def test_a_far_tail_shares_the_last_bar() -> None:
    found = of([1, 2, 3, 4] * 250 + [1000], "whole")
    bins = bins_for(found, 40)
    assert bins.open_end and bins.edges[-1] < 20
    assert found.binned(bins)[-1] == 1


def test_equal_values_stand_amid_room() -> None:
    bins = bins_for(of([224] * 9, "whole"), 40)
    assert bins.edges[0] < 224 and bins.edges[-1] > 225
    bins = bins_for(of([0.05] * 9, "log"), 40)
    assert bins.edges[0] <= 0.026 and bins.edges[-1] >= 0.099
