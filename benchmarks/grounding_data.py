"""The corpora of the comparison, made by `data_tools` where they are not there yet."""

from __future__ import annotations

from pathlib import Path

from benchmarks.grounding_cells import run_command
from wholegrain.data.corpus_manifest import MANIFEST

SCENES = {"train": 4000, "val": 16, "test": 300}
"""How many of each split; validation is not measured, but each data set has one."""
QUICK_SCENES = {"train": 500, "val": 16, "test": 60}


WORLD = {"size": 64, "objects": 3, "zoom": 1.3}
"""An easy world in small pictures, which heads that answer from one vector learn within minutes.
With 3 to 6 objects of the usual size at 128 px they still say the constant box after 540 steps."""


def make_scenes(folder: Path, counts: dict[str, int]) -> Path:
    """Generated scenes: corpora ``train`` (three grains) and ``expressions``; returns `folder`.

    Args:
        folder: of the corpora, beside which the pictures come to lie.
        counts: scenes of each split.
    """
    scenes, log = (
        folder.with_name(f"{folder.name}_pictures"),
        folder.with_name(f"{folder.name}.log"),
    )
    if not scenes.exists():
        options = [f"--{name}={value}" for name, value in {**WORLD, **counts}.items()]
        made = ["scenes", "--out", str(scenes), *options]
        run_command(["-m", "data_tools", *made], log)
    images = ["--images", str(scenes / "images")]
    if not (folder / "train" / MANIFEST).exists():
        files = [f"--{kind}={scenes}/{kind}_train.json" for kind in ("captions", "instances")]
        made = ["convert", "coco", *images, *files, "--out", str(folder / "train")]
        run_command(["-m", "data_tools", *made], log)
    if not (folder / "expressions" / MANIFEST).exists():
        given = ["--root", str(scenes), *images, "--split-by", "scenes"]
        made = ["convert", "refcoco", *given, "--out", str(folder / "expressions")]
        run_command(["-m", "data_tools", *made], log)
    return folder


def make_flickr(folder: Path, source: Path) -> Path:
    """Flickr30k Entities, splits ``train`` and ``val``; returns `folder`.

    Args:
        folder: of the corpus.
        source: what `data_tools convert flickr30k_entities` reads.
    """
    if not (folder / MANIFEST).exists():
        made = ["convert", "flickr30k_entities", "--root", str(source), "--out", str(folder)]
        run_command(["-m", "data_tools", *made], folder.with_name(f"{folder.name}.log"))
    return folder
