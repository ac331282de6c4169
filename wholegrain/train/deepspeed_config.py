"""DeepSpeed's settings: what its own file may hold, and what comes from our config alone.

Batch size, accumulation, precision, optimizer, schedule and clipping are decided in one place, our
config. A DeepSpeed file may repeat them, as files written for other programs do, but not
contradict them.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wholegrain.errors import ConfigError
from wholegrain.train.config import OptimConfig, RunConfig

_MOST_BYTES = 1 << 20
_PASSED_ON = frozenset(
    {
        "zero_optimization",
        "communication_data_type",
        "prescale_gradients",
        "gradient_predivide_factor",
        "disable_allgather",
    }
)
_ZERO_PASSED_ON = frozenset(
    {
        "stage",
        "contiguous_gradients",
        "reduce_scatter",
        "reduce_bucket_size",
        "use_multi_rank_bucket_allreduce",
        "allgather_partitions",
        "allgather_bucket_size",
        "overlap_comm",
        "round_robin_gradients",
        "parameter_alignment",
        "ignore_unused_parameters",
        "sub_group_size",
        "stage3_prefetch_bucket_size",
        "stage3_param_persistence_threshold",
        "stage3_model_persistence_threshold",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_module_granularity_threshold",
        "stage3_allgather_sequential",
        "log_trace_cache_warnings",
        "enable_sanity_checks",
    }
)
_SECTIONS = ("bf16", "fp16", "torch_autocast", "optimizer")  # compared leaf by leaf
_AUTOCAST = {"bf16": "bfloat16", "fp16": "float16"}
_OFFLOAD = (
    "which puts the update on the host, where it would wait for every gradient norm; remove it, "
    "and use more ranks or a higher stage for memory"
)
_REFUSED = {
    "steps_per_print": "a run writes its own metrics; remove it",
    "wall_clock_breakdown": "set run.profile instead; remove it",
    "memory_breakdown": "set run.profile instead; remove it",
    "flops_profiler": "set run.profile instead; remove it",
    "comms_logger": "set run.profile instead; remove it",
    "dump_state": "a run writes its config and environment by itself; remove it",
    "scheduler": "the rate follows optim.schedule; remove it",
    "amp": "Apex is not used, precision is run.precision; remove it",
    "checkpoint": "checkpoints are Wholegrain's own; remove it",
    "tensorboard": "a run writes TensorBoard's events by itself; remove it",
    "csv_monitor": "a run writes metrics.jsonl by itself; remove it",
    "wandb": "set run.wandb instead; remove it",
    "compile": "set run.compile instead; remove it",
    "data_types": "parameters and gradients are fp32, see run.precision; remove it",
    "gradient_allreduce_op": "gradients are averaged; remove it",
    "elasticity": "any number of ranks resumes any checkpoint; remove it",
}


@dataclass(frozen=True)
class DeepSpeedSettings:
    """A checked file."""

    path: Path
    stage: int
    """Of ZeRO, 0 to 3."""
    values: dict[str, Any]
    """All that DeepSpeed is given."""
    said: dict[str, Any]
    """What the file says of the optimizer, which `require_optim` looks at."""

    def require_optim(self, optim: OptimConfig) -> None:
        """Compares what the file says of the optimizer.

        Raises:
            ConfigError: it contradicts the config; names both values.
        """
        _compare_all(self.path, self.said, _optim_values(optim))


def read_deepspeed(run: RunConfig, world: int) -> DeepSpeedSettings:
    """Reads `run.deepspeed` and completes it from our config.

    Raises:
        ConfigError: the file cannot be read, or holds a setting that is unknown, that cannot work
            here, or that contradicts ours; names file, key, both values and the remedy.
    """
    assert run.deepspeed is not None
    path = Path(run.deepspeed)
    found = _read(path)
    zero = found.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise ConfigError(
            f'{path}: zero_optimization is {zero!r}; make it an object such as {{"stage": 1}}'
        )
    _refuse_auto(path, found)
    _refuse_unknown(path, found)
    _refuse_zero(path, zero)
    _compare_all(path, found, _run_values(run, world))
    stage = zero.get("stage", 0)
    completed = {
        "train_batch_size": run.batch_size,
        "train_micro_batch_size_per_gpu": run.batch_size // (run.accumulation * world),
        "gradient_accumulation_steps": run.accumulation,
        # Clipping, skipping and scaling are done in `Optimizer.step`, without waiting.
        "gradient_clipping": 0.0,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "zero_allow_untested_optimizer": True,
        "timers": {"throughput": {"enabled": False}},
    }
    passed = {key: value for key, value in found.items() if key in _PASSED_ON}
    if stage in (1, 2):
        passed["zero_optimization"] = {**zero, "compute_grad_norm": False}
    said = {key: value for key, value in found.items() if key in {"optimizer", "gradient_clipping"}}
    return DeepSpeedSettings(path, stage, {**passed, **completed}, said)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise ConfigError(
                f"{path}: has more than {_MOST_BYTES} bytes; run.deepspeed names a JSON file of "
                "DeepSpeed's settings"
            )
        found = json.loads(text, object_pairs_hook=_no_duplicates)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); run.deepspeed names a JSON file such as "
            "configs/deepspeed/zero1.json"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON ({error}); correct it") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: holds a {type(found).__name__}; make it a JSON object")
    return found


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} stands there twice")
        found[key] = value
    return found


def _refuse_auto(path: Path, section: Mapping[str, Any], above: str = "") -> None:
    for key, value in section.items():
        if value == "auto":
            raise ConfigError(
                f'{path}: {above}{key} is "auto", which another program would fill in; remove it, '
                "the value then comes from the config or is DeepSpeed's default"
            )
        if isinstance(value, dict):
            _refuse_auto(path, value, f"{above}{key}.")


def _refuse_unknown(path: Path, found: Mapping[str, Any]) -> None:
    compared = [*_run_values(RunConfig(), 1), *_optim_values(OptimConfig())]
    leaves = {key for key, _, _ in compared}
    known = _PASSED_ON | {key.partition(".")[0] for key in leaves}
    for key, value in found.items():
        if key in _REFUSED:
            if not _off(value):
                raise ConfigError(f"{path}: {key} is {value!r}; {_REFUSED[key]}")
        elif key not in known:
            raise ConfigError(f"{path}: unknown key {key!r}; {_nearest(key, known)}")
        elif key in _SECTIONS and not _off(value):
            for leaf in _leaves(value, key):
                if leaf not in leaves:
                    raise ConfigError(
                        f"{path}: {leaf} is {_at(found, leaf)!r}, which no engine of ours reads; "
                        "remove it"
                    )


def _refuse_zero(path: Path, zero: Mapping[str, Any]) -> None:
    stage = zero.get("stage", 0)
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        raise ConfigError(f"{path}: zero_optimization.stage is {stage!r}; give 0, 1, 2 or 3")
    for key, value in zero.items():
        if key in _ZERO_PASSED_ON:
            continue
        if key in {"offload_optimizer", "offload_param"}:
            device = value.get("device", "none") if isinstance(value, dict) else value
            if device not in {"none", None}:
                raise ConfigError(f"{path}: zero_optimization.{key} is to {device!r}, {_OFFLOAD}")
        elif key == "compute_grad_norm":
            if value is not False:
                raise ConfigError(
                    f"{path}: zero_optimization.compute_grad_norm is {value!r}; the norm is taken "
                    "by Wholegrain, once for all engines; remove it"
                )
        else:
            raise ConfigError(
                f"{path}: unknown or unsupported key 'zero_optimization.{key}'; "
                f"{_nearest(key, _ZERO_PASSED_ON)}"
            )


def _off(value: Any) -> bool:
    off = (None, False)
    return value in off or (isinstance(value, dict) and value.get("enabled") is False)


def _leaves(value: Any, above: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield above
        return
    for key, below in value.items():
        yield from _leaves(below, f"{above}.{key}")


def _nearest(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, sorted(known), n=1)
    return f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(sorted(known))}"


def _run_values(run: RunConfig, world: int) -> list[tuple[str, str, Any]]:
    """DeepSpeed's name of a setting, ours, and our value."""
    share = run.batch_size // (run.accumulation * world)
    each = f"run.batch_size {run.batch_size} in {run.accumulation} parts on {world} ranks"
    precision = f"run.precision {run.precision!r}"
    return [
        ("train_batch_size", "run.batch_size", run.batch_size),
        ("train_micro_batch_size_per_gpu", each, share),
        ("gradient_accumulation_steps", "run.accumulation", run.accumulation),
        ("bf16.enabled", precision, run.precision == "bf16"),
        ("fp16.enabled", precision, run.precision == "fp16"),
        ("torch_autocast.enabled", precision, run.precision != "fp32"),
        ("torch_autocast.dtype", precision, _AUTOCAST.get(run.precision)),
        ("zero_allow_untested_optimizer", "torch's AdamW", True),
    ]


