"""What is compared: hosts, methods, data sets and budgets of ``grounding.yaml``, as configs."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from wholegrain.errors import ConfigError

Settings = dict[str, Any]

FILE = Path(__file__).with_name("grounding.yaml")
REFERENCE = "cross"
"""The method that every other is compared with on its host."""
FRESH = "mlp"
"""The same fusion with a fresh head, as other fusions need one: the fairer reference for them."""
PRETRAINED, SCRATCH = "pretrained", "from nothing"
STARTS = (PRETRAINED, SCRATCH)


@dataclass(frozen=True)
class Host:
    """A base model."""

    title: str
    model: Settings
    inference_only: bool = False


@dataclass(frozen=True)
class Method:
    """A way of grounding: what a finetuning config says of it."""

    title: str
    hosts: tuple[str, ...]
    against: tuple[str, ...] = ()
    settings: Settings = field(default_factory=dict)
    by_host: Settings = field(default_factory=dict)

    def on(self, host: str) -> Settings:
        """Its part of the config on a host."""
        return merged(self.settings, self.by_host.get(host, {}))


@dataclass(frozen=True)
class DataSet:
    """What is learnt from and measured on."""

    title: str
    vocabulary: int
    evaluate: str
    """The split that is measured."""
    pretrain: Settings
    """Section `data` of a pretraining config; paths hold ``{corpora}``."""
    finetune: Settings
    """Section `data` of a finetuning config, likewise."""
    model: Settings = field(default_factory=dict)
    """What it changes of every host's model."""


@dataclass(frozen=True)
class Budget:
    """How long everything takes."""

    pretrain_steps: int
    steps: int
    seeds: tuple[int, ...]
    rounds: int
    """Of the clock."""
    photos: int
    """On which ScanFormer's selection is looked at."""


@dataclass(frozen=True, order=True)
class Cell:
    """One run of the comparison."""

    data: str
    host: str
    method: str
    start: str
    """`PRETRAINED` or `SCRATCH`."""
    seed: int

    @property
    def name(self) -> str:
        """For files."""
        start = self.start.replace(" ", "_")
        return f"{self.data}.{self.host}.{self.method}.{start}.{self.seed}"


