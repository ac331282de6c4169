"""RandAugment as X-VLM uses it: a few random operations, each applied half of the time.

Cubuk et al. 2020. Ten operations; five of them leave everything at its place, five move it. An
image with boxes gets the five that move nothing, or all ten, whose `Warp` then moves the boxes too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from wholegrain.data.colour import Planes, autocontrast, brighten, equalise, sharpen
from wholegrain.data.geometry import Warp, rotation, shear_x, shear_y, shift
from wholegrain.data.warping import warped

_APPLIED = 0.5

Painting: TypeAlias = Callable[[Planes, float], None]  # changes in place; strength 0..1
Moving: TypeAlias = Callable[[float], Warp]  # strength -1..1

PAINTINGS: dict[str, Painting] = {
    "identity": lambda planes, strength: None,
    "autocontrast": lambda planes, strength: autocontrast(planes),
    "equalize": lambda planes, strength: equalise(planes),
    "brightness": lambda planes, strength: brighten(planes, 1.8 * strength + 0.1),
    "sharpness": lambda planes, strength: sharpen(planes, 1.8 * strength + 0.1),
}
MOVINGS: dict[str, Moving] = {
    "shear_x": lambda s: shear_x(0.3 * s),
    "shear_y": lambda s: shear_y(0.3 * s),
    "translate_x": lambda s: shift(-s * 10 / 224, 0),
    "translate_y": lambda s: shift(0, -s * 10 / 224),
    "rotate": lambda s: rotation(30 * s),
}
_STILL = tuple(PAINTINGS)
_ALL = (*PAINTINGS, *MOVINGS)


def rand_augment(
    planes: Planes,
    count: int,
    magnitude: int,
    still: bool,
    rng: np.random.Generator,
    admitted: Callable[[tuple[Warp, ...]], bool] | None = None,
) -> tuple[Planes, tuple[Warp, ...]]:
    """Applies `count` operations drawn with replacement, each with probability 0.5.

    Args:
        planes: uint8 (3, h, w), contiguous; may be changed in place.
        magnitude: 0..10; at 7 colours are enhanced by 1.36, angles reach 21 degrees, shears 0.21,
            shifts 7 of 224 pixels.
        still: only operations that leave everything at its place.
        admitted: whether all moves so far may be made; one that may not is left out.

    Returns:
        The result, perhaps in the same memory, and the moves made, in order.
    """
    names = _STILL if still else _ALL
    warps: tuple[Warp, ...] = ()
    for name, chance, side in rng.random((count, 3)).tolist():
        if chance >= _APPLIED:
            continue
        operation = names[int(name * len(names))]
        painting = PAINTINGS.get(operation)
        if painting is not None:
            painting(planes, magnitude / 10)
            continue
        warp = MOVINGS[operation](magnitude / 10 if side < 0.5 else -magnitude / 10)
        if admitted is None or admitted((*warps, warp)):
            planes, warps = warped(planes, warp), (*warps, warp)
    return planes, warps
