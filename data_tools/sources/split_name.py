"""The split that a file's name speaks of."""

from __future__ import annotations

import re
from pathlib import Path


def split_of_name(path: Path) -> str:
    """``zhiyuan_objv2_val.json`` -> ``val``; ``train`` where the name does not say."""
    found = re.search(r"train|val|test", path.name.lower())
    return found[0] if found else "train"
