"""The cross encoder against Hugging Face's cross-attention, and its two ways of reading."""

import pytest
import torch
from torch import Tensor

from wholegrain.hub.import_xvlm import from_xvlm
from wholegrain.model.concepts import VisualConcepts
from wholegrain.model.config import TextConfig
from wholegrain.model.cross import CrossEncoder

CONFIG = TextConfig(
    vocab_size=50,
    hidden_size=24,
    layers=4,
    fusion_layer=2,
    heads=3,
    intermediate_size=40,
    max_positions=20,
)
LENGTHS = torch.tensor([6, 3, 5, 1, 4])


@pytest.fixture
def encoder() -> CrossEncoder:
    torch.manual_seed(0)
    made = CrossEncoder(CONFIG, 24).double().eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


@pytest.fixture
def concepts() -> VisualConcepts:
    """Four concepts on two images of five patches."""
    torch.manual_seed(1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 0, 1, 0], [0, 0, 0, 0, 1], [1, 1, 0, 0, 0]])
    return VisualConcepts(
        cls=torch.randn(4, 24).double(),
        patches=torch.randn(2, 5, 24).double(),
        patch_row=torch.tensor([0, 1, 1, 0]),
        mask=mask.bool(),
    )


@pytest.fixture
def texts() -> tuple[Tensor, Tensor, Tensor]:
    """States (5, 6, D), mask, and the concept of each; concept 0 is never asked."""
    torch.manual_seed(2)
    mask = torch.arange(6) < LENGTHS[:, None]
    return torch.randn(5, 6, 24).double(), mask, torch.tensor([2, 1, 1, 3, 2])


Texts = tuple[Tensor, Tensor, Tensor]


def additive(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape).double().masked_fill(~mask, float("-inf"))[:, None, None, :]


def test_equals_hugging_face(concepts: VisualConcepts, texts: Texts) -> None:
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertEncoder

    config = BertConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        is_decoder=True,
        add_cross_attention=True,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    theirs = BertEncoder(config).double().eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    named = {
        f"text_encoder.bert.encoder.{name}".replace("layer.1.", "layer.3.").replace(
            "layer.0.", "layer.2."
        ): value
        for name, value in theirs.state_dict().items()
    }
    state = from_xvlm(named, CONFIG.fusion_layer)
    ours = CrossEncoder(CONFIG, 24).double().eval()
    ours.load_state_dict({name.removeprefix("cross."): value for name, value in state.items()})

    states, mask, rows = texts
    sequence = concepts.sequence()[rows]
    seen = torch.cat([torch.ones(5, 1).bool(), concepts.mask[rows]], dim=1)
    expected = theirs(
        states,
        attention_mask=additive(mask),
        encoder_hidden_states=sequence,
        encoder_attention_mask=additive(seen),
        use_cache=False,
    )[0]
    for packed in (True, False):
        found = ours(states, mask, ours.memory(concepts), rows, packed)
        torch.testing.assert_close(found[mask], expected[mask], rtol=0, atol=1e-6)


def run(
    encoder: CrossEncoder, concepts: VisualConcepts, texts: Texts, packed: bool
) -> list[Tensor]:
    """Fused tokens, and the gradients of everything that they come from."""
    states, mask, rows = texts
    sources = [each.clone().requires_grad_() for each in (states, concepts.cls, concepts.patches)]
    visual = VisualConcepts(sources[1], sources[2], concepts.patch_row, concepts.mask)
    encoder.zero_grad()
    fused = encoder(sources[0], mask, encoder.memory(visual), rows, packed)
    torch.manual_seed(3)
    (fused * torch.randn_like(fused) * mask[..., None]).sum().backward()
    gradients = [sources[0].grad[mask], *(each.grad for each in sources[1:])]
    return [fused[mask].detach(), *gradients, *(p.grad.clone() for p in encoder.parameters())]


def test_packed_equals_unpacked(
    encoder: CrossEncoder, concepts: VisualConcepts, texts: Texts
) -> None:
    fast, slow = (run(encoder, concepts, texts, packed) for packed in (True, False))
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("packed", [True, False])
def test_patches_outside_the_box_are_not_seen(
    encoder: CrossEncoder, concepts: VisualConcepts, texts: Texts, packed: bool
) -> None:
    states, mask, rows = texts
    before = encoder(states, mask, encoder.memory(concepts), rows, packed)
    concepts.patches[0, 2:] += 100  # image 0 is read by concept 3 alone, which sees patches 0, 1
    after = encoder(states, mask, encoder.memory(concepts), rows, packed)
    assert torch.equal(before[mask], after[mask])
    concepts.patches[0, 1] += 1
    moved = encoder(states, mask, encoder.memory(concepts), rows, packed)
    assert not torch.equal(moved[3, 0], before[3, 0])
    assert torch.equal(moved[0, 0], before[0, 0])


@pytest.mark.parametrize("packed", [True, False])
def test_each_text_is_alone_with_its_concept(
    encoder: CrossEncoder, concepts: VisualConcepts, texts: Texts, packed: bool
) -> None:
    states, mask, rows = texts
    memory = encoder.memory(concepts)
    together = encoder(states, mask, memory, rows, packed)
    for row, length in enumerate(LENGTHS.tolist()):
        part = slice(row, row + 1)
        alone = encoder(states[part, :length], mask[part, :length], memory, rows[part], packed)
        torch.testing.assert_close(together[row, :length], alone[0], rtol=0, atol=1e-12)
