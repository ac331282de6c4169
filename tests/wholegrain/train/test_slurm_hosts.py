"""Slurm's short forms against what they stand for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wholegrain.errors import ConfigError
from wholegrain.train.slurm_hosts import expand_counts, expand_hosts


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ["n1"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[1,3-4]", ["n1", "n3", "n4"]),
        ("gpu[08-11]", ["gpu08", "gpu09", "gpu10", "gpu11"]),
        ("a1,b[1-2],c", ["a1", "b1", "b2", "c"]),
        ("n[1-2]-ib,login", ["n1-ib", "n2-ib", "login"]),
        ("r[1-2]n[0-1]", ["r1n0", "r1n1", "r2n0", "r2n1"]),
        ("n[7]", ["n7"]),
    ],
)
def test_node_lists(text: str, names: list[str]) -> None:
    assert expand_hosts(text) == names


@pytest.mark.parametrize(
    "text",
    ["", "n[", "n]", "n[]", "n[1", "n[2-1]", "n[a]", "n[1-]", "a,,b", "n[[1]]", "n[1-9999999]"],
)
def test_what_is_no_node_list(text: str) -> None:
    with pytest.raises(ConfigError, match="node list is"):
        expand_hosts(text)


ranges = st.tuples(st.integers(0, 2000), st.integers(0, 5), st.integers(1, 5))


@given(st.lists(st.tuples(st.sampled_from(["n", "gpu-", "r1c"]), st.lists(ranges, min_size=1))))
def test_ranges_are_what_they_abbreviate(
    words: list[tuple[str, list[tuple[int, int, int]]]],
) -> None:
    expected, shown = [], []
    for prefix, parts in words:
        pieces = []
        for first, more, width in parts:
            names = [f"{number:0{width}d}" for number in range(first, first + more + 1)]
            expected += [prefix + name for name in names]
            pieces.append(names[0] if more == 0 else f"{names[0]}-{names[-1]}")
        shown.append(f"{prefix}[{','.join(pieces)}]")
    if shown:
        assert expand_hosts(",".join(shown)) == expected


@given(st.lists(st.tuples(st.integers(0, 128), st.integers(1, 9)), min_size=1))
def test_counts(runs: list[tuple[int, int]]) -> None:
    text = ",".join(f"{count}(x{times})" if times > 1 else str(count) for count, times in runs)
    assert expand_counts(text) == [count for count, times in runs for _ in range(times)]


@pytest.mark.parametrize("text", ["", "4(2)", "x", "4,", "-1", "1(x99999999999)"])
def test_what_are_no_counts(text: str) -> None:
    with pytest.raises(ConfigError, match="list of counts is"):
        expand_counts(text)
