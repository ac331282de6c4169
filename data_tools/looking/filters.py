"""Which records are meant: by source, by grain, by what is said."""

from __future__ import annotations

import argparse
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from wholegrain.data.record import Record

GRAINS = ("image", "region", "object")
"""``image``: captions; ``region``: phrases and expressions; ``object``: names of objects."""


class TextQuery:
    """Words that must all begin words of one text, or ``/a regular expression/``; case is ignored.

    ``dog`` finds "dogs" and not "hotdog". Letters of scripts without case (Chinese, Arabic) may
    stand anywhere, since many of those scripts write words without spaces. The page that
    ``preview`` writes has the same rule in its script.
    """

    def __init__(self, given: str) -> None:
        self.given = given
        if len(given) > 2 and given.startswith("/") and given.endswith("/"):
            self._patterns = [re.compile(given[1:-1], re.IGNORECASE)]
        else:
            self._patterns = [_word_pattern(word) for word in given.split()]

    def found_in(self, text: str) -> bool:
        """Whether the text is meant."""
        return all(pattern.search(text) for pattern in self._patterns)


@dataclass(frozen=True, slots=True)
class RecordFilter:
    """Conditions that a record must meet; None sets no condition.

    ``text`` must be found in something that is said at ``grain``.
    """

    source: str | None = None
    grain: str | None = None
    text: TextQuery | None = None

    def __bool__(self) -> bool:
        return any(part is not None for part in (self.source, self.grain, self.text))

    def __str__(self) -> str:
        parts = {
            "source": self.source,
            "grain": self.grain,
            "text": self.text.given if self.text else None,
        }
        return ", ".join(f"{name} {value}" for name, value in parts.items() if value is not None)

    def matches(self, record: Record) -> bool:
        """Whether the record is meant."""
        if self.source is not None and record.source != self.source:
            return False
        if self.grain is None and self.text is None:
            return True
        query = self.text
        return any(query is None or query.found_in(text) for text in said(record, self.grain))


def said(record: Record, grain: str | None) -> Iterator[str]:
    """What the record says at a grain (None: at all); a region's attributes are one text."""
    if grain in (None, "image"):
        yield from record.captions
    for region in record.regions:
        if grain in (None, region.grain):
            yield from region.texts
            if region.attributes:
                yield ", ".join(region.attributes)
    if grain in (None, "region"):
        for absent in record.absent:
            yield from absent.texts


def add_filter_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that choose records."""
    parser.add_argument("--split", help="this split only")
    parser.add_argument("--source", help="records of this source only")
    parser.add_argument(
        "--grain", choices=GRAINS, help="captions, region phrases or object names only"
    )
    parser.add_argument(
        "--text",
        type=text_query,
        metavar="WORDS",
        help="records of which a text holds these words, or matches /a regular expression/",
    )


def filter_of(args: argparse.Namespace) -> RecordFilter:
    """The filter that the options ask for; the split is the corpus's own affair."""
    return RecordFilter(args.source, args.grain, args.text)


def text_query(given: str) -> TextQuery:
    """Type of ``--text``."""
    try:
        query = TextQuery(given)
    except re.error as error:
        raise argparse.ArgumentTypeError(
            f"{given!r} is no regular expression ({error}); mend it, or leave the slashes out"
        ) from None
    if not given.strip():
        raise argparse.ArgumentTypeError(f"{given!r} holds no word")
    return query


def _word_pattern(word: str) -> re.Pattern[str]:
    first = word[0]
    anywhere = unicodedata.category(first) == "Lo" or not re.match(r"\w", first)
    return re.compile(("" if anywhere else r"(?<!\w)") + re.escape(word), re.IGNORECASE)
