"""The loop: its order, its rate, what one step does, and what stops it."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from finetune.shots.config import ClipHost, SgdConfig
from finetune.shots.hosts import Encoders, open_host
from finetune.shots.images import random_view
from finetune.shots.learn import Lesson, accuracy, epoch_plan, learn, learning_rate
from finetune.shots.sets import open_set, own_layout
from finetune.shots.split import draw_shots, prompts_of
from wholegrain.errors import WholegrainError
from wholegrain.model.config import MmaConfig

ADAPTER = MmaConfig(rank=4, alpha=0.1, blocks=2, gradient_trick=True)
SGD = SgdConfig(lr=0.01, epochs=1, batch_size=4)


@pytest.fixture(scope="module")
def host(clip_folder: Path) -> Encoders:
    return open_host(ClipHost(path=str(clip_folder)), "fp32", torch.device("cpu"))


@pytest.fixture
def lesson(colours_root: Path) -> Lesson:
    own = {"colours": own_layout("colours", "colours", ".", "split.json")}
    labelled = open_set("colours", colours_root, own)
    prompts = prompts_of(labelled.classes, "a photo of a {}.")
    items = draw_shots(labelled, 2, seed=1)
    return Lesson("colours", labelled.folder, items, prompts, batch_size=4, workers=0)


def test_batches_of_an_epoch() -> None:
    plan = epoch_plan(22, 4, ("x", 1, 0))
    assert [len(each) for each in plan] == [4] * 5  # two are left out
    positions = [position for each in plan for position in each]
    assert len(set(positions)) == 20
    assert positions != sorted(positions)
    assert plan == epoch_plan(22, 4, ("x", 1, 0))
    assert plan != epoch_plan(22, 4, ("x", 1, 1))
    assert sorted(epoch_plan(3, 4, ("x",))[0]) == [0, 1, 2]


def test_the_rate_falls_by_a_cosine() -> None:
    optim = SgdConfig(lr=0.0015, epochs=5)
    rates = [learning_rate(optim, epoch) for epoch in range(5)]
    expected = torch.optim.SGD([torch.zeros(1)], lr=0.0015)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(expected, 5)
    for rate in rates:
        assert math.isclose(rate, schedule.get_last_lr()[0], rel_tol=1e-9)
        expected.step()
        schedule.step()
    assert learning_rate(SgdConfig(epochs=1), 0) == 0.0015  # one epoch: no decay at all


def test_two_epochs_are_those_of_a_plain_loop(host: Encoders, lesson: Lesson) -> None:
    optim = replace(SGD, epochs=2)
    encoders, expected = host.adapted(ADAPTER, 1), host.adapted(ADAPTER, 1)
    losses = learn(encoders, lesson, optim, seed=9)

    parameters = list(expected.adapters.parameters())
    velocity = [torch.zeros_like(each) for each in parameters]
    ids = expected.tokens(lesson.prompts)
    seen: list[list[float]] = [[], []]
    steps = [(epoch, b) for epoch in range(2) for b in epoch_plan(8, 4, ("colours", 9, epoch))]
    assert len(steps) == 4
    for epoch, batch in steps:
        rate = learning_rate(optim, epoch)
        paths = [lesson.folder / lesson.items[n].path for n in batch]
        views = [("colours", 9, epoch, n) for n in batch]
        pixels = torch.stack(
            [random_view(path, 16, view) for path, view in zip(paths, views, strict=True)]
        )
        target = torch.tensor([lesson.items[n].label for n in batch])
        images, texts = expected.image_vectors(pixels), expected.text_vectors(ids)
        loss = F.cross_entropy(expected.scale * (images @ texts.T), target)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient, v in zip(parameters, gradients, velocity, strict=True):
                v.mul_(0.9).add_(gradient + 5e-4 * parameter)
                parameter.sub_(rate * v)
        seen[epoch].append(float(loss.detach()))
    assert losses == pytest.approx([sum(each) / 2 for each in seen], rel=1e-5)
    for name, value in encoders.adapters.state_dict().items():
        assert torch.allclose(value, expected.adapters.state_dict()[name], atol=1e-6), name


def test_the_same_seed_learns_the_same(host: Encoders, lesson: Lesson) -> None:
    def learnt(seed: int, workers: int) -> dict[str, torch.Tensor]:
        encoders = host.adapted(ADAPTER, 1)
        learn(encoders, Lesson(**{**vars(lesson), "workers": workers}), SGD, seed)
        return encoders.adapters.state_dict()

    one, same, other = learnt(1, 0), learnt(1, 2), learnt(2, 0)
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


def test_a_loss_that_is_not_finite_stops_the_run(host: Encoders, lesson: Lesson) -> None:
    encoders = host.adapted(ADAPTER, 1)
    wild = SgdConfig(lr=1e30, epochs=2, batch_size=4)
    with pytest.raises(WholegrainError, match=r"colours, seed 1: .* from step 2 of epoch 1 on"):
        learn(encoders, lesson, wild, seed=1)


class Fixed:
    """Encoders whose answer is the colour: the image's channel means against the prompt's."""

    resolution, squeezes, device = 16, False, torch.device("cpu")

    def tokens(self, texts: Any) -> Any:
        return texts

    def text_vectors(self, texts: list[str]) -> torch.Tensor:
        places = {"red": 0, "green": 1, "blue": 2, "grey": 3}
        return torch.eye(4)[[places[t.split()[-2]] for t in texts]]

    def image_vectors(self, pixels: torch.Tensor) -> torch.Tensor:
        means = pixels.float().mean(dim=(2, 3))
        grey = 1000.0 * (means.std(dim=1, keepdim=True) < 40)
        return torch.cat([means, grey], dim=1)


def test_accuracy_counts_right_answers(
    colours_root: Path, lesson: Lesson, make_fixed: Callable[[], Any]
) -> None:
    own = {"colours": own_layout("colours", "colours", ".", "split.json")}
    labelled = open_set("colours", colours_root, own)

    def score(items: Any, prompts: list[str], workers: int = 0) -> tuple[int, int]:
        found = accuracy(make_fixed(), labelled.folder, items, prompts, 7, workers)
        return found.correct, found.count

    assert score(labelled.test, lesson.prompts) == (32, 32)
    assert score(labelled.test, lesson.prompts, workers=2) == (32, 32)
    # Two names exchanged: half of the images are then wrong.
    swapped = [lesson.prompts[1], lesson.prompts[0], *lesson.prompts[2:]]
    assert score(labelled.test, swapped) == (16, 32)
    # Only the classes of the part can be answered.
    assert score(labelled.test[:16], lesson.prompts[:2]) == (16, 16)


@pytest.fixture
def make_fixed() -> Callable[[], Any]:
    return Fixed
