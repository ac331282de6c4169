"""The smallest whole model and its tokenizer, for tests of what is built around them."""

import string
from collections.abc import Callable

import pytest

from wholegrain.model.config import MmcaConfig, ModelConfig, TextConfig, VitVision
from wholegrain.text import SPECIAL_TOKENS, Tokenizer

PIECES = [*SPECIAL_TOKENS, *string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase)]


@pytest.fixture(scope="session")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer of 57 pieces that spells every word of Latin letters."""
    vocabulary = tmp_path_factory.mktemp("letters") / "vocab.txt"
    vocabulary.write_text("\n".join(PIECES))
    return Tokenizer.from_vocab(vocabulary)


@pytest.fixture(scope="session")
def small_config() -> Callable[[MmcaConfig | None], ModelConfig]:
    """Makes the configuration of a model that is built and run in milliseconds."""

    def make(adapter: MmcaConfig | None = None) -> ModelConfig:
        return ModelConfig(
            vision=VitVision(image_size=32, patch_size=8, width=24, depth=2, heads=2),
            text=TextConfig(
                vocab_size=len(PIECES),
                hidden_size=24,
                layers=2,
                fusion_layer=1,
                heads=2,
                intermediate_size=32,
                max_positions=40,
            ),
            embed_dim=8,
            adapters=(adapter,) if adapter else (),
        )

    return make
