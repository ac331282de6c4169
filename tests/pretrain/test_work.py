"""What a batch costs: against the count from its shape, against torch, and places by hand."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pretrain.config import ObjectiveConfig
from pretrain.foreign import Capacity
from pretrain.inputs import inputs_of, mark_hidden
from pretrain.objective import PretrainingModule, run_objectives
from pretrain.passes import plan_passes
from pretrain.work import StepWork, step_sums
from wholegrain.boxes import box_mask
from wholegrain.data.batch import IMAGE, OBJECT, REGION, Concept, ConceptBatch, Sample, collate
from wholegrain.model.config import (
    BoxHeadConfig,
    ClsBoxHead,
    ModelConfig,
    PatchBoxHead,
    SwinVision,
    TextConfig,
    TimmVision,
    VisionConfig,
    VitVision,
)
from wholegrain.model.flops import StepShape, StepSums, step_flops
from wholegrain.model.multigrain import MultiGrainModel

SIDE = 64
WHOLE = (0.5, 0.5, 1.0, 1.0)
VISIONS: dict[str, VisionConfig] = {
    "swin": SwinVision(image_size=SIDE, embed_dim=8, depths=(2, 2), heads=(1, 2), window=4),
    "local": VitVision(image_size=SIDE, patch_size=16, width=24, depth=3, heads=3, local_layers=2),
    "timm": TimmVision(
        name="resnet18d",
        image_size=SIDE,
        stages=(1, 2, 3),
        options={"channels": [8, 12, 16, 16], "stem_width": 4},
    ),
}
DOG, CAR, GRASS = (0.3, 0.3, 0.4, 0.5), (0.8, 0.6, 0.3, 0.5), (0.6, 0.2, 0.2, 0.3)
# Grain, box, tokens and hidden words of each concept of each photo.
CONCEPTS = [
    [(IMAGE, WHOLE, 9, 2), (REGION, DOG, 4, 1), (OBJECT, CAR, 2, 0)],
    [(IMAGE, WHOLE, 12, 3), (REGION, GRASS, 6, 1)],
    [],
]
GRID = (8, 8)  # of "swin"


def config_of(vision: str, head: BoxHeadConfig | None = None) -> ModelConfig:
    text = TextConfig(
        vocab_size=50,
        hidden_size=24,
        layers=5,
        fusion_layer=2,
        heads=3,
        intermediate_size=40,
        max_positions=40,
        dropout=0.0,
        attention_dropout=0.0,
    )
    return ModelConfig(
        vision=VISIONS[vision], text=text, embed_dim=8, box_head=head or ClsBoxHead()
    )


def make_batch(grid: tuple[int, int] | None, boxes: bool = True) -> ConceptBatch:
    """Three photos with three, two and no concepts."""
    samples = []
    for number, some in enumerate(CONCEPTS):
        concepts = []
        for grain, box, length, hidden in some:
            ids = [2, *range(5, 4 + length)]
            labels = [ids[place] if 0 < place <= hidden else -100 for place in range(length)]
            text = f"text {number} {len(concepts)}"
            concepts.append(Concept(grain, box, text, ids, ids, labels))
        pixels = torch.randint(0, 256, (3, SIDE, SIDE)).to(torch.uint8)
        samples.append(Sample(f"a/{number}", pixels, concepts))
    return mark_hidden(collate(samples), grid, boxes)


def shape_of(batch: ConceptBatch, grid: tuple[int, int], seen: bool = True) -> StepShape:
    lengths = batch.cu_seqlens.diff().tolist()
    visible = box_mask(batch.concept_box, grid).sum(dim=1).tolist()
    patches = grid[0] * grid[1]
    return StepShape(
        images=batch.num_images,
        lengths=lengths,
        hidden=batch.extras["hidden_counts"].tolist(),
        regions=(batch.grain != IMAGE).nonzero().squeeze(1).tolist(),
        visible=visible if seen else [],
        whole=frozenset(c for c, count in enumerate(visible) if count == patches or not seen),
    )


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("head", [ClsBoxHead(), PatchBoxHead(width=8)])
def test_flops_are_those_of_the_batchs_shape(vision: str, head: BoxHeadConfig) -> None:
    config = config_of(vision, head)
    grid = MultiGrainModel(config).vision.grid
    work = StepWork(config, ObjectiveConfig(), None, "cpu")
    batch = make_batch(grid)
    assert work(batch).flops == step_flops(config, shape_of(batch, grid)).total
    # Where nobody counted what boxes show, every concept sees all.
    blind = make_batch(None)
    assert work(blind).flops == step_flops(config, shape_of(blind, grid, seen=False)).total


def test_sums_are_those_of_the_shape() -> None:
    batch = make_batch(GRID)
    assert step_sums(batch, 64) == StepSums.of(shape_of(batch, GRID), 64)


def test_an_empty_batch() -> None:
    batch = mark_hidden(collate([Sample("a", torch.zeros(3, SIDE, SIDE).byte(), [])]), GRID)
    work = StepWork(config_of("swin"), ObjectiveConfig(), None, "cuda")(batch)
    assert (work.samples, work.pairs, work.tokens, work.padded_tokens) == (1, 0, 0, 0)
    assert work.flops > 0


def test_a_box_head_that_is_left_out_costs_nothing() -> None:
    config = config_of("swin", PatchBoxHead(width=8))
    work = StepWork(config, ObjectiveConfig(), None, "cpu")
    without = step_sums(make_batch(GRID, boxes=False), 64)
    assert without.searched == without.boxed == 0
    # Patches of the images come into the head, whether or not a concept asks.
    none = make_batch(GRID)
    none.extras |= {"boxed": none.extras["boxed"][:0], "boxed_tokens": 0}
    cost = work(none).flops - work(make_batch(GRID, boxes=False)).flops
    assert cost == 3 * 2 * (3 * 64) * 16 * (2 * 8), "forward and twice backward of three images"


@pytest.mark.parametrize("vision", ["swin", "timm"])
def test_flops_against_torch(vision: str) -> None:
    """Real steps take at least the useful work, and here at most a quarter more."""
    torch.manual_seed(0)
    config = config_of(vision)
    # Evaluation: in training some samples go without some branches.
    model = MultiGrainModel(config).eval()
    batch = make_batch(model.vision.grid)
    module = PretrainingModule(model, ObjectiveConfig(), capacity=None)
    # The fused attention of the CPU is unknown to the counter; the plain one is two products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        module(batch)["loss"].backward()
    useful = StepWork(config, ObjectiveConfig(), None, "cpu")(batch).flops
    assert useful <= counter.get_total_flops() <= 1.25 * useful


def test_counts_by_hand() -> None:
    batch = make_batch(GRID)
    work = StepWork(config_of("swin"), ObjectiveConfig(), None, "cpu")(batch)
    assert (work.samples, work.pairs, work.tokens) == (3, 5, 9 + 4 + 2 + 12 + 6)
    assert work.padded_tokens == work.tokens


@pytest.mark.parametrize("negatives", ["rank", "global"])
def test_places_where_drawn_texts_are_not_asked_for(negatives: str) -> None:
    """Six passes of all texts and one of the boxed; the drawn ones are as long as the longest."""
    batch = make_batch(GRID)
    options = ObjectiveConfig(negatives=negatives)
    capacity = Capacity(concepts=8, images=4, tokens=20)
    work = StepWork(config_of("swin"), options, capacity, "cuda")(batch)
    longest = {"rank": 12, "global": 20}[negatives]
    real, places = 6 * 33 + 12, 5 * 33 + 12 + 5 * longest
    assert work.padded_tokens == round(33 * places / real) == {"rank": 37, "global": 44}[negatives]


def test_places_are_those_of_the_passes() -> None:
    batch = make_batch(GRID)
    torch.manual_seed(0)
    model = MultiGrainModel(config_of("swin"))
    options = ObjectiveConfig(negatives="rank")
    inputs = inputs_of(batch, model, options)
    with torch.no_grad():
        negatives = run_objectives(model, inputs, options).negatives
    passes = plan_passes(inputs, negatives, ask=False)
    places = inputs.texts.repeated(2).total + passes.chosen.texts.total
    work = StepWork(model.config, options, None, "cuda")(batch)
    assert work.padded_tokens == round(33 * places / (6 * 33 + 12))
