"""Lengths in tokens, as training counts them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from data_tools.looking.collect import TokenCounter
from wholegrain.errors import TextError

_KEPT, _SHORT = 1 << 16, 200


def token_counter(vocabulary: Path) -> TokenCounter:
    """Counts ``[CLS]`` and the word pieces of the cleaned text, before training cuts it.

    Args:
        vocabulary: BERT's ``vocab.txt``, or a ``tokenizer.json``.

    Raises:
        DataError: the file is neither.
    """
    from wholegrain.text import Tokenizer, normalise_text

    load = Tokenizer.load if vocabulary.suffix == ".json" else Tokenizer.from_vocab
    tokenizer = load(vocabulary)

    def count(text: str) -> int:
        try:
            return 1 + len(tokenizer.pieces(normalise_text(text)))
        except TextError:  # only punctuation: nothing but [CLS]
            return 1

    # Names of objects and short phrases recur by the thousand; long texts would fill memory.
    count_again = lru_cache(maxsize=_KEPT)(count)
    return lambda text: count_again(text) if len(text) <= _SHORT else count(text)
