"""The shipped recipes: their figures, and each of them on miniature corpora of the same shape."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from safetensors.torch import load_file

from pretrain.__main__ import main
from pretrain.config import CorpusConfig, ObjectiveConfig, PretrainConfig
from wholegrain.config import load_config
from wholegrain.data.record import Record, Region
from wholegrain.data.sampling import ConceptSampling
from wholegrain.data.shard import ShardWriter
from wholegrain.errors import run_cli
from wholegrain.model.config import ModelConfig
from wholegrain.text import Tokenizer
from wholegrain.train.journal import tag

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "pretrain"
PROGRAM = Path(__file__).with_name("signalled_program.py")
RECIPES = ("4m", "16m", "4m_xvlm", "16m_xvlm")
# Millions of captions, or of records with boxes, that the shares of a batch go by.
CAPTIONS = {"coco": 0.55, "vg": 0.80, "sbu": 0.86, "cc3m": 2.90}
MORE_CAPTIONS = {**CAPTIONS, "cc12m": 11.10}
REGIONS = [("coco", 0.11), ("vg", 0.10), ("vg", 0.10)]
MORE_REGIONS = [*REGIONS, ("objects365", 0.58), ("open_images", 1.70)]


def recipe(name: str) -> PretrainConfig:
    return load_config(PretrainConfig, CONFIGS / f"{name}.yaml")


def named(entries: tuple[CorpusConfig, ...]) -> list[tuple[str, int]]:
    return [(Path(entry.path).name, entry.per_batch) for entry in entries]


def shares(total: int, sizes: list[tuple[str, float]]) -> list[tuple[str, int]]:
    """Whole shares of a batch by size: largest remainders are rounded up, the first ones first."""
    exact = [total * size / sum(size for _, size in sizes) for _, size in sizes]
    whole = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: whole[i] - exact[i])
    for i in by_remainder[: total - sum(whole)]:
        whole[i] += 1
    return [(name, share) for (name, _), share in zip(sizes, whole, strict=True)]


# The figures of X-VLM's recipes


@pytest.mark.parametrize(
    ("name", "ranks", "steps", "tokens", "masks", "captions", "regions"),
    [
        ("4m_xvlm", 8, 41 * 4995, 40, 8, CAPTIONS, REGIONS),
        ("16m_xvlm", 24, 38 * 5280, 30, 6, MORE_CAPTIONS, MORE_REGIONS),
    ],
)
def test_figures_that_differ_between_xvlms_recipes(
    name: str,
    ranks: int,
    steps: int,
    tokens: int,
    masks: int,
    captions: dict[str, float],
    regions: list[tuple[str, float]],
) -> None:
    config = recipe(name)
    run, data, updates = config.run, config.data, config.data.region_updates
    assert updates is not None
    assert (run.steps, run.batch_size, run.accumulation) == (steps, ranks * 128, 1)
    assert (updates.images, updates.texts, updates.probability) == (ranks * 48, ranks * 128, 0.5)
    assert data.max_tokens == tokens
    assert data.masking.max_masks == masks
    assert named(data.train) == shares(ranks * 128, list(captions.items()))
    assert named(updates.train) == shares(ranks * 48, regions)


@pytest.mark.parametrize("name", ["4m_xvlm", "16m_xvlm"])
def test_figures_that_xvlms_recipes_share(name: str) -> None:
    config = recipe(name)
    optim, run = config.optim, config.run
    augment, masking = config.data.augment, config.data.masking
    assert optim.recipe == "xvlm"
    assert (optim.lr, optim.new_lr_factor, optim.weight_decay) == (1e-4, 2.0, 0.01)
    assert (optim.betas, optim.eps, optim.clip_norm) == ((0.9, 0.98), 1e-8, 1.0)
    assert (optim.warmup, optim.schedule) == (2500, "linear")
    assert (run.precision, run.save_every, run.seed) == ("bf16", 50_000, 42)
    assert run.keep >= run.steps // run.save_every + 1  # all of them stay
    assert (augment.mode, augment.min_scale, augment.colour) == ("xvlm", 0.2, 0.0)
    assert (augment.flip, augment.flip_probability) == ("blind", 0.5)
    assert (augment.randaugment_ops, augment.randaugment_magnitude) == (2, 7)
    assert (masking.probability, masking.skipgram, masking.whole_word) == (0.25, 0.2, True)
    assert (masking.mask_share, masking.random_share) == (0.8, 0.1)
    assert config.model == ModelConfig.base()
    assert (config.model.text.dropout, config.model.text.attention_dropout) == (0.1, 0.1)
    assert getattr(config.model.vision, "drop_path", None) == 0.1
    objective = ObjectiveConfig(
        all_others_are_negatives=True, contrastive_gradient="xvlm", means="rank"
    )
    assert config.objective == objective
    assert (objective.negatives, objective.contrastive_form) == ("rank", "softmax")
    assert {n: w for n, w in objective.weights().items() if n != "box_vote"} == dict.fromkeys(
        ("contrastive", "matching", "masked_language", "box_l1", "box_giou"), 1.0
    )


@pytest.mark.parametrize("name", ["4m_xvlm", "16m_xvlm"])
def test_slots_of_xvlms_recipes(name: str) -> None:
    data = recipe(name).data
    pair = ConceptSampling(captions_per_image=1, max_regions=0, max_objects=0)
    assert data.sampling == pair
    for entry in data.train:
        phrases = dataclasses.replace(pair, phrases_as_captions=True)
        assert entry.sampling == (phrases if entry.path == "corpora/vg" else None)
    assert data.region_updates is not None
    coco, objects, regions, *others = data.region_updates.train
    rules = [entry.sampling for entry in (coco, objects, regions)]
    five = [(r.captions_per_image, r.max_regions, r.max_objects) for r in rules if r is not None]
    assert five == [(1, 0, 5), (0, 0, 5), (0, 5, 0)]
    assert all(entry.sampling == objects.sampling for entry in others)
    for rule in rules:
        assert rule is not None
        assert rule.most_concepts() == 5
        assert (rule.anchor_first, rule.distinct_texts, rule.min_area_kept) == (False, False, 0.5)


# Our own recipes


@pytest.mark.parametrize(
    ("name", "batch", "captions", "boxes"),
    [("4m", 1024, CAPTIONS, []), ("16m", 3072, MORE_CAPTIONS, MORE_REGIONS[3:])],
)
def test_our_recipes_mix_everything_in_one_update(
    name: str, batch: int, captions: dict[str, float], boxes: list[tuple[str, float]]
) -> None:
    config = recipe(name)
    data = config.data
    assert (config.run.batch_size, data.region_updates) == (batch, None)
    # Corpora of boxes alone take what X-VLM's region updates give them on average.
    pairs, all_regions = config.run.batch_size, sum(size for _, size in MORE_REGIONS)
    per_step = 0.5 * 1152 * sum(size for _, size in boxes) / all_regions
    boxed = round(pairs * per_step / (pairs + per_step))
    expected = shares(batch - boxed, list(captions.items()))
    assert named(data.train) == expected + (shares(boxed, boxes) if boxes else [])
    with_boxes = {"coco", "vg", "objects365", "open_images"}
    most = 0
    for entry in data.train:
        rules = entry.sampling or data.sampling
        count = rules.most_concepts()
        assert count == (5 if Path(entry.path).name in with_boxes else 1)
        most += entry.per_batch * count
    assert data.max_concepts is not None
    assert 0.9 * most < data.max_concepts < most
    assert data.augment.flip == "swap"
    assert config.optim.recipe == "plain"
    assert config.objective == ObjectiveConfig()


@pytest.mark.parametrize("name", RECIPES)
def test_all_recipes_start_from_the_same_backbones(name: str) -> None:
    config = recipe(name)
    assert config.init.vision == "backbones/swin_base_patch4_window7_224_22k.pth"
    assert config.init.text == "backbones/bert-base-uncased"
    assert config.data.tokenizer.vocab == "backbones/bert-base-uncased/vocab.txt"
    assert config.data.validation is not None
    assert 0 < config.run.log_every <= config.run.validate_every <= config.run.steps


# Miniature corpora


def _photo(number: int) -> bytes:
    colours = np.random.default_rng(number).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    pixels = np.kron(colours, np.ones((16, 16, 1), dtype=np.uint8))
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels)))


def _regions(number: int, grains: str, attributes: tuple[str, ...]) -> tuple[Region, ...]:
    """Six regions of the grains, one after the other; 96 x 64 px."""
    made = []
    for place in range(6 if grains else 0):
        box = (float(8 * place), float(4 * place), 30.0 + number, 25.0)
        if grains[place % len(grains)] == "o":
            made.append(Region("object", box, (f"thing {place}",), attributes=attributes))
        else:
            made.append(Region("region", box, (f"the left thing {place}", f"part {place}")))
    return tuple(made)


def _write(folder: Path, captions: int, grains: str, split: str, *attributes: str) -> None:
    name = folder.name
    with ShardWriter(folder, source={"converter": name}, max_samples=3) as writer:
        for number in range(5):
            texts = tuple(f"photo {number} of a thing, {place}" for place in range(captions))
            regions = _regions(number, grains, attributes)
            record = Record(f"{name}/{number}", name, split, 96, 64, texts, regions)
            writer.write(record, _photo(number), "jpg")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of corpora of a few images each, with what the real ones of their names hold."""
    folder = tmp_path_factory.mktemp("corpora")
    _write(folder / "coco", 5, "o", "train")
    _write(folder / "coco_val", 5, "o", "val")
    _write(folder / "vg", 0, "or", "train", "red", "old")
    for name in ("sbu", "cc3m", "cc12m"):
        _write(folder / name, 1, "", "train")
    for name in ("objects365", "open_images"):
        _write(folder / name, 0, "o", "train")
    assert _audit(folder, "coco/391895") == 0
    return folder


