"""Miniatures of the data sets' folders, and the smallest CLIP with a tokenizer of letters."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.shots.layouts import LAYOUTS, Layout
from wholegrain.hub.card import Card
from wholegrain.hub.release import save_release
from wholegrain.model.config import ModelConfig, TextConfig, VitVision
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.text import Tokenizer

SIDE = 8
Triple = tuple[str, int, str]


def write_image(path: Path, colour: Sequence[int], size: tuple[int, int] = (SIDE, SIDE)) -> None:
    """A JPEG of one colour, width by height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        Image.new("RGB", size, tuple(colour)).save(path, "JPEG", quality=95)


def write_split(path: Path, parts: dict[str, Iterable[Triple]]) -> None:
    """A JSON of splits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({part: [list(t) for t in triples] for part, triples in parts.items()})
    )


def _paths(name: str, label: int) -> str:
    """How a set's own paths look."""
    return {
        "caltech101": f"class_{label}/image_0001.jpg",
        "oxford_pets": f"breed_{label}_1.jpg",
        "stanford_cars": f"cars_train/{label:05d}.jpg",
        "oxford_flowers": f"image_{label:05d}.jpg",
        "food101": f"dish_{label}/{label}.jpg",
        "sun397": f"a/place_{label}/sun_{label}.jpg",
        "dtd": f"texture_{label}/texture_{label}_0001.jpg",
        "eurosat": f"Land{label}/Land{label}_1.jpg",
        "ucf101": f"Do_Thing_{label}/v_DoThing_g01_c{label}.jpg",
    }[name]


def lay_out(root: Path, name: str) -> Path:
    """Writes the smallest folder that a layout takes: one image a class and split."""
    layout = LAYOUTS[name]
    folder = root / layout.folder
    assert layout.classes is not None
    if layout.kind == "split":
        paths = [_paths(name, label) for label in range(layout.classes)]
        triples = [(path, label, f"class_{label}") for label, path in enumerate(paths)]
        for path in paths:
            write_image(folder / layout.images / path, (10, 20, 30))
        write_split(folder / layout.labels, {"train": triples, "val": [], "test": triples})
    elif layout.kind == "variants":
        names = [f"Jet {label}-{label % 7}00" for label in range(layout.classes)]
        folder.mkdir(parents=True)
        (folder / "variants.txt").write_text("\n".join(names) + "\n")
        for part in ("train", "val", "test"):
            lines = [f"{part}{label:03d} {name}" for label, name in enumerate(names)]
            (folder / f"images_variant_{part}.txt").write_text("\n".join(lines) + "\n")
            for label in range(layout.classes):
                write_image(folder / "images" / f"{part}{label:03d}.jpg", (label, 20, 30))
    else:
        _lay_out_folders(folder, layout)
    return folder


def _lay_out_folders(folder: Path, layout: Layout) -> None:
    """ImageNet and its variants: all 1,000 names, a folder for each class that there is."""
    ids = [f"n{1000 + 3 * number:08d}" for number in range(1000)]
    folder.mkdir(parents=True)
    (folder / layout.labels).write_text(
        "".join(f"{each} thing {number}\n" for number, each in enumerate(ids))
    )
    assert layout.classes is not None
    # ImageNet-A and -R have 200 of the classes, not the first ones.
    kept = ids if layout.classes == 1000 else ids[3::5]
    if layout.kind == "numbered":
        kept = [str(number) for number in range(1000)]
    else:
        (folder / layout.images).mkdir(parents=True)
        (folder / layout.images / "README.txt").write_text("no class")
    one = folder / "one.jpg"
    write_image(one, (90, 20, 30))
    for name in kept:
        place = folder / layout.images / name
        place.mkdir(parents=True)
        (place / "x.jpeg").hardlink_to(one)
    (place / ".hidden").touch()
    if layout.train:  # a thousand folders more would take longer than all tests
        (folder / layout.train).symlink_to(folder / layout.images)


