"""Text: cleaning, word pieces, and vocabularies."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as _Tokenizer

from wholegrain.errors import DataError, TextError
from wholegrain.text import SPECIAL_TOKENS, Tokenizer, normalise_text

CORPUS = [
    "a man in a red shirt rides a horse",
    "the red horse on the left",
    "a woman holds a small red umbrella",
    "two small dogs run on the beach",
    "the man left of the two dogs",
] * 3


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("A Man, in RED.", "a man in red"),
        ("don't! stop? (now) *#:;~\"", "dont stop now"),
        ("left-most / right", "left most right"),
        ("the <person> there", "the person there"),
        ("  many \t blanks \n here ", "many blanks here"),
        ("straße & co", "straße & co"),
    ],
)
def test_normalise(raw: str, clean: str) -> None:
    assert normalise_text(raw) == clean


def test_normalise_keeps_the_first_words() -> None:
    assert normalise_text("one two - three four", max_words=3) == "one two three"


@pytest.mark.parametrize("empty", ["", "  ", "?!", "- / -", "\n"])
def test_nothing_left_is_an_error(empty: str) -> None:
    with pytest.raises(TextError, match="empty once cleaned"):
        normalise_text(empty)


@given(st.text(max_size=60))
def test_normalise_is_idempotent(text: str) -> None:
    try:
        clean = normalise_text(text)
    except TextError:
        return
    assert normalise_text(clean) == clean
    assert clean == " ".join(clean.split())


def test_a_hostile_length_costs_little(letters: Tokenizer) -> None:
    assert len(letters.encode("a " * 5_000_000, max_tokens=8)) == 8


def test_pieces_equal_the_reference(real_data: Path) -> None:
    """BERT's own tokenizer, on sentences of real data sets."""
    folder = real_data / "tokenizer"
    tokenizer = Tokenizer.from_vocab(folder / "bert-base-uncased-vocab.txt")
    assert tokenizer.vocab_size == 30_522
    count = 0
    for line in (folder / "expected.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        ids = [tokenizer.cls_id, *tokenizer.pieces(row["text"]), tokenizer.sep_id]
        assert ids == row["ids"], row["text"]
        if "tokens" in row:
            assert tokenizer.tokens(ids) == row["tokens"]
        count += 1
    assert count > 100


def test_encode_starts_with_cls_and_has_no_sep(letters: Tokenizer) -> None:
    ids = letters.encode("Ab c!")
    assert letters.tokens(ids) == ["[CLS]", "a", "##b", "c"]
    assert letters.word_starts(ids) == [True, True, False, True]


def test_encode_cuts(letters: Tokenizer) -> None:
    assert len(letters.encode("abcdefgh ij", max_tokens=4)) == 4
    assert letters.tokens(letters.encode("a b c d", max_words=2)) == ["[CLS]", "a", "b"]


def _encoded_at_once(tokenizer: Tokenizer, text: str, max_tokens: int) -> list[int]:
    """`Tokenizer.encode` without its memory of words: the whole text through the library."""
    pieces = tokenizer.pieces(normalise_text(text, max_tokens))
    return [tokenizer.cls_id, *pieces][:max_tokens]


def test_encoding_by_words_equals_encoding_at_once(real_data: Path) -> None:
    folder = real_data / "tokenizer"
    tokenizer = Tokenizer.from_vocab(folder / "bert-base-uncased-vocab.txt")
    texts = [
        json.loads(line)["text"]
        for line in (folder / "expected.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    texts += ["don't [MASK] [cls]", "naïve café 東京 tower", "a\u00adb\u200bc x\u0301y", "w" * 300]
    for text in texts * 2:  # a second time from memory
        for most in (5, 40):
            try:
                wanted = _encoded_at_once(tokenizer, text, most)
            except TextError:
                continue
            assert tokenizer.encode(text, most) == wanted, text


@given(st.text(max_size=40), st.integers(2, 12))
def test_any_text_by_words_equals_it_at_once(letters: Tokenizer, text: str, most: int) -> None:
    try:
        wanted = _encoded_at_once(letters, text, most)
    except TextError:
        return
    assert letters.encode(text, most) == wanted


def test_a_vocabulary_that_looks_across_words_is_asked_for_whole_texts(letters: Tokenizer) -> None:
    backend = _Tokenizer.from_str(letters.to_json())
    backend.add_tokens(["a b"])
    odd = Tokenizer(backend)
    assert odd.encode("a b c", 9) == _encoded_at_once(odd, "a b c", 9)
    assert len(odd.encode("a b c", 9)) == 3
    again = pickle.loads(pickle.dumps(letters))  # as a loader worker gets it
    assert again.encode("ab c") == letters.encode("ab c")


def test_encode_refuses_an_empty_text(letters: Tokenizer) -> None:
    with pytest.raises(TextError):
        letters.encode("...")


def test_special_tokens_cannot_be_written_by_a_user(letters: Tokenizer) -> None:
    ids = letters.encode("[MASK] [CLS] [PAD]")
    assert letters.mask_id not in ids
    assert letters.pad_id not in ids
    assert ids.count(letters.cls_id) == 1


def test_encode_batch_pads_at_the_end(letters: Tokenizer) -> None:
    ids, mask = letters.encode_batch(["abc", "d"])
    assert ids.shape == mask.shape == (2, 4)
    assert mask.dtype == torch.bool
    assert ids[0].tolist() == letters.encode("abc")
    assert ids[1].tolist() == [*letters.encode("d"), letters.pad_id, letters.pad_id]
    assert mask.tolist() == [[True] * 4, [True, True, False, False]]


def test_encode_batch_of_nothing(letters: Tokenizer) -> None:
    ids, mask = letters.encode_batch([])
    assert ids.shape == mask.shape == (0, 1)


def test_train_learns_the_corpus() -> None:
    tokenizer = Tokenizer.train(CORPUS, vocab_size=200)
    assert tokenizer.vocab_size <= 200
    assert [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id] == [0, 1, 2]
    words = tokenizer.tokens(tokenizer.encode("the red horse"))
    assert words == ["[CLS]", "the", "red", "horse"]
    assert tokenizer.unk_id in tokenizer.encode("ж")


def test_train_survives_texts_without_words() -> None:
    assert Tokenizer.train(["...", "", *CORPUS]).vocab_size == Tokenizer.train(CORPUS).vocab_size


PROGRAM = """
import sys
from wholegrain.text import Tokenizer
sys.stdout.write(Tokenizer.train({corpus!r}, vocab_size=90).to_json())
"""


def test_training_is_the_same_in_every_process() -> None:
    """The library's hash tables are seeded anew in each process; ids must not follow them."""
    program = [sys.executable, "-c", PROGRAM.format(corpus=CORPUS)]
    there = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    assert there == Tokenizer.train(CORPUS, vocab_size=90).to_json()


def test_save_and_load(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(CORPUS, vocab_size=200)
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.to_json() == tokenizer.to_json()
    for text in (*CORPUS[:5], "unseen wordings ж"):
        assert again.encode(text) == tokenizer.encode(text)
    assert again.word_starts(range(again.vocab_size)) == tokenizer.word_starts(
        range(tokenizer.vocab_size)
    )


def test_saved_file_is_read_by_transformers(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.train(CORPUS, vocab_size=200)
    tokenizer.save(tmp_path / "tokenizer.json")
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    text = "a woman left of the umbrella"
    assert theirs.encode(text, add_special_tokens=False) == tokenizer.pieces(text)


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.json: cannot be read"):
        Tokenizer.load(tmp_path / "absent.json")
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    with pytest.raises(DataError, match=r"broken\.json: not a tokenizer file"):
        Tokenizer.load(broken)
    binary = tmp_path / "vocab.txt"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"vocab\.txt: cannot be read"):
        Tokenizer.from_vocab(binary)


def test_vocabulary_without_special_tokens(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\na\nb\n")
    with pytest.raises(DataError, match=r"vocab\.txt: .*lacks \[CLS\], \[SEP\], \[MASK\]"):
        Tokenizer.from_vocab(path)


def test_vocabulary_with_a_piece_twice(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*SPECIAL_TOKENS, "a", "a", "b"]))
    with pytest.raises(DataError, match="occurs twice"):
        Tokenizer.from_vocab(path)


def test_vocabulary_may_hold_unusual_line_separators(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes("\r\n".join([*SPECIAL_TOKENS, "\u2028", "a"]).encode())
    tokenizer = Tokenizer.from_vocab(path)
    assert tokenizer.vocab_size == 7
    assert tokenizer.encode("a") == [2, 6]
