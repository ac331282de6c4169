"""Validation figures, counted by hand and on two ranks."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pretrain.grains import BOXED, Terms
from pretrain.validate import Tally, _figures, _observe, _Seen
from tests.pretrain import rank_program as program
from wholegrain.data.batch import IMAGE, OBJECT, REGION
from wholegrain.objectives.matching import Negatives

PROGRAM = Path(program.__file__)


def test_tally_weighs_observations_not_batches() -> None:
    one, other = Tally(), Tally()
    one.add("hit", torch.tensor([True, False, False]))
    other.add("hit", torch.tensor([True]))
    other.add("iou", torch.tensor([0.25, 0.75]))
    other.add("nothing", torch.tensor([]))
    one.merge(other)
    assert one.means() == {"hit": 0.5, "iou": 0.5}


def logits(classes: list[int], of: int) -> torch.Tensor:
    """Logits whose largest is at the given class."""
    return torch.nn.functional.one_hot(torch.tensor(classes), of).float()


def test_figures_of_a_batch_by_hand() -> None:
    # Three concepts on two images: a caption, a region and an object.
    batch = SimpleNamespace(
        num_concepts=3,
        num_images=2,
        grain=torch.tensor([IMAGE, REGION, OBJECT]),
        concept_box=torch.tensor([[0.5, 0.5, 1, 1], [0.25, 0.5, 0.5, 1], [0.5, 0.5, 0.2, 0.2]]),
        extras={"boxed": torch.tensor([1, 2])},
    )
    nobody = torch.zeros(3, dtype=torch.long)
    valid = torch.tensor([True, True, False])
    outputs = SimpleNamespace(
        losses={"matching": torch.tensor(0.5)},
        terms={
            "matching": Terms(
                torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 9.0, 0.7, 0.9, 9.0]),
                torch.tensor([0, 1, 2] * 3),
                torch.cat([torch.ones_like(valid), valid, valid]),
            ),
            "box_l1": Terms(torch.tensor([0.25, 0.75]), torch.tensor([1, 2]), grains=BOXED),
        },
        # Positives: 2 of 3 called a match. Foreign images: the first is right, the second wrong,
        # the third has no negative. Foreign texts: first and second right.
        match_logits=logits([1, 1, 0, 0, 1, 1, 0, 0, 1], of=2),
        negatives=Negatives(nobody, nobody, valid),
        token_logits=logits([4, 2, 0, 3], of=5),
        # The region's box is half of the truth: IoU 1/2. The object's is elsewhere.
        boxes=torch.tensor([[0.125, 0.5, 0.25, 1.0], [0.9, 0.9, 0.1, 0.1]]),
    )
    tally = Tally()
    # The caption hides three words, of which two are found; the region one, which is not.
    _observe(tally, outputs, batch, torch.tensor([0, 0, 0, 1]), torch.tensor([4, 2, 1, 1]))
    assert tally.means() == pytest.approx(
        {
            "matching": (0.1 + 0.2 + 0.3 + 0.4 + 0.5 + 0.7 + 0.9) / 7,
            "box_l1": 0.5,
            "matching/image": (0.1 + 0.4 + 0.7) / 3,
            "matching/region": (0.2 + 0.5 + 0.9) / 3,
            "matching/object": 0.3,
            "box_l1/region": 0.25,
            "box_l1/object": 0.75,
            "match_accuracy": 5 / 7,
            "match_accuracy/image": 1.0,
            "match_accuracy/region": 2 / 3,
            "match_accuracy/object": 0.0,
            "masked_token_accuracy": 0.5,
            "masked_token_accuracy/image": 2 / 3,
            "masked_token_accuracy/region": 0.0,
            "box_iou": 0.25,
            "box_iou/region": 0.5,
            "box_iou/object": 0.0,
            "box_acc@0.5_region": 1.0,
            "box_acc@0.5_object": 0.0,
        }
    )
    assert tally.counts["matching"] == 7  # a mean over terms, not over batches
    assert tally.counts["matching/region"] == 3  # a mean over terms


def vectors(angles: list[float]) -> torch.Tensor:
    radians = torch.tensor(angles).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def test_retrieval_by_hand() -> None:
    # Images at 0, 90 and 180 degrees; their texts at 10, 81 and 100.
    seen = [
        _Seen(0, Tally(), vectors([0, 90]), vectors([10, 81]), torch.tensor([7, 8])),
        _Seen(1, Tally(), vectors([180]), vectors([100]), torch.tensor([9])),
    ]
    # Each image is nearest to its own text, but the text at 100 is nearest to the image at 90.
    assert _figures(seen) == pytest.approx(
        {"image_to_text_r@1": 1.0, "text_to_image_r@1": 2 / 3, "retrieval_images": 3}
    )
    assert _figures([]) == {}


def test_several_captions_of_an_image_are_all_right() -> None:
    # Image 7 comes twice, and its first row is nearest to its second caption.
    key = torch.tensor([7, 7, 8])
    seen = [_Seen(0, Tally(), vectors([0, 0, 90]), vectors([30, 5, 88]), key)]
    assert _figures(seen) == {
        "image_to_text_r@1": 1.0,
        "text_to_image_r@1": 1.0,
        "retrieval_images": 2.0,
    }


@pytest.mark.ranks
def test_two_ranks_measure_the_same_to_the_last_bit(
    pretrained: Any, tmp_path: Path, launch: Callable[..., str]
) -> None:
    alone = program.measure(pretrained.config, pretrained.out, 0, 1)
    given = [PROGRAM, pretrained.config, pretrained.out, tmp_path]
    launch("--standalone", "--nproc-per-node", 2, *given, program="torchrun")
    for rank in range(2):
        assert json.loads((tmp_path / f"figures-{rank}.json").read_text()) == alone
    assert alone["retrieval_images"] == 8
    # And a second time, whatever the generator did in between.
    torch.rand(3)
    assert program.measure(pretrained.config, pretrained.out, 0, 1) == alone


def test_validation_leaves_the_generator_alone(pretrained: Any) -> None:
    from pretrain.config import PretrainConfig
    from pretrain.data import open_data
    from pretrain.validate import validate
    from wholegrain.config import load_config
    from wholegrain.hub.release import load_release

    model, tokenizer, _ = load_release(pretrained.out / "release")
    config = load_config(PretrainConfig, pretrained.config)
    batches = list(open_data(config, tokenizer).validation_stream(0, 1))
    state = torch.get_rng_state()
    with torch.no_grad():
        validate(model, batches, config.objective, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