@pytest.fixture(scope="session")
def layouts_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All fifteen data sets, once a session; nobody writes there."""
    root = tmp_path_factory.mktemp("layouts")
    for name in LAYOUTS:
        lay_out(root, name)
    return root


COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "grey": (128,) * 3}


@pytest.fixture(scope="session")
def colours_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Own set `colours`: four colours, 6 images a class to learn from and 8 to test on."""
    root = tmp_path_factory.mktemp("colours")
    parts: dict[str, list[Triple]] = {"train": [], "test": []}
    rng = np.random.default_rng(0)
    for label, (name, colour) in enumerate(COLOURS.items()):
        for part, count in (("train", 6), ("test", 8)):
            for number in range(count):
                shade = np.clip(np.array(colour) + rng.integers(-25, 26, 3), 0, 255)
                path = f"{name}/{part}_{number}.jpg"
                write_image(root / "colours" / path, shade.tolist(), (20, 16))
                parts[part].append((path, label, f"{name}_thing"))
    write_split(root / "colours" / "split.json", parts)
    return root


def _letters() -> tuple[dict[str, int], list[tuple[str, str]]]:
    symbols = [chr(code) for code in range(33, 127)]
    pieces = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    return {piece: number for number, piece in enumerate(pieces)}, []


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of about 30,000 random weights, as `save_pretrained` writes it."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    vocabulary, merges = _letters()
    sizes: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **sizes,
        "vocab_size": len(vocabulary),
        "hidden_size": 24,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
        "bos_token_id": vocabulary["<|startoftext|>"],
        "eos_token_id": vocabulary["<|endoftext|>"],
        "pad_token_id": vocabulary["<|endoftext|>"],
    }
    vision = {
        **sizes,
        "hidden_size": 32,
        "intermediate_size": 48,
        "image_size": 16,
        "patch_size": 8,
    }
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    model.save_pretrained(folder)
    CLIPTokenizer(vocab=vocabulary, merges=merges).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def release_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of about 30,000 random weights and a tokenizer that knows the colours."""
    tokenizer = Tokenizer.train(["a photo of a red green blue grey thing"] * 2, 100)
    torch.manual_seed(1)
    model = MultiGrainModel(
        ModelConfig(
            vision=VitVision(image_size=16, patch_size=8, width=24, depth=2, heads=2),
            text=TextConfig(
                vocab_size=tokenizer.vocab_size,
                hidden_size=24,
                layers=3,
                fusion_layer=2,
                heads=2,
                intermediate_size=32,
                max_positions=24,
            ),
            embed_dim=8,
        )
    )
    with torch.no_grad():
        for weight in (*model.text.parameters(), *model.vision.parameters()):
            if weight.ndim > 1:  # at their initial scale all texts and images look alike
                weight.mul_(10)
    folder = tmp_path_factory.mktemp("release") / "release"
    return save_release(folder, model, tokenizer, card=Card(title="x"))


@pytest.fixture
def settings(
    clip_folder: Path, colours_root: Path, tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    """Makes the settings of a run on the colours that takes about a second."""

    def make(**changes: Any) -> dict[str, Any]:
        values: dict[str, Any] = {
            "out": str(tmp_path / "run"),
            "host": {"kind": "clip", "path": str(clip_folder)},
            "adapter": {
                "kind": "mma",
                "rank": 8,
                "alpha": 0.1,
                "blocks": 2,
                "gradient_trick": True,
            },
            "data": {
                "root": str(colours_root),
                "own": {"colours": {"folder": "colours"}},
                "sets": ["colours"],
                "workers": 0,
            },
            "shots": 4,
            "seeds": [1, 2],
            "optim": {"lr": 0.02, "epochs": 8, "batch_size": 4},
            "eval_batch_size": 8,
            "device": "cpu",
        }
        for key, value in changes.items():
            values[key] = {**values[key], **value} if isinstance(value, dict) else value
        return values

    return make
