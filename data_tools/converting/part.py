"""Writes one part: read, prepare, write.

What is in memory at a time: the annotations that the source holds, one photo, and of the part its
index rows and the list of its bad samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from data_tools.converting.plan import Plan
from data_tools.prepare import prepare
from data_tools.sources.base import Bad, Draft
from wholegrain.data.part import PartWriter
from wholegrain.data.shard_image import MAX_IMAGE_BYTES
from wholegrain.errors import RecordError


def write_part(plan: Plan, folder: Path, number: int, saw: Callable[[Bad | None], None]) -> None:
    """Writes part ``number`` of a plan into ``folder``, the same bytes whoever does it.

    The part's notes say how many samples were ``seen``, which were ``skipped`` as bad, and what
    was ``left_out`` by rule.

    Args:
        saw: called after each sample, with what is wrong with it; may raise to stop the work.

    Raises:
        DataError: the folder cannot be written, or the source cannot be read.
    """
    left_out: Counter[str] = Counter()
    skipped: list[Bad] = []
    seen = 0
    size = plan.options.shard_size
    with PartWriter(folder, number, max_samples=size, label=plan.options.out) as part:
        for item in plan.source.read(*plan.units(number), left_out):
            bad = item if isinstance(item, Bad) else _take(plan, part, item, left_out)
            seen += 1
            if bad is not None:
                skipped.append(bad)
            saw(bad)
        part.notes = {
            "seen": seen,
            "skipped": [_noted(bad) for bad in skipped],
            "left_out": dict(+left_out),
        }


def _noted(bad: Bad) -> dict[str, str]:
    """The sample as JSON can hold it: names of files need not be UTF-8."""
    return {
        field: value.encode("utf-8", "backslashreplace").decode()
        for field, value in asdict(bad).items()
    }


def _take(plan: Plan, part: PartWriter, draft: Draft, left_out: Counter[str]) -> Bad | None:
    if plan.exclusion is not None and (reason := plan.exclusion.reason(draft)) is not None:
        left_out[f"excluded: {reason}"] += 1
        return None
    ready = prepare(draft, plan.options.max_side, left_out)
    if isinstance(ready, Bad):
        return ready
    if len(ready.image) > MAX_IMAGE_BYTES:
        detail = f"{draft.where}: {len(ready.image)} bytes, above the limit of {MAX_IMAGE_BYTES}"
        return Bad(draft.id, "image: too large", detail)
    try:
        part.write(ready.record, ready.image, ready.kind)
    except RecordError as error:
        # Told from the annotation's place: the output's may not be part of the result.
        detail = str(RecordError(draft.where, error.field, error.value, error.remedy))
        return Bad(draft.id, f"record: {error.field}", detail)
    return None
