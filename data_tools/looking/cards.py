"""A sample as a page shows it: numbered boxes, and texts that know their grain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from markupsafe import Markup

from data_tools.looking.filters import RecordFilter
from wholegrain.data.record import Box, Record, Region

COLOURS = (
    "#ffa02e", "#6ff0d0", "#7db4ff", "#ff7eb6", "#c3f04a",
    "#ffd84d", "#b89cff", "#ff7a5c", "#5fd8ff", "#e6e2da",
)  # fmt: skip
_LONG = 320
"""A text of more characters is shown folded."""


@dataclass(frozen=True, slots=True)
class Text:
    """What is said, at which grain, and how many times."""

    grain: str
    words: str
    times: int = 1

    @property
    def folded(self) -> tuple[str, str]:
        """What is always shown, and what only on request ('' unless the text is long)."""
        if len(self.words) <= _LONG:
            return self.words, ""
        cut = self.words.rfind(" ", _LONG // 2, _LONG)
        cut = cut if cut > 0 else _LONG
        return self.words[:cut], self.words[cut:]


@dataclass(frozen=True, slots=True)
class Mark:
    """Regions of the same boxes as drawn: ``boxes`` xywh px of the stored photo, ``corners`` in %.

    ``grain`` is "object" where all of them are objects. ``attributes`` are by grain.
    """

    number: int
    grain: str
    colour: str
    texts: tuple[Text, ...]
    attributes: tuple[Text, ...]
    references: tuple[str, ...]
    boxes: tuple[Box, ...]
    corners: tuple[tuple[float, float], ...]

    @property
    def grains(self) -> list[str]:
        """The grains of its texts."""
        return sorted({text.grain for text in self.texts})

    @property
    def area(self) -> float:
        """The largest box's, px: small ones are drawn over large ones, to be pointed at."""
        return max(width * height for _, _, width, height in self.boxes)


@dataclass(frozen=True, slots=True)
class Card:
    """A sample, its photo still to be fetched; ``rest`` counts marks beyond the limit."""

    record: Record
    captions: tuple[Text, ...]
    marks: list[Mark]
    absent: tuple[Text, ...]
    rest: int
    photo: Callable[[], str]
    """The photo's address for ``<img src>``; "" where it cannot be shown."""

    @property
    def short(self) -> bool:
        """Names of categories stand in a row, phrases below each other."""
        return all(mark.grain == "object" for mark in self.marks)

    @property
    def alt(self) -> str:
        """The photo in words."""
        said = self.captions[0].words if self.captions else self.record.id
        return said[:_LONG]

    @property
    def drawn(self) -> list[Mark]:
        """Marks in the order in which they are drawn."""
        return sorted(self.marks, key=lambda mark: -mark.area)


def card_of(record: Record, most: int, wanted: RecordFilter, photo: Callable[[], str]) -> Card:
    """The card of a record with at most ``most`` marks, those first that ``wanted`` asks for."""
    regions = sorted(record.regions, key=lambda region: not _is_wanted(region, wanted))
    drawn = marks(record, regions)
    return Card(
        record=record,
        captions=tuple(Text("image", caption) for caption in record.captions),
        marks=drawn[:most],
        absent=tuple(Text("region", text) for absent in record.absent for text in absent.texts),
        rest=max(0, len(drawn) - most),
        photo=photo,
    )


def marks(record: Record, regions: Iterable[Region] | None = None) -> list[Mark]:
    """What to draw, numbered from 1. Regions with the same boxes (object and phrase) share one.

    ``regions`` are the record's, perhaps in another order.
    """
    groups: dict[tuple[Box, ...], list[Region]] = {}
    for region in record.regions if regions is None else regions:
        groups.setdefault(region.boxes or (region.box,), []).append(region)
    return [
        Mark(
            number=number,
            grain="object" if all(region.grain == "object" for region in same) else "region",
            colour=COLOURS[(number - 1) % len(COLOURS)],
            texts=_texts(same),
            attributes=tuple(_attributes(same)),
            references=tuple(f"{r.ref.set} {r.ref.ref_id}" for r in same if r.ref),
            boxes=boxes,
            corners=tuple(
                (round(100 * x / record.width, 3), round(100 * y / record.height, 3))
                for x, y, _, _ in boxes
            ),
        )
        for number, (boxes, same) in enumerate(groups.items(), start=1)
    ]


def highlight_rules(most: int) -> Markup:
    """CSS by which pointing at text or box number 1 to ``most`` singles out the other."""
    rules = []
    for n in range(1, most + 1):
        on = f":is(.r{n}, .b{n}):is(:hover, .on)"
        rules.append(f".card:has({on}) .b{n} {{ opacity: 1 !important; }}")
        rules.append(f".card:has(.b{n}:hover) .r{n} {{ background: var(--wash); }}")
    return Markup("\n".join(rules))


def _is_wanted(region: Region, wanted: RecordFilter) -> bool:
    if wanted.grain not in (None, region.grain):
        return False
    said = (*region.texts, ", ".join(region.attributes))
    return wanted.text is None or any(wanted.text.found_in(text) for text in said)


def _texts(regions: list[Region]) -> tuple[Text, ...]:
    """Texts without repetitions."""
    counts = Counter((region.grain, text) for region in regions for text in region.texts)
    return tuple(Text(grain, text, times) for (grain, text), times in counts.items())


def _attributes(regions: list[Region]) -> Iterator[Text]:
    by_grain: dict[str, dict[str, None]] = {}
    for region in regions:
        if region.attributes:
            by_grain.setdefault(region.grain, {}).update(dict.fromkeys(region.attributes))
    for grain, words in by_grain.items():
        yield Text(grain, ", ".join(words))
