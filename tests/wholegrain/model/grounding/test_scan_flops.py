"""Costs of ScanFormer: the published sizes' figures, and torch's own count of a small model."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from wholegrain.model.adapters.condition import Condition
from wholegrain.model.config import ScanFusion, VitVision
from wholegrain.model.grounding.records import TextStates
from wholegrain.model.grounding.scan import ScanFormer
from wholegrain.model.grounding.scan_flops import Body, joint_macs, scan_macs, selected_counts
from wholegrain.model.vision import VitEncoder

BASE = Body()
PYRAMIDS = {640: (25, 100, 400), 512: (16, 64, 256)}
# 10^9 MACs at 40 tokens: the dense finest scale, all scales in one pass, all selected, 65 % of all.
FIGURES = {640: (41.0, 54.2, 52.8, 34.8), 512: (26.9, 34.8, 34.2, 23.3)}


@pytest.mark.parametrize("side", [640, 512])
def test_the_figures_of_the_base_size(side: int) -> None:
    pyramid = PYRAMIDS[side]
    found = (
        joint_macs(BASE, 40, pyramid[-1:]),
        joint_macs(BASE, 40, pyramid),
        scan_macs(BASE, 40, pyramid, pyramid).blocks,
        scan_macs(BASE, 40, pyramid, selected_counts(pyramid, 0.65)).blocks,
    )
    assert [round(macs / 1e9, 1) for macs in found] == list(FIGURES[side])


def test_the_parts_of_a_scanning() -> None:
    macs = scan_macs(BASE, 40, PYRAMIDS[640], selected_counts(PYRAMIDS[640], 0.65))
    parts = [macs.text, *macs.scales]
    assert [round(part / 1e9, 2) for part in parts] == [3.43, 2.24, 5.68, 23.47]
    assert BASE.embedding(1) == 2_359_296
    assert macs.embedding == (25 + 63 + 253) * 2_359_296


def test_shares_are_of_all_patches() -> None:
    assert selected_counts((25, 100, 400), 1.0) == (25, 100, 400)
    assert selected_counts((25, 100, 400), 0.65) == (25, 63, 253)
    assert selected_counts((25, 100, 400), 0.0) == (25, 0, 0)


@pytest.mark.parametrize("selected", [(4, 16, 64), (4, 9, 21), (4, 0, 0)])
@pytest.mark.parametrize("merged", [True, False])
def test_against_torchs_count(selected: tuple[int, ...], merged: bool) -> None:
    torch.manual_seed(0)
    vision = VitEncoder(VitVision(image_size=64, patch_size=8, width=32, depth=3, heads=4)).eval()
    fusion = ScanFormer(ScanFusion(selector_width=12, merge=merged), vision, text_width=24).eval()
    texts = TextStates(torch.randn(1, 5, 24), torch.ones(1, 5).bool())
    features = fusion.encode(vision, torch.randn(1, 3, 64, 64))

    def first(scale: int, logits: torch.Tensor) -> torch.Tensor:
        return (torch.arange(logits.shape[1]) < selected[scale])[None]

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        scanning = fusion.scan(vision, texts, features, torch.tensor([0]), Condition(), first)
        scales = list(scanning)
    body = Body(width=32, depth=3, mlp_ratio=4, patch_side=8)
    macs = scan_macs(body, 5, (4, 16, 64), selected, 24, 12, merged)
    assert counter.get_total_flops() == 2 * macs.total
    assert [int(each.selected.sum()) for each in scales] == list(selected)