def _audit(folder: Path, protected: str, *, out: str = "audit.json") -> int:
    """Writes the audit that the recipes name, against one protected photo; the exit status."""
    from data_tools.__main__ import main as data_tools

    listed = folder / f"{out}.protected.txt"
    listed.write_text(f"{protected}\n")
    names = ("coco", "vg", "sbu", "cc3m", "cc12m", "objects365", "open_images")
    corpora = [str(folder / name) for name in names]
    return data_tools(["audit", *corpora, f"--against=refcoco={listed}", f"--out={folder / out}"])


MINIATURE = (
    # The same parts, each as small as it gets.
    "--model.vision={image_size: 64, embed_dim: 8, depths: [1, 1, 1, 1], heads: [1, 2, 4, 8], "
    "window: 2}",
    "--model.text={hidden_size: 32, layers: 2, fusion_layer: 1, heads: 2, intermediate_size: 48, "
    "max_positions: 40}",
    "--model.embed_dim=16",
    "--init={vision: null, text: null}",
    "--data.tokenizer={vocab: null, size: 200}",
    "--data.workers=0",
    "--data.validation_images=4",
    "--run.precision=fp32",
    "--run.log_every=1",
    "--run.validate_every=0",
)


def overrides(name: str, corpora: Path, each: int = 1) -> list[str]:
    """A recipe's config on the miniature corpora, with `each` images of each entry in a batch."""
    data = recipe(name).data
    flags = [*MINIATURE, f"--data.validation.path={corpora}/coco_val"]
    flags += [f"--data.audit={corpora}/audit.json"]

    def place(where: str, entries: tuple[CorpusConfig, ...]) -> int:
        for number, entry in enumerate(entries):
            path = corpora / Path(entry.path).name
            flags.append(f"--{where}.{number}={{path: {path}, per_batch: {each}}}")
        return each * len(entries)

    flags.append(f"--run.batch_size={place('data.train', data.train)}")
    if data.region_updates is not None:
        images = place("data.region_updates.train", data.region_updates.train)
        flags += [f"--data.region_updates.images={images}"]
        flags += [f"--data.region_updates.texts={3 * images}"]
    else:
        flags += ["--data.max_concepts=12"]
    return ["--config", str(CONFIGS / f"{name}.yaml"), *flags]


