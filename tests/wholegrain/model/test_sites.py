"""The named places of a model: what they are, where they are, how wide."""

from collections.abc import Callable

import pytest

from wholegrain.model.adapters.sites import sites_of
from wholegrain.model.multigrain import MultiGrainModel

Build = Callable[..., MultiGrainModel]


@pytest.mark.parametrize(("kind", "blocks"), [("vit", 3), ("swin", 4), ("clip", 2)])
def test_transformers_have_blocks_with_projections(build: Build, kind: str, blocks: int) -> None:
    model = build(kind)
    sites = sites_of(model)
    names = [name for name in sites if name.startswith("vision.")]
    parts = ("", ".query", ".key", ".value", ".mlp")
    assert names == [f"vision.block.{n}{part}" for n in range(1, blocks + 1) for part in parts]
    for number, block in enumerate(model.vision.blocks(), start=1):
        whole = sites[f"vision.block.{number}"]
        assert whole.module is block
        assert whole.norm == "pre"
        assert whole.positions == ("relative" if kind == "swin" else "absolute")
        thirds = [sites[f"vision.block.{number}.{part}"] for part in ("query", "key", "value")]
        assert [site.offset for site in thirds] == [0, whole.width, 2 * whole.width]
        assert len({site.module for site in thirds}) == 1


def test_widths_follow_the_stages_of_swin(build: Build) -> None:
    sites = sites_of(build("swin"))
    assert [sites[f"vision.block.{n}"].width for n in (1, 2, 3, 4)] == [8, 8, 16, 16]
    assert sites["vision.block.3.mlp"].out == 64


def test_convolutions_have_stages(build: Build) -> None:
    sites = sites_of(build("timm"))
    names = [name for name in sites if name.startswith("vision.")]
    assert names == [f"vision.stage.{n}" for n in (1, 2, 3)]
    assert [sites[name].width for name in names] == [8, 12, 16]


def test_texts_have_layers_on_both_sides_of_the_image(build: Build) -> None:
    model = build("vit")
    sites = sites_of(model)
    for number in (1, 2):
        assert sites[f"text.layer.{number}"].module is model.text.layers[number - 1]
        assert sites[f"cross.layer.{number}"].module is model.cross.layers[number - 1]
        assert sites[f"text.layer.{number}"].norm == "post"
