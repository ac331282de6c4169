"""Runs of the comparison: each is a command that a user could type, and is kept once it is done.

A finished run is one JSON file, written aside and renamed, so that an interrupted comparison goes
on where it stopped. It carries a digest of everything that decides its figures: a run whose recipe,
base or corpus has changed since is made again, and never mixed with the others.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.grounding_recipes import PRETRAINED, Budget, Cell, Recipes, Settings
from finetune.config import CorpusConfig
from finetune.outcome import CONSTANT, MODEL
from finetune.run import open_split
from wholegrain.errors import WholegrainError
from wholegrain.hub.release import CHECKSUMS

ROOT = Path(__file__).resolve().parent.parent
_TAIL = 20  # lines of a failed command's log that are shown


class CommandError(WholegrainError):
    """A command of the comparison failed."""


@dataclass(frozen=True)
class Kept:
    """A finished run."""

    cell: Cell
    digest: str
    figures: dict[str, Any]
    """Of the merged box: the metrics in 0..1, expressions, photos, and the intervals over
    photos."""
    constant: dict[str, Any]
    """The same of the best constant box of the training set."""
    predictions: Path
    release: Path
    seconds: float
    """Of the command, start and evaluation included; of its last start, if it was interrupted."""


@dataclass(frozen=True)
class Workplace:
    """Where a comparison on one data set is made.

    Attributes:
        folder: holds all of it.
        corpora: the data set's corpora.
    """

    recipes: Recipes
    budget: Budget
    data: str
    folder: Path
    corpora: Path

    def base(self, host: str) -> Path:
        """The release of a host, pretrained where it is not yet.

        Raises:
            CommandError: pretraining failed.
        """
        settings = self.recipes.pretraining(
            self.data, host, self.corpora, self.budget.pretrain_steps
        )
        train = CorpusConfig(**settings["data"]["train"][0])
        digest = digest_of(_unplaced(settings, self.corpora), open_split(train).fingerprint)
        out = self.folder / "bases" / f"{self.data}.{host}.{digest[:8]}"
        if not (out / "release" / CHECKSUMS).exists():
            print(f"pretraining {host} on {self.data}", flush=True)
            self._run("pretrain", {**settings, "out": str(out)}, out)
        return out / "release"

    def cell(self, cell: Cell) -> Kept:
        """A run, made where it is not there yet.

        Raises:
            CommandError: it failed.
        """
        base = self.base(cell.host) if cell.start == PRETRAINED else None
        settings = self.recipes.finetuning(cell, self.corpora, self.budget.steps, base)
        digest = self._digest(settings, base)
        place = self.folder / "cells" / f"{cell.name}.json"
        found = read_kept(place, cell, digest)
        if found is not None:
            return found
        out = self.folder / "runs" / f"{cell.name}.{digest[:8]}"
        print(f"{cell.name} ...", end=" ", flush=True)
        begun = time.perf_counter()
        self._run("finetune.refcoco", {**settings, "out": str(out)}, out)
        seconds = time.perf_counter() - begun
        result = self._keep(place, cell, digest, out, seconds)
        accuracy = 100 * result.figures["acc@0.5"]
        print(f"{accuracy:.1f} % in {seconds:.0f} s", flush=True)
        return result

    def _digest(self, settings: Settings, base: Path | None) -> str:
        train = settings["data"]["train"]
        measured = settings["data"]["evaluate"][0]
        corpora = [open_split(CorpusConfig(**one)).fingerprint for one in (train, measured)]
        plain = _unplaced({k: v for k, v in settings.items() if k != "init"}, self.corpora)
        started = "" if base is None else (base / CHECKSUMS).read_text(encoding="utf-8")
        return digest_of(plain, *corpora, started)

    def _keep(self, place: Path, cell: Cell, digest: str, out: Path, seconds: float) -> Kept:
        """Moves what is wanted of a run to its place; the JSON comes last and makes it count."""
        split = self.recipes.data[self.data].evaluate
        results = json.loads((out / "results.json").read_text(encoding="utf-8"))[split]
        release = place.with_suffix(".release")
        predictions = place.with_suffix(".jsonl")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        shutil.rmtree(release, ignore_errors=True)
        shutil.copytree(out / "release", release)
        shutil.copy(out / "predictions" / f"{split}.jsonl", predictions)
        kept = {
            "cell": asdict(cell),
            "digest": digest,
            "figures": results[MODEL]["merged"]["all"],
            "constant": results[CONSTANT]["merged"]["all"],
            "seconds": seconds,
        }
        write_json(place, kept)
        shutil.rmtree(out)  # checkpoints and report: many times what is kept
        found = read_kept(place, cell, digest)
        assert found is not None
        return found

    def _run(self, program: str, settings: Settings, out: Path) -> None:
        config, log = (out.with_name(out.name + end) for end in (".yaml", ".log"))
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        run_command(["-m", program, "--config", str(config)], log)


def read_kept(place: Path, cell: Cell, digest: str) -> Kept | None:
    """A finished run, or None where it is not there or was made by another recipe."""
    if not place.exists():
        return None
    values = json.loads(place.read_text(encoding="utf-8"))
    if values["digest"] != digest:
        print(f"{cell.name} was made by another recipe, base or corpus: again", flush=True)
        return None
    return Kept(
        cell=cell,
        digest=digest,
        figures=values["figures"],
        constant=values["constant"],
        predictions=place.with_suffix(".jsonl"),
        release=place.with_suffix(".release"),
        seconds=values["seconds"],
    )


def run_command(
    words: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> None:
    """Runs Python with these words in the repository's root, its output in a file.

    Raises:
        CommandError: its status is not 0; the message has the end of the output.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as output:
        output.write(f"$ {shlex.join(['python', *words])}\n")
        output.flush()
        done = subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:]
        raise CommandError(
            f"`{shlex.join(['python', *words])}` ended with status {done.returncode}; {log} ends\n"
            + "\n".join(tail)
        )


def write_json(place: Path, values: object) -> None:
    """Writes values aside and renames the file, which so is whole or not there."""
    place.parent.mkdir(parents=True, exist_ok=True)
    aside = place.with_name(f".{place.name}.{os.getpid()}")
    with aside.open("w", encoding="utf-8") as file:
        file.write(json.dumps(values, indent=1, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, place)


def digest_of(*parts: object) -> str:
    """Of plain values, the order of keys aside."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _unplaced(settings: Settings, corpora: Path) -> Settings:
    """Settings whose paths do not say where the corpora are, so that they may be moved."""
    plain: Settings = json.loads(json.dumps(settings).replace(str(corpora), ""))
    return plain
