"""DeepSpeed's file: what it may hold, and what contradicts our config."""

import json
from pathlib import Path
from typing import Any

import pytest

from wholegrain.errors import ConfigError
from wholegrain.train.config import OptimConfig, RunConfig
from wholegrain.train.deepspeed_config import DeepSpeedSettings, read_deepspeed

ROOT = Path(__file__).parents[3]


def settings(folder: Path, content: Any, world: int = 2, **run: Any) -> DeepSpeedSettings:
    """What is read of a file with this content."""
    path = folder / "ds.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    options = {"batch_size": 16, "accumulation": 2, "deepspeed": str(path), **run}
    return read_deepspeed(RunConfig(**options), world)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_shipped_files_hold_only_deepspeeds_own(stage: int) -> None:
    path = ROOT / f"configs/deepspeed/zero{stage}.json"
    assert json.loads(path.read_text()).keys() == {"zero_optimization"}
    found = read_deepspeed(RunConfig(deepspeed=str(path)), 4)
    assert found.stage == stage
    assert found.values["zero_optimization"]["stage"] == stage


def test_ours_completes_it(tmp_path: Path) -> None:
    found = settings(tmp_path, {"zero_optimization": {"stage": 2}}, precision="bf16")
    assert found.values == {
        "zero_optimization": {"stage": 2, "compute_grad_norm": False},
        "train_batch_size": 16,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.0,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "zero_allow_untested_optimizer": True,
        "timers": {"throughput": {"enabled": False}},
    }


def test_what_repeats_ours_is_accepted(tmp_path: Path) -> None:
    found = settings(
        tmp_path,
        {
            "train_batch_size": 16,
            "train_micro_batch_size_per_gpu": 4,
            "gradient_accumulation_steps": 2,
            "gradient_clipping": 1.0,
            "bf16": {"enabled": True},
            "fp16": {"enabled": False, "loss_scale": 0},
            "torch_autocast": {"enabled": True, "dtype": "bfloat16"},
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.98]}},
            "wall_clock_breakdown": False,
            "zero_optimization": {"stage": 1, "offload_optimizer": {"device": "none"}},
        },
        precision="bf16",
    )
    found.require_optim(OptimConfig())
    assert found.values["gradient_clipping"] == 0.0


CLASHES: list[tuple[dict[str, Any], str]] = [
    (
        {"gradient_accumulation_steps": 4},
        r"ds.json: gradient_accumulation_steps is 4, run.accumulation is 2; remove it from the",
    ),
    ({"train_batch_size": 8}, r"train_batch_size is 8, run.batch_size is 16; remove"),
    (
        {"train_micro_batch_size_per_gpu": 8},
        r"per_gpu is 8, run.batch_size 16 in 2 parts on 2 ranks makes it 4; remove",
    ),
    ({"bf16": {"enabled": True}}, r"bf16.enabled is True, run.precision 'fp32' makes it False"),
    ({"fp16": {"enabled": True}}, r"fp16.enabled is True, run.precision 'fp32' makes it False"),
    ({"torch_autocast": {"enabled": True}}, r"torch_autocast.enabled is True, .* makes it False"),
    ({"zero_allow_untested_optimizer": False}, r"is False, torch's AdamW makes it True"),
    ({"scheduler": {"type": "WarmupLR"}}, r"scheduler is .*the rate follows optim.schedule; rem"),
    ({"amp": {"enabled": True}}, r"amp is .*precision is run.precision; remove it"),
    ({"bf16": {"enabled": True, "immediate_grad_update": True}}, r"bf16.immediate_grad_update is"),
    ({"train_batch_size": "auto"}, r'train_batch_size is "auto", which another program would fil'),
    (
        {"zero_optimization": {"reduce_bucket_size": "auto"}},
        r'zero_optimization.reduce_bucket_size is "auto"',
    ),
    ({"zero_optimisation": {}}, r"unknown key 'zero_optimisation'; did you mean 'zero_optimizat"),
    ({"moe": {}}, r"unknown key 'moe'; valid keys: bf16, communication_data_type, "),
    (
        {"zero_optimization": {"stag": 1}},
        r"unsupported key 'zero_optimization.stag'; did you mean 'stage'",
    ),
    ({"zero_optimization": {"stage": 4}}, r"zero_optimization.stage is 4; give 0, 1, 2 or 3"),
    ({"zero_optimization": {"stage": True}}, r"zero_optimization.stage is True; give 0, 1"),
    ({"zero_optimization": 1}, r"zero_optimization is 1; make it an object"),
    (
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
        r"offload_optimizer is to 'cpu', which puts the update on the host",
    ),
    (
        {"zero_optimization": {"stage": 1, "compute_grad_norm": True}},
        r"compute_grad_norm is True; the norm is taken by Wholegrain",
    ),
]


@pytest.mark.parametrize(("content", "message"), CLASHES)
def test_a_clash_names_both_values(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        settings(tmp_path, content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"gradient_clipping": 0.5}, r"gradient_clipping is 0.5, optim.clip_norm is 1.0; remove"),
        ({"optimizer": {"type": "Lamb"}}, r"optimizer.type is 'Lamb', .* makes it 'AdamW'"),
        (
            {"optimizer": {"type": "AdamW", "params": {"lr": 0.5}}},
            r"optimizer.params.lr is 0.5, optim.lr is 0.0001; remove it from the file",
        ),
        ({"optimizer": "AdamW"}, r"optimizer is 'AdamW'"),
    ],
)
def test_a_clash_with_the_optimizer(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(tmp_path, content).require_optim(OptimConfig())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"ds.json: not valid JSON \("),
        ("[1]", r"holds a list; make it a JSON object"),
        ('{"bf16": {}, "bf16": {}}', r"'bf16' stands there twice"),
        ("[" * 100_000, r"not valid JSON"),
        (" " * (1 << 20) + "{}", r"has more than 1048576 bytes"),
    ],
)
def test_what_is_no_file_of_settings(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(tmp_path, content)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    run = RunConfig(deepspeed=str(tmp_path / "no.json"))
    with pytest.raises(ConfigError, match=r"no.json: cannot be read \(No such file.*zero1.json"):
        read_deepspeed(run, 1)
