"""Networks of timm: what a configuration, perhaps of another's release, cannot make of them."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm

from wholegrain.config import from_dict
from wholegrain.errors import ConfigError
from wholegrain.model.config import DetrVision, ModelConfig, TimmVision
from wholegrain.model.timm_network import FACTORY_ARGUMENTS, check_plain, make_network
from wholegrain.model.vision import build_vision

SMALL = {"channels": [8, 12, 16, 16], "stem_width": 4}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that timm's factory was called with."""
    names: list[str] = []
    create = timm.create_model

    # The signature stays timm's own, which is looked at.
    def noted(name: str, **arguments: Any) -> Any:
        names.append(name)
        return create(name, **arguments)

    noted.__signature__ = inspect.signature(create)  # type: ignore[attr-defined]
    monkeypatch.setattr(timm, "create_model", noted)
    return names


@pytest.mark.parametrize("kind", ["timm", "detr"])
@pytest.mark.parametrize(
    "name",
    ["hf-hub:some/one", "hf_hub:some/one", "local-dir:/etc", "some/one", "../x", "resnet50./x", ""],
)
def test_a_name_that_is_fetched_or_read_is_refused(kind: str, name: str, made: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(ModelConfig, {"vision": {"kind": kind, "name": name}}, where="r/config.json")
    assert str(caught.value).startswith(
        f"r/config.json: vision.name is {name!r}, which is no plain"
    )
    assert not made


def test_the_nearest_names_are_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'resnet50'"):
        TimmVision(name="hf-hub:timm/resnet50.a1_in1k")
    with pytest.raises(ConfigError, match=r"'convnxt_tiny'.*timm does not have.*'convnext_tiny'"):
        build_vision(TimmVision(name="convnxt_tiny"))
    with pytest.raises(ConfigError, match=r"see timm\.list_models\(\)"):
        build_vision(TimmVision(name="zzzzzzzzzz"))


@pytest.mark.parametrize("kind", ["timm", "detr"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("checkpoint_path", "/etc/hostname"),
        ("checkpoint_path", "/nope"),
        ("pretrained", True),
        ("pretrained_cfg", "a1_in1k"),
        ("cache_dir", "/tmp/x"),
        ("pruned", True),
        ("features_only", False),
        ("out_indices", [1]),
    ],
)
def test_arguments_of_the_factory_are_refused(
    kind: str, key: str, value: object, made: list[str]
) -> None:
    vision = {"kind": kind, "options": {key: value}}
    with pytest.raises(ConfigError) as caught:
        from_dict(ModelConfig, {"vision": vision}, where="r/config.json")
    assert str(caught.value).startswith(f"r/config.json: vision.options.{key} is {value!r}, which")
    assert not made


def test_all_that_the_installed_timm_takes_for_itself_is_denied() -> None:
    for factory in (timm.create_model, timm.models.build_model_with_cfg):
        assert set(inspect.signature(factory).parameters) <= FACTORY_ARGUMENTS


def test_what_a_later_timm_takes_for_itself_is_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(model_name: str, weights_at: str = "", **kwargs: Any) -> None:
        raise AssertionError("called")

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(ConfigError, match=r"vision\.options\.weights_at is 'x'"):
        make_network("resnet18d", {"weights_at": "x"}, (1,), remedy="")


def test_every_name_of_timm_is_plain() -> None:
    for name in timm.list_models(include_tags=True):
        check_plain(name, {})


def test_a_plain_name_is_made(made: list[str]) -> None:
    _, channels, strides = make_network("resnet18d", SMALL, (1, 3), remedy="")
    assert (channels, strides) == ([8, 16], [4, 16])
    assert made == ["resnet18d"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TimmVision(options={"act_layer": "zz"}), "KeyError: 'zz'; change the stages or the"),
        (TimmVision(name="vit_base_patch16_224", options={"patch_size": 0}), "ZeroDivisionError"),
        (DetrVision(options={"norm_layer": "zz"}), "residual network"),
    ],
)
def test_whatever_timm_raises_is_the_configurations_error(
    config: TimmVision | DetrVision, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        build_vision(config)
    assert f"vision.name is {config.name!r}" in str(caught.value)
    assert message in str(caught.value)


def test_a_configuration_does_without_timm(repository: Path) -> None:
    """It is imported for `--help`, which must not wait for it."""
    code = (
        "import sys; from wholegrain.model.config import TimmVision, DetrVision; "
        "TimmVision(); DetrVision(); print(sorted({'timm', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
