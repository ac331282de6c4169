"""Which texts are frequent, and how many occur more than once, in bounded memory."""

from __future__ import annotations

from collections import Counter

from wholegrain.data.index_file import id_hash

_MAX_SHOWN = 160
"""Characters of a long text that are kept and shown; its hash keeps it apart from others."""
_HASHES = 1 << 64


class TextCounts:
    """Counts texts, in lower case and with single spaces.

    Up to ``most`` different texts are counted exactly. Beyond that, frequent texts are counted by
    the Misra-Gries rule, at most ``lost`` too low; and the numbers of different and of repeated
    texts come from a sample of texts chosen by hash, whose share halves whenever it is full.
    """

    def __init__(self, most: int = 200_000) -> None:
        self.total = 0
        self.lost = 0
        self._most = most
        self._counts: Counter[str] = Counter()
        self._by_hash: Counter[int] | None = None
        """None as long as all texts fit into ``_counts``."""
        self._below = _HASHES

    def __bool__(self) -> bool:
        return self.total > 0

    def add(self, text: str) -> None:
        """Counts one text."""
        text = " ".join(text.lower().split())
        if len(text) > _MAX_SHOWN:
            text = f"{text[: _MAX_SHOWN - 1]}…\0{id_hash(text):016x}"
        self.total += 1
        self._counts[text] += 1
        if self._by_hash is not None:
            self._add_hash(id_hash(text), 1)
        if len(self._counts) > self._most:
            self._overflow()

    @property
    def exact(self) -> bool:
        """Nothing was estimated."""
        return self._by_hash is None

    @property
    def different(self) -> int:
        """How many different texts there are."""
        if self._by_hash is None:
            return len(self._counts)
        return round(len(self._by_hash) * _HASHES / self._below)

    @property
    def repeated_share(self) -> float:
        """The share of all texts that occur more than once among them."""
        counts = list((self._counts if self._by_hash is None else self._by_hash).values())
        return sum(n for n in counts if n > 1) / max(1, sum(counts))

    def most_common(self, most: int) -> list[tuple[str, int]]:
        """The most frequent texts, the frequent first and equals by alphabet."""
        found = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))[:most]
        return [(text.partition("\0")[0] if "…\0" in text else text, n) for text, n in found]

    def _overflow(self) -> None:
        """Takes as much from every count as removes half of the texts or more."""
        if self._by_hash is None:
            self._by_hash = Counter()
            for text, count in self._counts.items():
                self._add_hash(id_hash(text), count)
        cut = sorted(self._counts.values())[len(self._counts) // 2]
        self.lost += cut
        self._counts = Counter({text: n - cut for text, n in self._counts.items() if n > cut})

    def _add_hash(self, key: int, count: int) -> None:
        assert self._by_hash is not None
        if key >= self._below:
            return
        self._by_hash[key] += count
        if len(self._by_hash) > self._most:
            self._below //= 2
            self._by_hash = Counter({k: n for k, n in self._by_hash.items() if k < self._below})
