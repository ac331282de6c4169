"""The composition of a global batch: how many images each corpus of a mixture brings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from wholegrain.errors import ConfigError


class Entry(Protocol):
    """What decides an entry's share."""

    path: str
    per_batch: int
    weight: float | None


def composition(
    where: str, entries: Sequence[Entry], total_name: str, total: int, parts: int
) -> list[int]:
    """Images of each entry in a global batch of `total`.

    It is the same in every batch. Entries name their images, or weights to which they are
    proportional, rounded to whole numbers by largest remainders so that they add up.

    Args:
        where: of the mixture in the config, for messages.
        total_name: of the setting that holds `total`.
        parts: into which a batch is cut by accumulation; each has the same composition.

    Raises:
        ConfigError: no entry, images that do not add up or do not divide, or a weight too small to
            bring one image.
    """
    if not entries:
        raise ConfigError(f"{where} is empty; name at least one corpus")
    weighted = [entry.weight is not None for entry in entries]
    if any(weighted):
        return _by_weight(where, entries, total_name, total, parts)
    shares = [entry.per_batch for entry in entries]
    if len(shares) == 1 and not shares[0]:
        return [total]
    if not all(shares):
        raise ConfigError(
            f"{where}[{shares.index(0)}].per_batch is 0; in a mixture each corpus has at least 1, "
            "or a weight"
        )
    if sum(shares) != total:
        raise ConfigError(
            f"{where}[].per_batch add up to {sum(shares)}, {total_name} is {total}; make them equal"
        )
    for number, share in enumerate(shares):
        if share % parts:
            raise ConfigError(
                f"{where}[{number}].per_batch {share} does not divide into run.accumulation "
                f"{parts} parts; make it a multiple"
            )
    return shares


def _by_weight(
    where: str, entries: Sequence[Entry], total_name: str, total: int, parts: int
) -> list[int]:
    for number, entry in enumerate(entries):
        if entry.weight is None or entry.per_batch:
            raise ConfigError(
                f"{where}[{number}] ({entry.path}) has weight {entry.weight} and per_batch "
                f"{entry.per_batch}; give every corpus of the mixture a weight, or every one images"
            )
    share = total // parts
    weights = np.array([entry.weight for entry in entries], dtype=np.float64)
    exact = weights / weights.sum() * share
    counts = np.floor(exact + 1e-9).astype(int)
    # Ties go to the earlier entry.
    first = np.argsort(-(exact - counts), kind="stable")[: share - counts.sum()]
    counts[first] += 1
    for number, (entry, count) in enumerate(zip(entries, counts, strict=True)):
        if not count:
            raise ConfigError(
                f"{where}[{number}] ({entry.path}): weight {entry.weight} of {weights.sum():g} is "
                f"less than one image of {total_name} {total}"
                + (f" in {parts} parts" if parts > 1 else "")
                + "; raise the weight or the batch, or leave the corpus out"
            )
    return [int(count) * parts for count in counts]
