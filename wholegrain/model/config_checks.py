"""What the configurations of a model's parts check alike."""

from __future__ import annotations

from wholegrain.errors import ConfigError


def divides(name: str, value: int, part_name: str, part: int) -> None:
    """ConfigError, with both names and values, unless `part` divides `value`."""
    if part < 1 or value % part:
        raise ConfigError(
            f"{name} is {value}, which is no multiple of {part_name} {part}; change one of them"
        )