def _optim_values(optim: OptimConfig) -> list[tuple[str, str, Any]]:
    return [
        ("gradient_clipping", "optim.clip_norm", optim.clip_norm),
        ("optimizer.type", "every recipe of optim", "AdamW"),
        ("optimizer.params.adam_w_mode", "every recipe of optim", True),
        ("optimizer.params.torch_adam", "every recipe of optim", True),
        ("optimizer.params.lr", "optim.lr", optim.lr),
        ("optimizer.params.betas", "optim.betas", list(optim.betas)),
        ("optimizer.params.eps", "optim.eps", optim.eps),
        ("optimizer.params.weight_decay", "optim.weight_decay", optim.weight_decay),
    ]


def _at(found: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key; None where there is none."""
    value: Any = found
    for part in key.split("."):
        if not isinstance(value, Mapping):
            return value  # a section that is no object is compared, and differs
        value = value.get(part)
    return value


def _compare_all(
    path: Path, found: Mapping[str, Any], values: Iterable[tuple[str, str, Any]]
) -> None:
    for key, name, ours in values:
        theirs = _at(found, key)
        if theirs is None or (_off(found[key.partition(".")[0]]) and not ours):
            continue
        if theirs != ours or isinstance(theirs, bool) != isinstance(ours, bool):
            which = f"{name} makes it" if " " in name else f"{name} is"
            raise ConfigError(
                f"{path}: {key} is {theirs!r}, {which} {ours!r}; remove it from the file"
            )
