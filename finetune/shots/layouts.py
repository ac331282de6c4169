"""Where the files of the few-shot data sets lie: the layout that CoOp published, set by set.

Eleven sets are learnt from and tested on; four variants of ImageNet are tested on alone. Below a
common root each has a folder with its images, and either one JSON of splits (``split_zhou_*.json``)
or the lists and folders that it came with. The splits are those of CoOp, so that figures compare.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_PREPARE = "CoOp's DATASETS.md"


@dataclass(frozen=True)
class Layout:
    """One data set on disk."""

    title: str
    """How tables call it."""
    kind: Literal["split", "variants", "folders", "numbered"]
    """`split`: a JSON of splits. `variants`: FGVC-Aircraft's lists. `folders`: a folder a class,
    named by its WordNet id. `numbered`: a folder a class, named by its number."""
    folder: str
    """Below the root."""
    images: str
    """Below `folder`: what the paths of a split, or the class folders of the test images, are
    relative to."""
    labels: str
    """Below `folder`: the file that names the classes."""
    classes: int | None
    """How many there are; None takes what the split holds."""
    source: str
    """Where the files come from."""
    train: str | None = None
    """Below `folder`: class folders of the training images, of the kind `folders`."""

    @property
    def test_only(self) -> bool:
        """Whether there is nothing to learn from."""
        return self.kind == "numbered" or (self.kind == "folders" and self.train is None)


def _split(title: str, classes: int, folder: str, images: str, name: str, url: str) -> Layout:
    labels = f"split_zhou_{name}.json"
    return Layout(title, "split", folder, images, labels, classes, f"{url} and {_PREPARE}")


def _variant(title: str, classes: int, folder: str, images: str, url: str) -> Layout:
    kind: Literal["folders", "numbered"] = "numbered" if "format-val" in images else "folders"
    return Layout(title, kind, folder, images, "classnames.txt", classes, f"{url} and {_PREPARE}")


LAYOUTS: dict[str, Layout] = {
    "imagenet": Layout(
        "ImageNet",
        "folders",
        "imagenet",
        "images/val",
        "classnames.txt",
        1000,
        f"https://image-net.org and {_PREPARE}",
        train="images/train",
    ),
    "caltech101": _split(
        "Caltech101",
        100,
        "caltech-101",
        "101_ObjectCategories",
        "Caltech101",
        "https://data.caltech.edu/records/mzrjq-6wc02",
    ),
    "oxford_pets": _split(
        "OxfordPets",
        37,
        "oxford_pets",
        "images",
        "OxfordPets",
        "https://www.robots.ox.ac.uk/~vgg/data/pets",
    ),
    "stanford_cars": _split(
        "StanfordCars",
        196,
        "stanford_cars",
        ".",
        "StanfordCars",
        "https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
    ),
    "oxford_flowers": _split(
        "Flowers102",
        102,
        "oxford_flowers",
        "jpg",
        "OxfordFlowers",
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102",
    ),
    "food101": _split(
        "Food101",
        101,
        "food-101",
        "images",
        "Food101",
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101",
    ),
    "fgvc_aircraft": Layout(
        "FGVCAircraft",
        "variants",
        "fgvc_aircraft",
        "images",
        "variants.txt",
        100,
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft (the folder `data` of its archive)",
    ),
    "sun397": _split(
        "SUN397",
        397,
        "sun397",
        "SUN397",
        "SUN397",
        "https://vision.princeton.edu/projects/2010/SUN",
    ),
    "dtd": _split(
        "DTD",
        47,
        "dtd",
        "images",
        "DescribableTextures",
        "https://www.robots.ox.ac.uk/~vgg/data/dtd",
    ),
    "eurosat": _split(
        "EuroSAT", 10, "eurosat", "2750", "EuroSAT", "https://github.com/phelber/EuroSAT"
    ),
    "ucf101": _split(
        "UCF101",
        101,
        "ucf101",
        "UCF-101-midframes",
        "UCF101",
        "UCF-101-midframes.zip (the middle frame of each video)",
    ),
    "imagenetv2": _variant(
        "ImageNet-V2",
        1000,
        "imagenetv2",
        "imagenetv2-matched-frequency-format-val",
        "https://github.com/modestyachts/ImageNetV2 (matched frequency)",
    ),
    "imagenet_sketch": _variant(
        "ImageNet-Sketch",
        1000,
        "imagenet-sketch",
        "images",
        "https://github.com/HaohanWang/ImageNet-Sketch",
    ),
    "imagenet_a": _variant(
        "ImageNet-A",
        200,
        "imagenet-adversarial",
        "imagenet-a",
        "https://github.com/hendrycks/natural-adv-examples",
    ),
    "imagenet_r": _variant(
        "ImageNet-R",
        200,
        "imagenet-rendition",
        "imagenet-r",
        "https://github.com/hendrycks/imagenet-r",
    ),
}

ELEVEN = tuple(name for name, layout in LAYOUTS.items() if not layout.test_only)
"""The sets of the published mean, ImageNet first."""

DOMAINS = tuple(name for name, layout in LAYOUTS.items() if layout.test_only)
"""ImageNet's classes, or 200 of them, in other pictures."""
