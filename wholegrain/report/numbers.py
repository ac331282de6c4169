"""How figures are written, the same in charts and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence


def figure(value: float) -> str:
    """A float with three significant decimals where they matter: 0.0423, 0.712, 31.2, 1,204.

    >>> figure(0.7123), figure(31.24), figure(1e-4), figure(1204.4), figure(0.0)
    ('0.712', '31.2', '1.00e-04', '1,204', '0')
    """
    size = abs(value)
    if not math.isfinite(value):
        return str(value)
    if size == 0:
        return "0"
    if size < 1e-3:
        return f"{value:.2e}"
    if size < 0.1:
        return f"{value:.4f}"
    if size < 10:
        return f"{value:.3f}"
    if size < 1000:
        return f"{value:.1f}"
    return f"{value:,.0f}"


def short(value: float) -> str:
    """A tick label without trailing zeros: 0, 0.25, 500, 1.5k, 20k, 3M.

    >>> [short(v) for v in (0, 0.25, 500, 1500, 20000, 3e6, 2e-5)]
    ['0', '0.25', '500', '1.5k', '20k', '3M', '2e-5']
    """
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:g}M"
    if size >= 1e3:
        return f"{value / 1e3:g}k"
    if 0 < size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.6g}"


def aligned(values: Sequence[float]) -> list[str]:
    """Figures of one column with as many decimals as its greatest needs.

    A column that mixes unlike figures is written one by one, lest the small ones become zeros.

    >>> aligned([0.423, 0.05]), aligned([42.31, 5.2]), aligned([42.31, 0.051])
    (['0.423', '0.050'], ['42.3', '5.2'], ['42.3', '0.0510'])
    """
    sizes = [abs(value) for value in values if value and math.isfinite(value)]
    greatest, least = max(sizes, default=0.0), min(sizes, default=0.0)
    decimals = 3 if greatest < 10 else 1 if greatest < 1000 else 0
    # Two significant digits must remain; three decimals are enough for anything beside 0.1.
    if greatest < 0.01 or (decimals < 3 and least < 10 ** (1 - decimals)):
        return [figure(value) for value in values]
    return [f"{value:,.{decimals}f}" for value in values]
