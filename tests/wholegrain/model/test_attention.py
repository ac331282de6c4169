"""Attention and the small parts that BERT is made of."""

import pytest
import torch
from torch import nn

from wholegrain.model.attention import Attention, PredictionHead, Residual, init_bert
from wholegrain.model.packing import Packing

LENGTHS = torch.tensor([5, 1, 3])
MASK = torch.arange(5) < LENGTHS[:, None]


@pytest.mark.parametrize("slot", [0, 5])
def test_attention_by_hand(slot: int) -> None:
    """Without gaps, and with each text in a slot of five."""
    torch.manual_seed(0)
    attention = Attention(width=8, source_width=6, heads=2, dropout=0.0).double()
    states, source = torch.randn(3, 5, 8).double(), torch.randn(3, 4, 6).double()
    seen = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 1], [1, 1, 1, 1]]).bool()
    texts = Packing(torch.arange(3) * 5, LENGTHS, 15, 5) if slot else Packing.of_mask(MASK)[0]
    query = attention.query(texts.pack(states))
    found = texts.unpack(attention.over(query, texts, *attention.project(source), seen))
    for row in range(3):
        for place in range(int(LENGTHS[row])):
            heads = []
            for head in range(2):
                part = slice(4 * head, 4 * head + 4)
                query = attention.query(states[row, place])[part]
                keys = attention.key(source[row, seen[row]])[:, part]
                values = attention.value(source[row, seen[row]])[:, part]
                heads.append(torch.softmax(keys @ query / 2, 0) @ values)
            expected = attention.output(torch.cat(heads))
            torch.testing.assert_close(found[row, place], expected, rtol=0, atol=1e-12)


def test_dropout_is_for_training_alone() -> None:
    torch.manual_seed(0)
    residual = Residual(8, 1e-12, 0.5)
    states, update = torch.randn(4, 8), torch.randn(4, 8)
    assert not torch.equal(residual(states, update), residual(states, update))
    residual.eval()
    assert torch.equal(residual(states, update), residual.norm(states + update))


def test_prediction_head_is_xvlms() -> None:
    head = PredictionHead(8, 3)
    assert [type(part) for part in head] == [nn.Linear, nn.LayerNorm, nn.GELU, nn.Linear]
    assert head(torch.rand(2, 8)).shape == (2, 3)
    assert sum(p.numel() for p in PredictionHead(768, 2).parameters()) == 1_187_330


def test_init_bert() -> None:
    torch.manual_seed(0)
    part = nn.Sequential(nn.Linear(200, 100), nn.LayerNorm(100), nn.Embedding(50, 100))
    with torch.no_grad():
        part[1].weight.fill_(3)
    init_bert(part)
    assert part[0].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert part[2].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert part[0].bias.abs().max() == 0
    assert (part[1].weight == 1).all()
