"""Text: how an expression becomes token ids.

Texts start with ``[CLS]`` and carry no ``[SEP]``, as in X-VLM (see docs). The tokenizer is a
lower-casing WordPiece of the ``tokenizers`` library: the genuine BERT vocabulary from
``vocab.txt``, or one learnt from the corpus where a small model should not pay for 30,522 rows.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as _Tokenizer
from torch import Tensor

from wholegrain.errors import DataError, TextError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_DELETED = re.compile(r"[,.'!?\"()*#:;~]")
_SPACED = re.compile(r"[-/]")
_MAX_LETTERS = 200  # rarer ones become [UNK] when a vocabulary is learnt
_MAX_WORDS_HELD = 50_000  # a caption corpus has fewer; past it, rare words are cut anew each time
_MAX_CHARACTERS = 100_000  # far above any caption; bounds the work that one hostile text can cause


def normalise_text(text: str, max_words: int | None = None) -> str:
    """Lower-cases, drops punctuation, and keeps the first `max_words` words.

    X-VLM's rule: ``, . ' ! ? " ( ) * # : ; ~`` vanish, ``-`` and ``/`` become a space,
    ``<person>`` becomes ``person``.

    Raises:
        TextError: nothing is left to encode.
    """
    return " ".join(_words(text, max_words))


def _words(text: str, most: int | None) -> list[str]:
    cleaned = _DELETED.sub("", text[:_MAX_CHARACTERS].lower())
    cleaned = _SPACED.sub(" ", cleaned).replace("<person>", "person")
    words = cleaned.split()
    if not words:
        raise TextError(f"the text {text[:60]!r} is empty once cleaned; give at least one word")
    return words if most is None else words[:most]


class Tokenizer:
    """WordPiece ids for captions and expressions; wraps a `tokenizers.Tokenizer`."""

    def __init__(self, backend: _Tokenizer) -> None:
        self._backend = backend
        pieces: dict[str, int] = backend.get_vocab()
        missing = [token for token in SPECIAL_TOKENS if token not in pieces]
        if missing:
            raise DataError(f"the vocabulary lacks {', '.join(missing)}; use a BERT vocabulary")
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            pieces[token] for token in SPECIAL_TOKENS
        )
        ordered = sorted(pieces, key=pieces.__getitem__)
        if [pieces[piece] for piece in ordered] != list(range(len(ordered))):
            raise DataError(
                f"the vocabulary's {len(ordered):,} pieces are not numbered 0 to "
                f"{len(ordered) - 1:,}; look for a piece that occurs twice"
            )
        self._pieces = ordered
        self._opens = [not piece.startswith("##") for piece in ordered]
        self._by_word = _cuts_by_word(backend)
        self._known: dict[str, tuple[int, ...]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": {}}  # a worker fills its own

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return int(self._backend.get_vocab_size())

    def encode(self, text: str, max_tokens: int = 40, max_words: int | None = None) -> list[int]:
        """``[CLS]`` and the first ``max_tokens - 1`` word pieces of the normalised text.

        Raises:
            TextError: the text holds no word.
        """
        words = _words(text, max_words if max_words is not None else max_tokens)
        ids = [self.cls_id]
        if not self._by_word:
            ids += self.pieces(" ".join(words))
            return ids[:max_tokens]
        # Word by word, because the library takes 30 microseconds for a call of any length, and
        # texts are made of the same words.
        known = self._known
        for word in words:
            found = known.get(word)
            if found is None:
                found = tuple(self.pieces(word))
                if len(known) < _MAX_WORDS_HELD and len(word) <= _MAX_LETTERS:
                    known[word] = found
            ids += found
        return ids[:max_tokens]

    def encode_batch(self, texts: Sequence[str], max_tokens: int = 40) -> tuple[Tensor, Tensor]:
        """Token ids (T, L), padded at the end, and the mask bool (T, L), True at tokens."""
        encoded = [self.encode(text, max_tokens) for text in texts]
        longest = max((len(ids) for ids in encoded), default=1)
        ids = torch.full((len(encoded), longest), self.pad_id)
        for row, one in enumerate(encoded):
            ids[row, : len(one)] = torch.tensor(one)
        lengths = torch.tensor([len(one) for one in encoded], dtype=torch.long)
        return ids, torch.arange(longest) < lengths[:, None]

    def pieces(self, text: str) -> list[int]:
        """Word-piece ids of a text exactly as the vocabulary's BERT would cut it, nothing added."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def word_starts(self, ids: Iterable[int]) -> list[bool]:
        """True where a token opens a word, False where it continues one (``##``)."""
        opens = self._opens
        return [opens[i] for i in ids]

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The word pieces behind ids, for people to read."""
        return [self._pieces[i] for i in ids]

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 4000) -> Tokenizer:
        """Learns a WordPiece vocabulary; the same texts give the same one, in every process."""
        backend = _wordpiece({})
        cleaned = [_cleaned(text) for text in texts]
        alphabet, continued = _letters(backend, cleaned)
        # The trainer settles ties by ids, and numbers continued letters in the order of a randomly
        # seeded hash table. Named as special tokens they have their ids before it looks.
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[*SPECIAL_TOKENS, *(f"##{letter}" for letter in continued)],
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        )
        backend.train_from_iterator(cleaned, trainer)
        pieces = sorted(set(backend.get_vocab()) - set(SPECIAL_TOKENS))
        ordered = [*SPECIAL_TOKENS, *pieces]
        return cls(_wordpiece({piece: index for index, piece in enumerate(ordered)}))

    @classmethod
    def from_vocab(cls, path: Path | str) -> Tokenizer:
        """Reads a BERT ``vocab.txt``: one piece a line, the line number is the id."""
        # Not `splitlines`: a vocabulary may hold Unicode's own line separators as pieces.
        lines = [line.rstrip("\r") for line in _read_text(Path(path)).split("\n")]
        if not lines[-1]:
            lines.pop()
        try:
            return cls(_wordpiece({piece: index for index, piece in enumerate(lines)}))
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """Reads a ``tokenizer.json``."""
        try:
            return cls(_Tokenizer.from_str(_read_text(Path(path))))
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        except Exception as error:  # the library raises bare Exception for any malformed file
            raise DataError(f"{path}: not a tokenizer file ({error}); export it again") from error

    def to_json(self) -> str:
        """``tokenizer.json``'s text, which `tokenizers` and `transformers` read as well."""
        return json.dumps(json.loads(self._backend.to_str()), ensure_ascii=False, indent=1)

    def save(self, path: Path | str) -> None:
        """Writes ``tokenizer.json``."""
        Path(path).write_text(self.to_json(), encoding="utf-8")


