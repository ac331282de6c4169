"""Makes the corpus of the parts, or refuses it because too many samples are bad."""

from __future__ import annotations

import json
import os
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from data_tools.converting.judge import Judge
from data_tools.converting.plan import Plan
from data_tools.converting.work import LOCK, WorkFolder
from wholegrain.data.assemble import Tally
from wholegrain.data.corpus_manifest import MANIFEST, read_manifest
from wholegrain.data.part import assemble, read_part
from wholegrain.data.shard_folder import publish_folder
from wholegrain.errors import DataError

SKIPPED = "skipped.jsonl"


def merge(plan: Plan, work: WorkFolder) -> dict[str, Any]:
    """Assembles the parts in ``work``, which the caller holds alone, and moves the whole to OUT.

    A killed run is simply repeated.

    Returns:
        The manifest.

    Raises:
        DataError: too many samples are bad, an id occurs twice in a split, OUT is taken, or the
            disk is full. The parts stay.
    """
    try:
        return _merge(plan, work)
    except OSError as error:
        raise DataError(
            f"{work.path}: cannot be written ({error.strerror}); free space and run the same "
            "command again"
        ) from error


def _merge(plan: Plan, work: WorkFolder) -> dict[str, Any]:
    out = Path(os.path.abspath(plan.options.out))
    if work.assembled():
        manifest = read_manifest(work.path)
    else:
        work.sweep()
        source = _describe(plan, work.path)
        manifest = assemble(work.path, plan.parts, name=plan.name, source=source)
    work.clear()
    publish_folder(work.path, out, overwrite=plan.options.overwrite, marker=MANIFEST)
    (out / LOCK).unlink(missing_ok=True)
    return manifest


def _describe(plan: Plan, folder: Path) -> dict[str, Any]:
    """What the manifest says of the source; writes the list of bad samples beside the parts."""
    judge = Judge(plan.options.out, plan.options.max_bad, plan.total)
    left_out = Counter(plan.source.left_out)
    tally = Tally()
    aside = folder / f".{SKIPPED}.partial-{os.uname().nodename}-{os.getpid()}"
    with ExitStack() as stack:
        stack.callback(aside.unlink, missing_ok=True)
        file = stack.enter_context(aside.open("w", encoding="utf-8"))
        for number in range(plan.parts):
            marker = read_part(folder, number)
            if marker is None:
                raise DataError(f"{folder}: part {number} vanished; run the same command again")
            notes = marker["notes"]
            judge.saw_part(notes)
            left_out.update(notes["left_out"])
            tally.update(Tally(marker["splits"]))
            _list(file, notes["skipped"])
        judge.finish()
        file.flush()
        os.fsync(file.fileno())
        if judge.causes:
            aside.replace(folder / SKIPPED)
    source: dict[str, Any] = {
        "name": plan.name,
        "converter": plan.source.name,
        "key": plan.key,
        "inputs": plan.source.description,
        "options": plan.deciding,
        "skipped": dict(judge.causes),
        "left_out": dict(+left_out),
    }
    compared = _published(plan, tally, source)
    return source if compared is None else {**source, "published": compared}


def _list(file: TextIO, skipped: list[dict[str, str]]) -> None:
    for bad in skipped:
        file.write(json.dumps(bad, ensure_ascii=False) + "\n")


def _published(plan: Plan, tally: Tally, source: dict[str, Any]) -> dict[str, Any] | None:
    """How the counts differ from those published of this set; None where there are none."""
    name = plan.source.published
    if name is None or plan.options.limit is not None:
        return None
    from data_tools.published import compare

    counted = {
        "name": plan.name,
        "source": source,
        "counts": tally.counts(),
        "splits": tally.splits(),
        "split_counts": tally.split_counts(),
    }
    return {"set": name, "differences": compare(name, counted, Counter(source["left_out"]))}