@dataclass(frozen=True)
class Recipes:
    """The whole file."""

    hosts: dict[str, Host]
    methods: dict[str, Method]
    data: dict[str, DataSet]
    budgets: dict[str, Budget]
    pretrain: Settings
    finetune: Settings
    file: Path = FILE

    @property
    def compared_hosts(self) -> dict[str, Host]:
        """Those that are trained."""
        return {name: host for name, host in self.hosts.items() if not host.inference_only}

    def finetune_data(self, data: str, corpora: Path) -> Settings:
        """Section `data` of a data set's finetuning config."""
        return placed(self.data[data].finetune, corpora)

    def model(self, data: str, host: str) -> Settings:
        """Section `model` of a host on a data set."""
        return merged(self.hosts[host].model, self.data[data].model)

    @classmethod
    def read(cls, path: Path = FILE) -> Recipes:
        """From YAML.

        Raises:
            ConfigError: a method names a host or another method that is not there, or is compared
                on a host that has no row of that method.
        """
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        methods = {
            name: Method(**{**one, "hosts": tuple(one["hosts"]), "against": _names(one, "against")})
            for name, one in found["methods"].items()
        }
        budgets = {
            name: Budget(**{**one, "seeds": tuple(one["seeds"])})
            for name, one in found["budgets"].items()
        }
        recipes = cls(
            hosts={name: Host(**one) for name, one in found["hosts"].items()},
            methods=methods,
            data={name: DataSet(**one) for name, one in found["data"].items()},
            budgets=budgets,
            pretrain=found["pretrain"],
            finetune=found["finetune"],
            file=path,
        )
        recipes._check(path)
        return recipes

    def _check(self, path: Path) -> None:
        for name, method in self.methods.items():
            for host in method.hosts:
                choose(f"{path}: methods.{name}.hosts", [host], self.hosts)
            for other in method.against:
                choose(f"{path}: methods.{name}.against", [other], self.methods)
                missing = set(method.hosts) - set(self.methods[other].hosts)
                if missing:
                    raise ConfigError(
                        f"{path}: {name} is compared with {other}, which is not on the host "
                        f"{sorted(missing)[0]!r}; add it there or leave {other} out of `against`"
                    )
            if name != REFERENCE and REFERENCE not in method.against:
                raise ConfigError(
                    f"{path}: methods.{name}.against lacks {REFERENCE!r}; every method is compared "
                    "with it"
                )

    def pairs(self, hosts: Iterable[str], methods: Iterable[str]) -> list[tuple[str, str]]:
        """(host, method) of those that go together, in the file's order."""
        chosen, wanted = set(hosts), set(methods)
        return [
            (host, name)
            for host in self.hosts
            for name, method in self.methods.items()
            if host in chosen and name in wanted and host in method.hosts
        ]

    def cells(
        self,
        data: str,
        pairs: Sequence[tuple[str, str]],
        starts: Sequence[str],
        seeds: Sequence[int],
    ) -> Iterator[Cell]:
        """All runs on a data set; whole seeds first, so that an early stop leaves whole rows."""
        for seed in seeds:
            for start in starts:
                for host, method in pairs:
                    yield Cell(data, host, method, start, seed)

    def pretraining(self, data: str, host: str, corpora: Path, steps: int) -> Settings:
        """The config of a base model's pretraining, without `out`."""
        chosen = self.data[data]
        section = placed(chosen.pretrain, corpora)
        section["tokenizer"] = {"size": chosen.vocabulary}
        run = {"steps": steps, "seed": 0, "save_every": max(1, steps // 4), "keep": 1}
        return merged(
            {"model": self.model(data, host), "data": section},
            merged(self.pretrain, {"run": run}),
        )

    def finetuning(self, cell: Cell, corpora: Path, steps: int, base: Path | None) -> Settings:
        """The config of a run, without `out`.

        Args:
            cell: which run.
            corpora: where the data set's corpora are.
            steps: of the run.
            base: the release that it starts from; None starts from nothing.
        """
        chosen = self.data[cell.data]
        start: Settings = {"init": str(base)}
        if base is None:
            model = self.model(cell.data, cell.host)
            start = {"model": model, "vocabulary": chosen.vocabulary}
        common = {"data": self.finetune_data(cell.data, corpora), **copy.deepcopy(start)}
        run = {"steps": steps, "seed": cell.seed, "save_every": 100, "keep": 1}
        whole = merged(merged(common, self.finetune), {"run": run})
        return merged(whole, self.methods[cell.method].on(cell.host))


def choose(what: str, names: Sequence[str] | None, known: Mapping[str, object]) -> list[str]:
    """The names, each of which must be known; None takes all.

    Raises:
        ConfigError: one is not.
    """
    for name in names or ():
        if name not in known:
            raise ConfigError(f"{what}: {name!r} is not there; choose among {', '.join(known)}")
    return list(known if names is None else dict.fromkeys(names))


def merged(base: Settings, over: Settings) -> Settings:
    """A copy of `base` in which the values of `over` stand; sections are merged key by key."""
    result = copy.deepcopy(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else copy.deepcopy(value)
    return result


def placed(section: Settings, corpora: Path) -> Settings:
    """A copy of a section with the paths of its corpora filled in."""

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: fill(one) for key, one in value.items()}
        if isinstance(value, list):
            return [fill(one) for one in value]
        return value.replace("{corpora}", str(corpora)) if isinstance(value, str) else value

    result: Settings = fill(section)
    return result


def _names(one: Settings, key: str) -> tuple[str, ...]:
    return tuple(one.get(key, ()))
