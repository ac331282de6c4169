"""Tables of positions for other image sizes, against published figures and FITPACK."""

import pytest
import torch
from torch import Tensor

from wholegrain.errors import CheckpointError
from wholegrain.hub.resize import (
    geometric_ratio,
    resize_bias_table,
    resize_positions,
    spline_matrix,
)


@pytest.mark.parametrize(
    ("source", "target", "ratio"), [(13, 23, 1.240724), (13, 29, 1.337515), (23, 29, 1.047191)]
)
def test_published_ratios(source: int, target: int, ratio: float) -> None:
    assert geometric_ratio(source, target) == pytest.approx(ratio, abs=5e-7)


@pytest.mark.parametrize(("source", "target"), [(13, 15), (23, 25), (45, 47), (13, 41)])
def test_the_grid_ends_at_the_new_edge(source: int, target: int) -> None:
    """Also where the published bracket of q ends before the edge is reached."""
    ratio = geometric_ratio(source, target)
    reach = sum(ratio**k for k in range(source // 2))
    assert reach == pytest.approx(target // 2, abs=1e-3)


@pytest.mark.parametrize(("source", "target"), [(13, 43), (5, 7), (3, 5)])
def test_what_cannot_be_stretched(source: int, target: int) -> None:
    with pytest.raises(CheckpointError, match=f"side {source} cannot be stretched to {target}"):
        geometric_ratio(source, target)


def wave(side: int) -> Tensor:
    """(side², 1) of a function that no polynomial equals."""
    place = torch.arange(side, dtype=torch.float64)
    i, j = place[:, None], place[None]
    return (torch.sin(1.3 * i + 0.7 * j) + 0.1 * i * j).reshape(-1, 1)


def test_a_table_grows_as_fitpack_has_it() -> None:
    """Figures of scipy 1.17's RectBivariateSpline on the same grid, side 7 to 9."""
    grown = resize_bias_table(wave(7), 9).view(9, 9)
    first = [0.000000780443, 0.362294000644, 0.754773367451, 0.985450362188, 0.863209615946,
             0.334987964259, -0.208897153246, -0.626492560168, -0.871576047255]  # fmt: skip
    sixth = [-0.883454361601, -0.416744769365, 0.248441539674, 1.111541363513, 2.050436620629,
             2.589358246623, 2.689357105845, 2.556455267432, 2.424775467918]  # fmt: skip
    first, sixth = (torch.tensor(each, dtype=torch.float64) for each in (first, sixth))
    torch.testing.assert_close(grown[0], first, rtol=0, atol=1e-11)
    torch.testing.assert_close(grown[5], sixth, rtol=0, atol=1e-11)
    assert grown.sum().item() == pytest.approx(74.66782121705442, rel=1e-11)


@pytest.mark.parametrize(
    ("source", "target", "fourth", "total"),
    [
        (13, 23, [0.969099139861, 0.868998630033, -0.228800218926,
                  0.665316686566, 1.956377250608, 1.303052380900], 1930.0313656386304),
        (13, 29, [0.780551937844, 1.123854648710, 0.903039994414, -0.353142387704,
                  0.498493443804, 1.711339703183, 1.546760294864, 1.024226210900],
         3081.9618971503833),
        (23, 29, [0.584927423459, -0.427733016950, 1.228919440244, 2.293344630308,
                  1.673114592303, 4.160068491846, 3.378119615343, 3.448202705235],
         10176.014119850526),
    ],
)  # fmt: skip
def test_tables_of_published_sizes_grow_as_fitpack_has_them(
    source: int, target: int, fourth: list[float], total: float
) -> None:
    """As above, every fourth value of a row: scipy, which made them, is no dependency."""
    grown = resize_bias_table(wave(source), target).view(target, target)
    expected = torch.tensor(fourth, dtype=torch.float64)
    torch.testing.assert_close(grown[3, ::4], expected, rtol=0, atol=1e-11)
    assert grown.sum().item() == pytest.approx(total, rel=1e-11)


def test_a_spline_goes_through_its_values_and_keeps_cubics() -> None:
    knots = torch.tensor([-4.0, -2.5, -1.0, 0.0, 0.7, 2.0, 5.0]).double()
    torch.testing.assert_close(spline_matrix(knots, knots), torch.eye(7).double())
    places = torch.linspace(-4, 5, 31).double()
    for power in range(4):
        values = spline_matrix(knots, places) @ knots**power
        torch.testing.assert_close(values, places**power, rtol=1e-10, atol=1e-10)
    outside = torch.tensor([-9.0, 9.0])
    torch.testing.assert_close(spline_matrix(knots, outside), torch.eye(7).double()[[0, 6]])


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_few_knots_lower_the_degree(count: int) -> None:
    knots = torch.arange(float(count))
    places = torch.linspace(0, count - 1, 7)
    for power in range(min(count, 4)):
        values = spline_matrix(knots, places) @ knots.double() ** power
        torch.testing.assert_close(values, places.double() ** power)


def test_the_centre_stays_and_the_near_keep_their_place() -> None:
    """The grid's 0 and ±1 are the new table's 0 and ±1."""
    table = wave(13).float()
    small, large = table.view(13, 13), resize_bias_table(table, 23).view(23, 23)
    torch.testing.assert_close(large[10:13, 10:13], small[5:8, 5:8], rtol=0, atol=1e-5)
    torch.testing.assert_close(large[::22, ::22], small[::12, ::12], rtol=0, atol=1e-4)
    assert large.dtype == torch.float32


@pytest.mark.parametrize("target", [23, 29])
def test_shrinking_undoes_growing(target: int) -> None:
    """Where the published search would crop: its error on this table is over a hundred times it."""
    offset = torch.arange(13) - 6.0
    bump = torch.exp(-(offset[:, None] ** 2 + offset**2) / 20)
    slope = torch.tanh(offset[:, None] / 4 + offset / 7)
    table = torch.stack([bump.flatten(), slope.flatten()], dim=1)
    grown = resize_bias_table(table, target)
    assert (resize_bias_table(grown, 13) - table).abs().max() < 1e-3
    edge = target // 2 - 6
    crop = grown.view(target, target, 2)[edge:-edge, edge:-edge].reshape(169, 2)
    assert (crop - table).abs().max() > 0.1


def test_the_same_size_is_the_same_table() -> None:
    table = torch.randn(169, 4)
    assert torch.equal(resize_bias_table(table, 13), table)
    positions = torch.randn(1, 17, 8)
    assert torch.equal(resize_positions(positions, 4), positions)


@pytest.mark.parametrize(("rows", "side"), [(168, 23), (144, 23), (169, 22)])
def test_no_table_of_offsets(rows: int, side: int) -> None:
    with pytest.raises(CheckpointError, match="square of an odd number"):
        resize_bias_table(torch.zeros(rows, 1), side)


def test_positions_keep_the_class_token() -> None:
    positions = torch.randn(1, 50, 8)
    resized = resize_positions(positions, 12)
    assert resized.shape == (1, 145, 8)
    assert torch.equal(resized[:, 0], positions[:, 0])
    constant = torch.full((1, 50, 8), 3.0)
    torch.testing.assert_close(resize_positions(constant, 12), torch.full((1, 145, 8), 3.0))
    with pytest.raises(CheckpointError, match="not a class token and a square grid"):
        resize_positions(torch.zeros(1, 49, 8), 12)


def test_positions_are_read_between_pixel_centres() -> None:
    """Row-major, corners not aligned: cell (r, c) of 8 x 8 lies at (r / 2 - 1/4, c / 2 - 1/4)."""
    torch.manual_seed(0)
    positions = torch.randn(1, 17, 3)
    resized = resize_positions(positions, 8)[0, 1:].view(8, 8, 3)
    quarter = torch.tensor([-27, 225, 67, -9]) / 256  # Keys' kernel, a = -3/4, a quarter off
    grid = positions[0, 1:].view(4, 4, 3)
    expected = torch.einsum("r,c,rcd->d", quarter, quarter.flip(0), grid)
    torch.testing.assert_close(resized[3, 4], expected)
