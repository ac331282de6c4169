"""The text encoder against Hugging Face's BERT, and what padding may change: nothing."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from wholegrain.hub.import_xvlm import from_xvlm
from wholegrain.model import kernels, reference
from wholegrain.model.config import TextConfig
from wholegrain.model.packing import Packing
from wholegrain.model.text import MaskedLanguageHead, TextEncoder

CONFIG = TextConfig(
    vocab_size=50,
    hidden_size=24,
    layers=4,
    fusion_layer=3,
    heads=3,
    intermediate_size=40,
    max_positions=20,
)
Words = tuple[Tensor, Tensor]


@pytest.fixture
def pair() -> tuple[TextEncoder, torch.nn.Module]:
    """Our encoder and Hugging Face's with the same random weights."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    theirs = BertModel(
        BertConfig(
            vocab_size=50,
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=3,
            intermediate_size=40,
            max_position_embeddings=20,
            initializer_range=0.3,
        ),
        add_pooling_layer=False,
    ).eval()
    named = {f"text_encoder.bert.{name}": value for name, value in theirs.state_dict().items()}
    state = from_xvlm(named, CONFIG.fusion_layer)
    ours = TextEncoder(CONFIG).eval()
    ours.load_state_dict({name.removeprefix("text."): value for name, value in state.items()})
    return ours, theirs


def encode(encoder: TextEncoder, ids: Tensor, mask: Tensor) -> Tensor:
    """States (B, L, D) of a padded batch."""
    texts, places = Packing.of_mask(mask)
    return texts.unpack(encoder(ids.flatten()[places], texts))


def test_equals_hugging_face(pair: tuple[TextEncoder, torch.nn.Module], words: Words) -> None:
    ours, theirs = (each.double() for each in pair)
    ids, mask = words
    expected = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(encode(ours, ids, mask)[mask], expected[mask], rtol=0, atol=1e-6)


def test_gradients_equal_hugging_face(
    pair: tuple[TextEncoder, torch.nn.Module], words: Words
) -> None:
    ours, theirs = (each.double() for each in pair)
    ids, mask = words
    direction = torch.randn(3, 6, 24).double() * mask[..., None]
    (encode(ours, ids, mask) * direction).sum().backward()
    (
        theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state * direction
    ).sum().backward()
    named = {f"text_encoder.bert.{n}": p.grad for n, p in theirs.named_parameters()}
    expected = from_xvlm(named, CONFIG.fusion_layer)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, expected[f"text.{name}"], rtol=1e-6, atol=1e-8, msg=name
        )


def with_gaps(encoder: TextEncoder, ids: Tensor, mask: Tensor) -> Tensor:
    """As on a device whose host must not wait: each text in a slot of the longest."""
    rows, longest = ids.shape
    texts = Packing(torch.arange(rows) * longest, mask.sum(1), ids.numel(), longest)
    return texts.unpack(encoder(ids.flatten(), texts))


def segment_by_segment(encoder: TextEncoder, ids: Tensor, mask: Tensor) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "segments_suit", lambda states, width, dropout: True)
        return with_gaps(encoder, ids, mask)


def padded(encoder: TextEncoder, ids: Tensor, mask: Tensor) -> Tensor:
    return reference.encode_text(encoder, CONFIG, ids, mask)


@pytest.mark.parametrize("fast", [encode, with_gaps, segment_by_segment])
def test_packed_equals_padded(words: Words, fast: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(CONFIG).double().eval()
    ids, mask = words
    direction = torch.randn(3, 6, 24).double() * mask[..., None]
    gradients = []
    for run in (fast, padded):
        encoder.zero_grad()
        states = run(encoder, ids, mask)
        (states * direction).sum().backward()
        gradients.append([states[mask].detach(), *(p.grad.clone() for p in encoder.parameters())])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


def test_padding_changes_nothing(words: Words) -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(CONFIG).double().eval()
    ids, mask = words
    states = encode(encoder, ids, mask)
    for row, length in enumerate(mask.sum(1).tolist()):
        alone = encode(encoder, ids[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(states[row, :length], alone[0], rtol=0, atol=1e-12)
    garbage = torch.where(mask, ids, 7)
    assert torch.equal(encode(encoder, garbage, mask)[mask], states[mask])


def test_dropout_is_for_training_alone(words: Words) -> None:
    encoder = TextEncoder(replace(CONFIG, dropout=0.5))
    assert not torch.equal(encode(encoder, *words), encode(encoder, *words))
    encoder.eval()
    assert torch.equal(encode(encoder, *words), encode(encoder, *words))


def test_masked_language_head_is_tied(words: Words) -> None:
    head, table = MaskedLanguageHead(CONFIG), torch.randn(50, 24)
    states = torch.randn(7, 24)
    logits = head(states, table)
    assert logits.shape == (7, 50)
    hidden = head.norm(torch.nn.functional.gelu(head.dense(states)))
    torch.testing.assert_close(logits, hidden @ table.T + head.bias)
    assert not any(p.shape == table.shape for p in head.parameters())


def test_masked_language_head_equals_hugging_face() -> None:
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertLMPredictionHead

    torch.manual_seed(0)
    theirs = BertLMPredictionHead(
        BertConfig(vocab_size=50, hidden_size=24, initializer_range=0.3)
    ).eval()
    theirs.decoder.bias = theirs.bias  # as in the whole model
    torch.nn.init.normal_(theirs.bias)
    ours = MaskedLanguageHead(CONFIG).eval()
    named = {
        f"text_encoder.cls.predictions.{name}": value for name, value in theirs.state_dict().items()
    }
    state = from_xvlm(named, CONFIG.fusion_layer)
    ours.load_state_dict({n.removeprefix("masked_language_head."): v for n, v in state.items()})
    states = torch.randn(5, 24)
    expected = theirs(states)
    torch.testing.assert_close(ours(states, theirs.decoder.weight), expected, rtol=0, atol=1e-6)
