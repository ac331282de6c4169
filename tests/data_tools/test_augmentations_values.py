"""``--set``: a value that is no YAML is told by name, not by a traceback."""

from __future__ import annotations

import pytest

from data_tools.augmentations import read_rules
from wholegrain.errors import ConfigError


@pytest.mark.parametrize("change", ["colour=@1", "colour=[1", "colour=2024-13-45", "mode='xvlm"])
def test_a_value_that_is_no_yaml_is_named(change: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_rules(None, [change])
    message = str(caught.value)
    assert message.startswith(f"--set {change}: ") and "\n" not in message