@pytest.mark.parametrize("name", RECIPES)
def test_a_dry_run_of_each_recipe(
    name: str, corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main([*overrides(name, corpora), f"--out={out}", "--dry-run"]) == 0
    text = capsys.readouterr().out
    config = recipe(name)
    for entry in config.data.train:
        assert f"{corpora / Path(entry.path).name} (5)" in text
    (epochs,) = (line for line in text.splitlines() if line.startswith("epochs "))
    assert all(f"{corpora / Path(entry.path).name} " in epochs for entry in config.data.train)
    assert f" images a step; {config.run.steps:,} steps, " in text
    (losses,) = (line for line in text.splitlines() if line.startswith("losses "))
    assert "nan" not in losses
    if config.data.region_updates is None:
        assert "region " not in text
        assert "box_l1" in losses
    else:
        assert "regions      " in text
        (region,) = (line for line in text.splitlines() if line.startswith("region "))
        assert "before 50% of the steps" in region
        # Boxes are learnt in the updates of their own alone; the others have no such loss.
        assert "box_l1" in region and "box_giou" in region and "box" not in losses
    assert not out.exists()


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_start_with_an_audit_alone(
    name: str, corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = recipe(name)
    assert config.data.audit == "corpora/audit.json"
    given = [*overrides(name, corpora), f"--out={tmp_path / 'run'}", "--dry-run"]
    assert run_cli(main, [*given, f"--data.audit={corpora}/none.json"]) == 2
    error = capsys.readouterr().err
    assert "data.audit is" in error and "which does not exist" in error
    entries = [*config.data.train]
    if config.data.region_updates is not None:
        entries += config.data.region_updates.train
    folders = dict.fromkeys(str(corpora / Path(entry.path).name) for entry in entries)
    # The command that makes it names each corpus once; the recipe's own comment says the same.
    assert f"audit {' '.join(folders)} --against refcoco,refcoco+,refcocog,flickr30k" in error
    names = ",".join(Path(entry).name for entry in folders)
    assert f"audit corpora/{{{names}}} " in (CONFIGS / f"{name}.yaml").read_text()
    assert _audit(corpora, "coco/1", out="leaky.json") == 1
    assert run_cli(main, [*given, f"--data.audit={corpora}/leaky.json"]) == 2
    error = capsys.readouterr().err
    assert f"split 'train' of {corpora}/coco holds 1 evaluation photos (refcoco listed 1)" in error
    assert not (tmp_path / "run").exists()


# A run of the faithful recipe


def metrics(out: Path) -> list[dict[str, Any]]:
    entries = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in entry.items() if not tag("train", k).startswith("speed/")}
        for entry in entries
    ]


