"""The comparison of switches: what each variant changes, read from the configs that would run."""

from pathlib import Path

import pytest
import yaml

from benchmarks.switches import FIGURES, settings_of, table, variants
from pretrain.config import PretrainConfig
from wholegrain.config import load_config

NAMES = list(variants(Path("corpus"), 300))


def config_of(name: str, tmp_path: Path) -> PretrainConfig:
    changes = variants(tmp_path / "corpus", 300)[name]
    file = tmp_path / "variant.yaml"
    settings = settings_of(name, changes, tmp_path / "corpus", tmp_path / "runs", 300)
    file.write_text(yaml.safe_dump(settings))
    return load_config(PretrainConfig, file)


@pytest.mark.parametrize("name", NAMES)
def test_every_variant_is_a_config(name: str, tmp_path: Path) -> None:
    config = config_of(name, tmp_path)
    ours = config_of("ours", tmp_path)
    assert config.model == ours.model
    assert (config != ours) == (name != "ours")
    assert config.data.validation is not None


def test_all_see_as_many_images(tmp_path: Path) -> None:
    separate = config_of("updates on regions alone", tmp_path)
    regions = separate.data.region_updates
    assert regions is not None
    images = separate.run.batch_size + regions.probability * regions.images
    ours = config_of("ours", tmp_path).run
    assert separate.run.steps * images == pytest.approx(ours.steps * ours.batch_size)


def test_one_thing_changes(tmp_path: Path) -> None:
    ours = config_of("ours", tmp_path)
    all_others = config_of("all others are negatives", tmp_path)
    assert all_others.objective.all_others_are_negatives
    assert not ours.objective.all_others_are_negatives
    assert all_others.data == ours.data
    flips = {name: config_of(name, tmp_path).data.augment.flip for name in NAMES if "flips" in name}
    assert set(flips.values()) == {"swap", "blind"}
    assert ours.data.augment.flip == "careful"


def test_the_table_has_a_row_a_variant() -> None:
    found = {name: dict.fromkeys(FIGURES, 0.5) for name in NAMES}
    assert table(found).row_count == len(NAMES)
