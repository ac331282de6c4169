"""The cross encoder against Hugging Face's cross-attention, and its two ways of reading."""

import pytest
import torch
from torch import Tensor

from wholegrain.hub.import_xvlm import from_xvlm
from wholegrain.model import cross, kernels
from wholegrain.model.concepts import VisualConcepts
from wholegrain.model.config import TextConfig
from wholegrain.model.cross import CrossEncoder
from wholegrain.model.memory import Memory
from wholegrain.model.packing import Packing
from wholegrain.model.reading import ConceptReader, ImageReader, RowReader
from wholegrain.model.text import Reads

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
WAYS = ("row", "image", "concept")
READERS = {
    "row": lambda memory, rows, texts, attention: RowReader(memory, rows, texts),
    "image": lambda memory, rows, texts, attention: ImageReader(memory, rows, texts),
    "concept": lambda memory, rows, texts, attention: ConceptReader(
        memory, rows, texts, int(memory.mask.sum())
    ),
}


def fuse(
    encoder: CrossEncoder, states: Tensor, mask: Tensor, memory: Memory, rows: Tensor, way: str
) -> Tensor:
    """Fused states (R, L, D) of padded ones.

    `row` and `concept` lay each text in a slot of the longest, as on a device that is not asked;
    `concept` attends segment by segment.
    """
    texts, places = Packing.of_mask(mask)
    if way != "image":
        count, longest = mask.shape
        texts = Packing(torch.arange(count) * longest, mask.sum(1), count * longest, longest)
        places = torch.arange(count * longest)
    with pytest.MonkeyPatch.context() as patch:
        if way == "concept":
            patch.setattr(kernels, "segments_suit", lambda states, width, dropout: True)
        patch.setattr(cross, "reader_of", READERS[way])
        packed = states.flatten(0, 1)[places]
        return texts.unpack(encoder(packed, texts, memory, rows))


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
    for way in WAYS:
        found = fuse(ours, states, mask, ours.memory(concepts), rows, way)
        torch.testing.assert_close(found[mask], expected[mask], rtol=0, atol=1e-6)


def run(encoder: CrossEncoder, concepts: VisualConcepts, texts: Texts, way: str) -> list[Tensor]:
    """Fused tokens, and the gradients of everything that they come from."""
    states, mask, rows = texts
    sources = [each.clone().requires_grad_() for each in (states, concepts.cls, concepts.patches)]
    visual = VisualConcepts(sources[1], sources[2], concepts.patch_row, concepts.mask)
    encoder.zero_grad()
    fused = fuse(encoder, sources[0], mask, encoder.memory(visual), rows, way)
    torch.manual_seed(3)
    (fused * torch.randn_like(fused) * mask[..., None]).sum().backward()
    gradients = [sources[0].grad[mask], *(each.grad for each in sources[1:])]
    return [fused[mask].detach(), *gradients, *(p.grad.clone() for p in encoder.parameters())]


@pytest.mark.parametrize("way", ["image", "concept"])
def test_every_way_equals_row_by_row(
    encoder: CrossEncoder, concepts: VisualConcepts, texts: Texts, way: str
) -> None:
    fast, slow = (run(encoder, concepts, texts, each) for each in (way, "row"))
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("way", WAYS)
def test_patches_outside_the_box_are_not_seen(
    encoder: CrossEncoder, concepts: VisualConcepts, texts: Texts, way: str
) -> None:
    states, mask, rows = texts
    before = fuse(encoder, states, mask, encoder.memory(concepts), rows, way)
    concepts.patches[0, 2:] += 100  # image 0 is read by concept 3 alone, which sees patches 0, 1
    after = fuse(encoder, states, mask, encoder.memory(concepts), rows, way)
    assert torch.equal(before[mask], after[mask])
    concepts.patches[0, 1] += 1
    moved = fuse(encoder, states, mask, encoder.memory(concepts), rows, way)
    assert not torch.equal(moved[3, 0], before[3, 0])
    assert torch.equal(moved[0, 0], before[0, 0])


@pytest.mark.parametrize("way", WAYS)
def test_each_text_is_alone_with_its_concept(
    encoder: CrossEncoder, concepts: VisualConcepts, texts: Texts, way: str
) -> None:
    states, mask, rows = texts
    memory = encoder.memory(concepts)
    together = fuse(encoder, states, mask, memory, rows, way)
    for row, length in enumerate(LENGTHS.tolist()):
        part = slice(row, row + 1)
        alone = fuse(encoder, states[part, :length], mask[part, :length], memory, rows[part], way)
        torch.testing.assert_close(together[row, :length], alone[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_the_last_layer_at_the_places_that_are_read(
    encoder: CrossEncoder, concepts: VisualConcepts, texts: Texts, way: str
) -> None:
    """Values and gradients are those of the whole, taken at these places; text 3 reads nothing."""
    states, mask, rows = texts
    chosen = [(0, 0), (0, 4), (1, 2), (2, 0), (4, 1), (4, 3)]
    row, column = torch.tensor(chosen).T
    counts = torch.bincount(row, minlength=5)
    found = []
    for read in (True, False):
        encoder.zero_grad()
        source = states.clone().requires_grad_()
        memory = encoder.memory(concepts)
        if read:
            with pytest.MonkeyPatch.context() as patch:
                packing, places = Packing.of_mask(mask)
                reads = Reads(
                    packing.starts[row] + column, Packing.of_lengths(counts, len(chosen), 2)
                )
                patch.setattr(cross, "reader_of", READERS[way])
                fused = encoder(source.flatten(0, 1)[places], packing, memory, rows, reads)
        else:
            fused = fuse(encoder, source, mask, memory, rows, "row")[row, column]
        torch.manual_seed(3)
        (fused * torch.randn_like(fused)).sum().backward()
        gradients = [source.grad, *(p.grad.clone() for p in encoder.parameters())]
        found.append([fused.detach(), *gradients])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
