"""What a scene may contain, and how many of them are rendered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from wholegrain.errors import ConfigError

SPLITS: Final = ("train", "val", "test")
"""Split names; the position of a split is part of the random key and of the ids, so append only."""

COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (222, 48, 46),
    "orange": (248, 146, 32),
    "yellow": (252, 216, 54),
    "green": (52, 160, 66),
    "blue": (48, 102, 220),
    "purple": (132, 64, 180),
    "pink": (252, 142, 190),
    "brown": (132, 80, 44),
    "black": (52, 52, 58),
    "white": (248, 248, 244),
}
"""Colour word -> mean RGB of the painted body."""

TEXTURES: Final = ("plain", "striped", "dotted", "checked")

SIZES: Final[dict[str, tuple[float, float]]] = {
    "small": (0.185, 0.215),
    "medium": (0.25, 0.29),
    "large": (0.36, 0.41),
}
"""Size word -> range of sqrt(width * height) as a share of the picture's side.

The gaps between the ranges keep the words clear; "medium" is never spoken.
"""

MIN_OBJECTS: Final = 3
MAX_OBJECTS: Final = 6
MIN_VISIBLE: Final = 0.75
"""Least share of an object's pixels that objects in front of it leave visible."""


@dataclass(frozen=True, slots=True)
class SceneConfig:
    """One corpus of rendered scenes; the same values give the same bytes on any worker count."""

    train: int = 3000
    """Scenes in the train split."""
    val: int = 300
    """Scenes in the val split."""
    test: int = 300
    """Scenes in the test split."""
    size: int = 128
    """Side of the square pictures in pixels."""
    seed: int = 0
    """Seed; a scene is a function of (seed, split, index in the split) and of how it is painted,
    alone."""
    objects: int = MAX_OBJECTS
    """Most objects in a scene; fewer make an easier world."""
    zoom: float = 1.0
    """How many times as large as in `SIZES` the objects are."""

    def __post_init__(self) -> None:
        for split in SPLITS:
            if not 0 <= self.count(split) < 10_000_000:
                raise ConfigError(
                    f"scenes: --{split} is {self.count(split)}; give a count in 0..9999999"
                )
        if not any(self.count(split) for split in SPLITS):
            raise ConfigError("scenes: --train, --val and --test are all 0; nothing to render")
        if not 64 <= self.size <= 1024:
            raise ConfigError(f"scenes: --size is {self.size}; give a side of 64..1024 pixels")
        if not MIN_OBJECTS <= self.objects <= MAX_OBJECTS:
            raise ConfigError(
                f"scenes: --objects is {self.objects}; give {MIN_OBJECTS}..{MAX_OBJECTS}"
            )
        if not 1 <= self.zoom <= (MAX_OBJECTS / self.objects) ** 0.5:
            raise ConfigError(
                f"scenes: --zoom is {self.zoom}; give at least 1, and so little that --objects "
                f"times its square is at most {MAX_OBJECTS}: there is no room for more"
            )
        if self.seed < 0:
            raise ConfigError(f"scenes: --seed is {self.seed}; give a seed of 0 or more")

    def count(self, split: str) -> int:
        """Scenes in `split`, one of `SPLITS`."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]
