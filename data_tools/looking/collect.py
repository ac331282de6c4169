"""Figures of a corpus, counted record by record in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from data_tools.looking.distribution import Distribution, Scale
from data_tools.looking.text_counts import TextCounts
from wholegrain.data.record import Record, Region

TokenCounter = Callable[[str], int]
COUNTS = ("images", "captions", "regions", "phrases", "objects", "expressions")
KINDS = {"captions": "image", "phrases": "region", "objects": "object"}
"""Kinds of texts, and their grain."""
_MAX_SOURCES = 1000
OTHERS = "others"


@dataclass(frozen=True, slots=True)
class Quantity:
    """One thing that is measured of each text, photo or box.

    ``name`` is its key in the figures, ``title`` its heading, ``about`` the part of the page. A
    ``ratio`` is written as 1:2 to 2:1.
    """

    name: str
    title: str
    about: str
    scale: Scale
    ratio: bool = False


QUANTITIES = {
    quantity.name: quantity
    for quantity in (
        Quantity("caption words", "words a caption", "Texts", "whole"),
        Quantity("phrase words", "words a phrase", "Texts", "whole"),
        Quantity("caption tokens", "tokens a caption", "Texts", "whole"),
        Quantity("phrase tokens", "tokens a phrase", "Texts", "whole"),
        Quantity("object tokens", "tokens an object", "Texts", "whole"),
        Quantity("captions of an image", "captions a photo", "Photos", "whole"),
        Quantity("image width px", "width, px", "Photos", "whole"),
        Quantity("image height px", "height, px", "Photos", "whole"),
        Quantity("image megapixels", "megapixels", "Photos", "log"),
        Quantity("image width/height", "aspect, w : h", "Photos", "log", ratio=True),
        Quantity("boxes in an image", "boxes a photo", "Boxes", "whole"),
        Quantity("region % of image", "region area, %", "Boxes", "log"),
        Quantity("region width/height", "region, w : h", "Boxes", "log", ratio=True),
        Quantity("object % of image", "object area, %", "Boxes", "log"),
        Quantity("object width/height", "object, w : h", "Boxes", "log", ratio=True),
    )
}


@dataclass
class Group:
    """Counts and distributions of some of the records, those of a split for instance."""

    counts: Counter[str] = field(default_factory=Counter)
    values: dict[str, Distribution] = field(default_factory=dict)

    def measure(self, name: str, value: float) -> None:
        """Counts one value of the quantity ``name``."""
        values = self.values.get(name)
        if values is None:
            values = self.values[name] = Distribution(QUANTITIES[name].scale)
        values.add(value)

    def merge(self, other: Group) -> None:
        """Takes in all that another group has counted."""
        self.counts.update(other.counts)
        for name, values in other.values.items():
            mine = self.values.setdefault(name, Distribution(values.scale))
            mine.merge(values)


class Stats:
    """What the records read hold.

    Args:
        grain: counts only what is said at this grain; None counts all.
        count_tokens: gives a text's length in tokens; None leaves tokens uncounted.
        max_tokens: the length beyond which training would cut a text.
    """

    def __init__(
        self,
        grain: str | None = None,
        count_tokens: TokenCounter | None = None,
        max_tokens: int = 40,
    ) -> None:
        self.grain, self.max_tokens = grain, max_tokens
        self.counts_tokens = count_tokens is not None
        self._count_tokens = count_tokens
        self.splits: dict[str, Group] = {}
        self.sources: dict[str, Counter[str]] = {}
        self.texts = {kind: TextCounts() for kind in KINDS}
        self.too_long: Counter[str] = Counter()
        """Texts of more than ``max_tokens`` tokens, by kind."""

    def add(self, record: Record) -> None:
        """Counts one record."""
        group = self.splits.setdefault(record.split, Group())
        counts: Counter[str] = Counter(images=1)
        self._add_photo(record, group)
        if self._counts("image"):
            counts["captions"] = len(record.captions)
            group.measure("captions of an image", len(record.captions))
            for text in record.captions:
                self._add_text("captions", "caption", text, group)
        boxes = [region for region in record.regions if self._counts(region.grain)]
        if self._counts("region") or self._counts("object"):
            group.measure("boxes in an image", len(boxes))
        for region in boxes:
            self._add_region(record, region, group, counts)
        if self._counts("region"):
            for absent in record.absent:
                counts["expressions"] += len(absent.texts)
        group.counts.update(counts)
        self._source(record.source).update(counts)

    def all(self) -> Group:
        """All splits together; without boxes, the number of boxes is no quantity."""
        everything = Group()
        for group in self.splits.values():
            everything.merge(group)
        boxes = everything.values.get("boxes in an image")
        if boxes is not None and boxes.greatest == 0:
            del everything.values["boxes in an image"]
        everything.values = {
            name: everything.values[name] for name in QUANTITIES if name in everything.values
        }
        return everything

    def summary(self, top: int) -> dict[str, Any]:
        """All of it as plain JSON values; ``top`` texts of each kind."""
        everything = self.all()
        return {
            "splits": {split: dict(+group.counts) for split, group in self.splits.items()},
            "sources": {source: dict(+counts) for source, counts in self.sources.items()},
            "quantities": _summaries(everything),
            "quantities_by_split": {s: _summaries(group) for s, group in self.splits.items()},
            "texts": {kind: self.text_summary(kind) for kind, texts in self.texts.items() if texts},
            "top": {kind: dict(texts.most_common(top)) for kind, texts in self.texts.items()},
        }

    def text_summary(self, kind: str) -> dict[str, Any]:
        """Count, different ones and shares of a kind of texts."""
        texts = self.texts[kind]
        return {
            "count": texts.total,
            "different": texts.different,
            "repeated_share": round(texts.repeated_share, 5),
            "max_tokens": self.max_tokens,
            "too_long_share": (
                round(self.too_long[kind] / texts.total, 6) if self.counts_tokens else None
            ),
            "counted_exactly": texts.exact,
        }

    def _counts(self, grain: str) -> bool:
        return self.grain in (None, grain)

    def _source(self, source: str) -> Counter[str]:
        # A corpus that gives each record its own source must not fill memory.
        known = source in self.sources or len(self.sources) < _MAX_SOURCES
        return self.sources.setdefault(source if known else OTHERS, Counter())

    def _add_photo(self, record: Record, group: Group) -> None:
        group.measure("image width px", record.width)
        group.measure("image height px", record.height)
        group.measure("image megapixels", record.width * record.height / 1e6)
        group.measure("image width/height", record.width / record.height)

    def _add_region(
        self, record: Record, region: Region, group: Group, counts: Counter[str]
    ) -> None:
        kind = "objects" if region.grain == "object" else "phrases"
        counts["objects" if region.grain == "object" else "regions"] += 1
        counts["phrases"] += len(region.texts) if kind == "phrases" else 0
        counts["expressions"] += len(region.texts) if region.ref else 0
        for text in region.texts:
            self._add_text(kind, "object" if kind == "objects" else "phrase", text, group)
        _, _, width, height = region.box
        if width > 0 and height > 0:
            share = 100 * width * height / (record.width * record.height)
            group.measure(f"{region.grain} % of image", share)
            group.measure(f"{region.grain} width/height", width / height)

    def _add_text(self, kind: str, thing: str, text: str, group: Group) -> None:
        self.texts[kind].add(text)
        if kind != "objects":
            group.measure(f"{thing} words", len(text.split()))
        if self._count_tokens is not None:
            tokens = self._count_tokens(text)
            group.measure(f"{thing} tokens", tokens)
            self.too_long[kind] += tokens > self.max_tokens


def _summaries(group: Group) -> dict[str, dict[str, float]]:
    return {name: values.summary() for name, values in group.values.items() if values.cells}
