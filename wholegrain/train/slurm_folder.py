"""The run folder of a stage's command line, known before the stage runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wholegrain.errors import ConfigError
from wholegrain.train.slurm_restarts import FILE

_NO_RUN = frozenset({"--dry-run", "--print-config", "--help", "-h"})
_MAX_DEPTH = 5
# What lies in a folder before the stage itself has written there.
_OURS = frozenset({FILE, f"{FILE}.partial", "logs"})
_LOGS = frozenset({".log", ".out", ".err", ".txt"})


def own_run_folder(words: Sequence[str]) -> Path | None:
    """The folder that a command trains in.

    Args:
        words: as Python gets them: ``-m pretrain --config FILE --out=DIR``.

    Returns:
        None where nothing must be written: a command that only shows something, or a folder of
        somebody else's files, which the stage will refuse.

    Raises:
        ConfigError: there is no `out` on the command line or in the config.
    """
    if _NO_RUN.intersection(words):
        return None
    out = Path(_given(words, "--out") or _of_config(_given(words, "--config")))
    if not out.exists() or (out / "config.yaml").exists():
        return out
    if not out.is_dir():
        return None
    foreign = (p for p in out.iterdir() if p.name not in _OURS and p.suffix not in _LOGS)
    return None if any(not path.name.startswith(".") for path in foreign) else out


def _given(words: Sequence[str], flag: str) -> str | None:
    """The last value of a flag, which is the one that counts."""
    value = None
    for place, word in enumerate(words):
        if word.startswith(f"{flag}="):
            value = word.partition("=")[2]
        elif word == flag and place + 1 < len(words):
            value = words[place + 1]
    return value


def _of_config(name: str | None) -> str:
    if name is None:
        raise ConfigError("--config is not given; name the stage's YAML file")
    out = _read(Path(name), 0).get("out")
    if not isinstance(out, str):
        raise ConfigError(f"{name}: has no `out`; name the run folder there or with --out=DIR")
    return out


def _read(path: Path, depth: int) -> dict[str, Any]:
    # Late: with --out a supervisor needs the standard library alone, on hosts of containers.
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check --config") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({error})") from error
    if not isinstance(values, dict):
        return {}
    base = values.get("defaults")
    if base is not None and depth < _MAX_DEPTH:
        return {**_read(path.parent / str(base), depth + 1), **values}
    return values