def _cuts_by_word(backend: _Tokenizer) -> bool:
    """Whether a text's pieces are surely those of its words, one after the other.

    So it is where the text is cleaned letter by letter and cut at each space, as BERT's is. A
    ``tokenizer.json`` of another kind may look across spaces.
    """
    return (
        isinstance(backend.model, models.WordPiece)
        and isinstance(backend.normalizer, normalizers.BertNormalizer)
        and isinstance(backend.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
        and backend.truncation is None
        and backend.padding is None
        and not any(token.content.strip().count(" ") for token in _added(backend))
    )


def _added(backend: _Tokenizer) -> Iterable[AddedToken]:
    """Tokens that are looked for in the text before it is cut into words."""
    return backend.get_added_tokens_decoder().values()


def _cleaned(text: str) -> str:
    try:
        return normalise_text(text)
    except TextError:
        return ""


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); check the path") from error


def _wordpiece(vocabulary: dict[str, int]) -> _Tokenizer:
    backend = _Tokenizer(
        models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100)
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.add_special_tokens([t for t in SPECIAL_TOKENS if t in vocabulary])
    return backend


def _letters(backend: _Tokenizer, texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The most frequent letters, and those of them that occur inside a word; both sorted."""
    counts: Counter[str] = Counter()
    inside: set[str] = set()
    for word, count in Counter(word for text in texts for word in text.split()).items():
        normal = backend.normalizer.normalize_str(word)
        for part, _ in backend.pre_tokenizer.pre_tokenize_str(normal):
            inside.update(part[1:])
            for letter in part:
                counts[letter] += count
    kept = sorted(counts, key=lambda letter: (-counts[letter], letter))[:_MAX_LETTERS]
    return sorted(kept), sorted(inside.intersection(kept))
