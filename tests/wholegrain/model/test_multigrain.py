"""The whole model: its size, what may influence what, and grounding."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from wholegrain.errors import ConfigError
from wholegrain.model.concepts import join, whole_images
from wholegrain.model.config import ClsBoxHead, MmcaConfig, ModelConfig, PatchBoxHead
from wholegrain.model.multigrain import MultiGrainModel

Build = Callable[..., MultiGrainModel]
Images = Callable[..., Tensor]
Words = tuple[Tensor, Tensor]
KINDS = ("swin", "vit", "local", "clip", "timm")
BOXES = torch.tensor([[0.5, 0.5, 1, 1], [0.25, 0.25, 0.5, 0.5], [0.8, 0.7, 0.3, 0.2]])
IMAGE = torch.tensor([0, 1, 0])


def test_base_has_the_published_size() -> None:
    with torch.device("meta"):
        model = MultiGrainModel(ModelConfig.base())
    parameters = list(model.parameters())
    assert sum(p.numel() for p in parameters) == 215_637_241
    assert len(parameters) == 606
    assert model.vision.grid == (7, 7)


def test_tiny_runs() -> None:
    torch.manual_seed(0)
    model = MultiGrainModel(ModelConfig.tiny(vocab_size=100)).eval()
    assert sum(p.numel() for p in model.parameters()) < 6_000_000
    pixels = torch.randint(0, 256, (1, 3, 128, 128), dtype=torch.uint8)
    ids = torch.randint(1, 100, (2, 5))
    boxes, scores = model.ground(
        model.normalise_images(pixels), ids, torch.ones(2, 5).bool(), torch.zeros(2).long()
    )
    assert boxes.shape == (2, 4)
    assert ((scores >= 0) & (scores <= 1)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_one_pass_through_everything(build: Build, images: Images, words: Words, kind: str) -> None:
    model = build(kind)
    features = model.encode_images(images(model))
    concepts = model.concepts(features, IMAGE, BOXES)
    assert len(concepts) == 3
    vectors = model.image_vector(concepts.cls)
    states = model.encode_text(*words)
    assert states.shape == (3, 6, 24)
    texts = model.text_vector(states[:, 0])
    for unit in (vectors, texts):
        assert unit.shape == (3, 8)
        torch.testing.assert_close(unit.norm(dim=1), torch.ones(3))
    fused = model.fuse(states, words[1], model.memory(concepts), torch.arange(3))
    assert fused.shape == (3, 6, 24)
    assert model.match_logits(fused[:, 0]).shape == (3, 2)
    assert model.token_logits(fused[:, 1]).shape == (3, 50)
    boxes = model.predict_boxes(fused[:, 0], features, IMAGE).boxes
    assert boxes.shape == (3, 4)
    assert ((boxes > 0) & (boxes < 1)).all()


@pytest.mark.parametrize("kind", ["swin", "local"])
def test_a_region_is_blind_outside_its_box(
    build: Build, images: Images, words: Words, kind: str
) -> None:
    """Swin's regions read final patches, ViT's run the last blocks; neither sees beyond."""
    model = build(kind).double()
    features = model.encode_images(images(model).double())
    concepts = model.concepts(features, IMAGE[1:2], BOXES[1:2])
    row, inside = concepts.patch_row[0], concepts.mask[0]
    states, mask = model.encode_text(*words), words[1]
    before = model.fuse(states[:1], mask[:1], model.memory(concepts), torch.tensor([0]))
    changed = concepts.patches.clone()
    changed[row, ~inside] += 100
    concepts.patches = changed
    after = model.fuse(states[:1], mask[:1], model.memory(concepts), torch.tensor([0]))
    assert inside.sum() < len(inside)
    assert torch.equal(before[0, 0], after[0, 0])


def test_padding_of_texts_changes_no_box(build: Build, images: Images, words: Words) -> None:
    model = build("swin", box_head=PatchBoxHead(width=8)).double()
    batch, (ids, mask) = images(model).double(), words
    together, scores = model.ground(batch, ids, mask, IMAGE)
    for row, length in enumerate(mask.sum(1).tolist()):
        part = slice(row, row + 1)
        alone, score = model.ground(batch, ids[part, :length], mask[part, :length], IMAGE[part])
        # Not to the last bit: torch takes another matrix kernel for another number of rows.
        torch.testing.assert_close(together[part], alone, rtol=0, atol=1e-6)
        torch.testing.assert_close(scores[part], score, rtol=0, atol=1e-6)


def test_passes_in_one_call_equal_passes_one_by_one(
    build: Build, images: Images, words: Words
) -> None:
    """Regions and whole images share a memory, whichever encoder gave them their patches."""
    for kind in ("swin", "local"):
        model = build(kind).double()
        features = model.encode_images(images(model).double())
        regions, whole = model.concepts(features, IMAGE, BOXES), whole_images(features)
        states, (_, mask) = model.encode_text(*words), words
        both = model.memory(join(regions, whole))
        rows = torch.tensor([2, 3, 1])
        together = model.fuse(states, mask, both, rows)
        apart = [
            model.fuse(states[:1], mask[:1], model.memory(regions), torch.tensor([2])),
            model.fuse(states[1:2], mask[1:2], model.memory(whole), torch.tensor([0])),
            model.fuse(states[2:], mask[2:], model.memory(regions), torch.tensor([1])),
        ]
        for row, alone in enumerate(apart):
            real = mask[row]
            torch.testing.assert_close(together[row, real], alone[0, real], rtol=0, atol=1e-12)


def test_scores_come_from_the_head_or_from_matching(
    build: Build, images: Images, words: Words
) -> None:
    for head in (ClsBoxHead(), PatchBoxHead(width=8)):
        model = build("vit", box_head=head)
        features = model.encode_images(images(model))
        texts = model.read_texts(*words)
        prediction, scores, _ = model.ground_encoded(features, texts, IMAGE)
        if prediction.confidence is not None:
            assert scores is prediction.confidence
            continue
        fused = model.fuse(texts.states, words[1], model.memory(whole_images(features)), IMAGE)
        expected = model.match_logits(fused[:, 0]).softmax(1)[:, 1]
        torch.testing.assert_close(scores, expected)


def test_an_image_is_encoded_once_without_adapters(
    build: Build, images: Images, words: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("vit")
    seen: list[int] = []
    model.vision.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    model.ground(images(model), *words, IMAGE)
    assert seen == [2]
    assert not model.image_depends_on_text


def test_new_box_head(build: Build, images: Images, words: Words) -> None:
    model = build("vit")
    model.new_box_head(PatchBoxHead(width=8))
    assert model.config.box_head == PatchBoxHead(width=8)
    model.ground(images(model), *words, IMAGE)
    fresh = MultiGrainModel(model.config)
    fresh.load_state_dict(model.state_dict(), strict=True)


def test_add_adapter_once(build: Build) -> None:
    model = build("vit")
    model.add_adapter(MmcaConfig(rank=3, blocks=1))
    assert model.config.adapters == (MmcaConfig(rank=3, blocks=1),)
    assert model.image_depends_on_text
    with pytest.raises(ConfigError, match="mmca' already"):
        model.add_adapter(MmcaConfig(rank=3, blocks=1))
    MultiGrainModel(model.config).load_state_dict(model.state_dict(), strict=True)


def test_adapters_leave_the_hosts_random_start_alone(build: Build) -> None:
    states = []
    for adapter in (None, MmcaConfig(rank=3, blocks=1)):
        torch.manual_seed(7)
        config = build("vit").config
        torch.manual_seed(7)
        model = MultiGrainModel(
            ModelConfig(
                vision=config.vision,
                text=config.text,
                embed_dim=8,
                adapters=(adapter,) if adapter else (),
            )
        )
        states.append({n.replace("host.", ""): p for n, p in model.named_parameters()})
    plain, adapted = states
    assert set(plain) < set(adapted)
    assert all(torch.equal(value, adapted[name]) for name, value in plain.items())
