"""Every shipped YAML loads with its class, and what is printed of it loads again."""

from pathlib import Path

import pytest
import torch
import yaml

from finetune.config import FinetuneConfig
from finetune.few_shot import main as few_shot
from finetune.refcoco import main as finetune
from finetune.shots.config import FewShotConfig
from pretrain.__main__ import main as pretrain
from pretrain.config import PretrainConfig
from wholegrain.config import from_dict, load_config
from wholegrain.model.config import ModelConfig
from wholegrain.model.grounding_reach import unreached
from wholegrain.model.multigrain import MultiGrainModel

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
FOLDERS = ("pretrain", "finetune")
STAGES = {
    "pretrain": (PretrainConfig, pretrain),
    "finetune": (FinetuneConfig, finetune),
    "few_shot": (FewShotConfig, few_shot),
}
FILES = sorted(CONFIGS.rglob("*.yaml"))


def name(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


def stage_of(path: Path) -> str:
    return "few_shot" if path.stem.startswith("few_shot") else path.parent.name


def test_every_folder_has_a_class() -> None:
    folders = {path.relative_to(CONFIGS).parts[0] for path in FILES}
    assert folders <= {*FOLDERS, "model"}, "say below how these are to be tested"
    assert set(FOLDERS) <= folders
    assert {stage_of(path) for path in FILES} >= set(STAGES)


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name in FOLDERS], ids=name)
def test_a_stage_loads_and_prints_itself(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cls, main = STAGES[stage_of(path)]
    config = load_config(cls, path)
    assert main(["--config", str(path), "--print-config"]) == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert load_config(cls, printed) == config
    # Two runs must not write into one folder by accident.
    others = [p for p in FILES if p.parent.name in FOLDERS and p != path]
    assert config.out not in {load_config(STAGES[stage_of(p)][0], p).out for p in others}


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name == "model"], ids=name)
def test_a_model_loads(path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    assert list(values) == ["model"]
    config = from_dict(ModelConfig, values["model"], where=str(path))
    sizes = {"tiny": ModelConfig.tiny, "base": ModelConfig.base}
    if path.stem in sizes:
        expected = sizes[path.stem]()
        assert config.vision == expected.vision
        assert config.box_head == expected.box_head


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name in FOLDERS], ids=name)
def test_a_stage_starts_from_what_another_makes(path: Path) -> None:
    if stage_of(path) != "finetune":
        return
    config = load_config(FinetuneConfig, path)
    stages = [load_config(PretrainConfig, p).out for p in FILES if p.parent.name == "pretrain"]
    outs = [*stages, PretrainConfig.__dataclass_fields__["out"].default]
    assert config.init is None or config.init in {f"{out}/release" for out in outs}


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if stage_of(p) == "finetune" and p.stem.startswith("refcoco")],
    ids=name,
)
def test_a_method_fits_the_base_that_its_config_names(path: Path) -> None:
    """At full size, on tensors without values; nothing that it adds is added in vain."""
    config = load_config(FinetuneConfig, path)
    with torch.device("meta"):
        model = MultiGrainModel(config.model or ModelConfig.base())
        if config.fusion is not None:
            model.new_fusion(config.fusion, config.box_head)
        for adapter in config.adapters:
            model.add_adapter(adapter)
    idle = unreached(model)
    assert not [each for each in idle if each.startswith(("fusion.", "adapters.", "box_head."))]
