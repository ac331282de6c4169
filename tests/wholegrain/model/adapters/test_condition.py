"""The condition: shares of photo, the gate by hand, and its ablations."""

import pytest
import torch
from torch import Tensor, nn

from wholegrain.model.adapters.condition import Coefficients, Condition, mean_text
from wholegrain.model.adapters.places import Places
from wholegrain.model.config import MmcaConfig

CONFIG = MmcaConfig(rank=3, embed_dim=5, gate_dim=4)


def awake(condition: str = "both") -> Coefficients:
    torch.manual_seed(0)
    made = Coefficients(
        6,
        7,
        MmcaConfig(rank=3, embed_dim=5, gate_dim=4, condition=condition),  # type: ignore[arg-type]
    ).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


STATES, TEXT = torch.randn(2, 10, 6).double(), torch.randn(2, 7).double()


def test_coefficients_start_at_one() -> None:
    fresh = Coefficients(6, 7, CONFIG).double()
    assert (fresh(STATES, TEXT, None) == 1).all()


def test_coefficients_by_hand() -> None:
    made = awake()
    words = TEXT @ made.text.weight.T
    vision = STATES.mean(1) @ made.image.weight.T
    first, second = made.gate[0], made.gate[2]
    hidden = torch.relu((words + vision) @ first.weight.T + first.bias)
    gate = torch.sigmoid(hidden @ second.weight.T + second.bias)
    expected = (words + gate * vision) @ made.weights.weight.T + made.weights.bias
    torch.testing.assert_close(made(STATES, TEXT, None), expected, rtol=0, atol=1e-12)


def test_the_ablations_are_blind_to_the_other_side() -> None:
    other_states, other_text = STATES + 1, TEXT + 1
    text, image = awake("text"), awake("image")
    assert torch.equal(text(STATES, TEXT, None), text(other_states, TEXT, None))
    assert not torch.equal(text(STATES, TEXT, None), text(STATES, other_text, None))
    assert torch.equal(image(STATES, TEXT, None), image(STATES, other_text, None))
    assert not torch.equal(image(STATES, TEXT, None), image(other_states, TEXT, None))
    both = awake()
    assert not torch.equal(both(STATES, TEXT, None), both(other_states, TEXT, None))
    assert not torch.equal(both(STATES, TEXT, None), both(STATES, other_text, None))


def test_padding_is_not_pooled() -> None:
    made = awake()
    share = torch.ones(2, 10).double()
    share[0, 6:] = 0
    changed = STATES.clone()
    changed[0, 6:] += 1000
    torch.testing.assert_close(made(STATES, TEXT, share), made(changed, TEXT, share))
    alone = made(STATES[:1, :6], TEXT[:1], None)
    torch.testing.assert_close(made(changed, TEXT, share)[:1], alone)
    assert not torch.allclose(made(changed, TEXT, None), made(STATES, TEXT, None))


def condition(mask: Tensor | None, image: list[int]) -> Condition:
    made = Condition()
    made.image, made.image_mask = torch.tensor(image), mask
    return made


@pytest.mark.parametrize("side", [64, 96])
@pytest.mark.parametrize(
    "places",
    [
        Places((4, 4)),
        Places((8, 8)),
        Places((4, 4), class_token=True),
        Places((8, 8), window=(4, 4), shift=(2, 2)),
    ],
)
def test_shares_follow_the_mask_at_every_resolution(side: int, places: Places) -> None:
    mask = torch.zeros(2, side, side, dtype=torch.bool)
    mask[0, :, : side // 2] = True  # image 0: the left half is photo
    mask[1] = True
    shares = condition(mask, [1, 0, 0]).weights(places)
    assert shares is not None
    tokens = places.grid[0] * places.grid[1] + places.class_token
    assert shares.shape == (3, tokens)
    assert (shares[0] == 1).all()
    assert torch.equal(shares[1], shares[2])
    halves = torch.zeros(1, *places.grid)
    halves[:, :, : places.grid[1] // 2] = 1
    assert torch.equal(shares[1:2], places.order(halves))


def test_a_patch_that_is_half_photo_counts_half() -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, :, :3] = True
    shares = condition(mask, [0]).weights(Places((2, 2)))
    assert shares is not None
    assert shares.tolist() == [[0.75, 0, 0.75, 0]]


def test_no_shares_without_padding() -> None:
    assert condition(None, [0, 0]).weights(Places((4, 4))) is None
    assert Condition().weights(Places((4, 4))) is None


def test_the_filling_of_windows_is_never_pooled() -> None:
    """Swin fills windows up with zeros where its grid is no multiple of them."""
    shares = condition(None, [0, 0]).weights(Places((5, 5), window=(4, 4)))
    assert shares is not None
    assert shares.shape == (2, 64)
    assert shares.sum(1).tolist() == [25, 25]


def test_mean_text_ignores_padding() -> None:
    states = torch.randn(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    torch.testing.assert_close(mean_text(states, mask)[0], states[0, :2].mean(0))
    torch.testing.assert_close(mean_text(states, mask)[1], states[1].mean(0))