@pytest.fixture(scope="module")
def faithful(corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """Six steps of 4m_xvlm.yaml in miniature: its arguments and its run folder."""
    torch.set_num_threads(1)  # as the processes that tests start
    flags = ["--run.steps=6", "--run.save_every=4", "--optim.warmup=2", "--run.seed=0"]
    given = [*overrides("4m_xvlm", corpora), *flags]
    out = tmp_path_factory.mktemp("faithful") / "run"
    assert main([*given, f"--out={out}"]) == 0
    return given, out


def test_a_run_of_the_faithful_recipe(faithful: tuple[list[str], Path]) -> None:
    _, out = faithful
    train = [line for line in metrics(out) if line["split"] == "train"]
    plain = {"contrastive", "matching", "masked_language", "loss"}
    plain |= {"gradient_norm", "skipped", "outliers"}
    grains = ("/image", "/region", "/object")
    boxes = {"box_l1", "box_giou"}
    region = {f"region/{name}" for name in plain | boxes}
    # With seed 0 all steps of the six but the fourth begin with a region update.
    for step, line in enumerate(train):
        expected = plain | (set() if step == 3 else region)
        rates = {"learning_rate", "learning_rate/new", "skipped_samples"}
        named = {name for name in line if not name.endswith(grains)}
        assert named - {"step", "split"} - rates == expected
        assert {f"contrastive{grain}" for grain in grains} <= line.keys()
        parts = sum(line[name] for name in ("contrastive", "matching", "masked_language"))
        assert line["loss"] == pytest.approx(parts, rel=1e-5)
        if step != 3:
            names = ("contrastive", "matching", "masked_language", *boxes)
            parts = sum(line[f"region/{name}"] for name in names)
            assert line["region/loss"] == pytest.approx(parts, rel=1e-5)
    rates = [line["learning_rate"] for line in train]
    assert rates == pytest.approx([0, 0.5e-4, 1e-4, 0.75e-4, 0.5e-4, 0.25e-4])
    state = json.loads((out / "checkpoints/step_000006/state.json").read_text())
    assert state["optimizer"]["updates"] == 6 + 5
    assert {"region_images", "region_texts", "region_probability"} <= state["facts"].keys()
    assert "data.region_updates.train[2]" in state["facts"]["corpora"]
    validation = metrics(out)[-1]
    assert validation["split"] == "val"
    assert "box_acc@0.5_object" in validation
    card = (out / "release" / "README.md").read_text()
    assert "pretrained on coco, vg, sbu, cc3m" in card
    assert "none of the 1 photos of refcoco (listed 1) is among the training photos" in card


def test_killed_and_continued_it_is_the_same_run(
    faithful: tuple[list[str], Path], tmp_path: Path, launch: Callable[..., str]
) -> None:
    given, whole = faithful
    out = tmp_path / "run"
    # The checkpoint is of step 4, before which three of four steps had a region update.
    launch(PROGRAM, "SIGKILL", 5, *given, f"--out={out}", status=-9)
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"step_000004"}
    launch("-m", "pretrain", *given, f"--out={out}")
    assert metrics(out) == metrics(whole)
    file = "checkpoints/step_000006/model.safetensors"
    expected = load_file(whole / file)
    for name, value in load_file(out / file).items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--data.region_updates.probability=0.25", "region_updates.probability was 0.5, is now"),
        ("--data.region_updates=null", "data.region_updates.images was 3, is now 'absent'"),
        ("--data.train.1.sampling=null", "data.train.1.sampling.phrases_as_captions was True"),
    ],
)
def test_a_resume_with_other_region_updates_is_refused(
    faithful: tuple[list[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    override: str,
    message: str,
) -> None:
    given, whole = faithful
    out = shutil.copytree(whole, tmp_path / "run")
    assert run_cli(main, [*given, f"--out={out}", override]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.ranks
def test_the_faithful_recipe_on_two_ranks(
    corpora: Path, tmp_path: Path, launch: Callable[..., str]
) -> None:
    out = tmp_path / "run"
    flags = ["--run.steps=2", "--run.accumulation=2", "--run.seed=0", f"--out={out}"]
    given = [*overrides("4m_xvlm", corpora, each=4), *flags]
    launch("--standalone", "--nproc-per-node", 2, "-m", "pretrain", *given, program="torchrun")
    lines = [line for line in metrics(out) if line["split"] == "train"]
    assert [line["skipped"] + line["region/skipped"] for line in lines] == [0.0, 0.0]
    assert all("box_l1" not in line and line["region/box_l1"] > 0 for line in lines)


# Backbones


def test_a_backbone_that_is_not_there(
    corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*overrides("4m", corpora), f"--out={tmp_path / 'run'}", "--dry-run"]
    for name, path, origin in (
        ("vision", "swin.pth", "https://github.com/SwinTransformer/storage"),
        ("text", "bert", "hf download google-bert/bert-base-uncased"),
    ):
        missing = tmp_path / path
        assert run_cli(main, [*given, f"--init.{name}={missing}"]) == 2
        error = capsys.readouterr().err
        for part in (f"init.{name} is '{missing}'", origin, f"set init.{name} to null"):
            assert part in error
    assert list(tmp_path.iterdir()) == []


def test_a_run_starts_from_its_backbone_and_is_resumed_without_it(
    corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import BertConfig, BertModel

    folder, out = tmp_path / "bert", tmp_path / "run"
    texts = [f"photo {n} of a left thing part red old" for n in range(6)] * 3
    tokenizer = Tokenizer.train(texts, vocab_size=150)
    bert = BertModel(
        BertConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            max_position_embeddings=40,
        )
    )
    bert.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(tokenizer.tokens(range(tokenizer.vocab_size))))
    given = [
        *overrides("4m", corpora),
        f"--init.text={folder}",
        f"--data.tokenizer.vocab={folder / 'vocab.txt'}",
        f"--model.text.vocab_size={tokenizer.vocab_size}",
        *("--run.steps=1", "--optim.warmup=1", f"--out={out}"),  # the rate of step 0 is 0
    ]
    assert main(given) == 0
    assert str(folder) in capsys.readouterr().out
    weights = load_file(out / "checkpoints/step_000001/model.safetensors").values()
    expected = bert.embeddings.word_embeddings.weight.detach()
    assert any(torch.equal(weight, expected) for weight in weights)
    shutil.rmtree(folder)
    assert main(given) == 0
