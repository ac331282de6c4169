"""The configuration of the few-shot protocols."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Literal

from pydantic import Field

from finetune.shots.layouts import DOMAINS, ELEVEN, LAYOUTS
from wholegrain.config import config
from wholegrain.errors import ConfigError
from wholegrain.model.config import MmaConfig

_MOST_SEED = 2**63 - 1  # torch's generators take 64 bits with a sign

Protocol = Literal["base_to_novel", "cross_dataset", "domain_generalisation"]


@config
class ClipHost:
    """OpenAI's CLIP in transformers' layout."""

    kind: Literal["clip"] = "clip"
    path: str = "openai/clip-vit-base-patch16"
    """A folder of `save_pretrained` (weights as safetensors), from which alone is then read; or the
    id of one at the hub, which is fetched."""
    revision: str | None = None
    """Branch, tag or commit at the hub; null for its main branch."""


@config
class ReleaseHost:
    """A model of this library, compared by its contrastive vectors."""

    path: str
    """A release, or a run folder whose newest checkpoint is taken."""
    kind: Literal["wholegrain"] = "wholegrain"


HostConfig = Annotated[ClipHost | ReleaseHost, Field(discriminator="kind")]


@config
class OwnSet:
    """A data set that no layout is known of, with a JSON of splits as CoOp's are."""

    folder: str
    """Of the data set, below `data.root`."""
    images: str = "."
    """Below `folder`: what the paths of the split are relative to."""
    split: str = "split.json"
    """Below `folder`: ``{"train": [[path, label, class name], ...], "test": [...]}``."""


@config
class FewShotDataConfig:
    """What is read."""

    root: str = "corpora/few_shot"
    """Folder of the data sets' folders."""
    sets: tuple[str, ...] | None = None
    """Which are tested on; null takes all that the protocol is published with: the eleven, the ten
    without ImageNet, or the four variants of ImageNet."""
    own: dict[str, OwnSet] = Field(default_factory=dict)
    """Further data sets by name, which `sets` and `source` may then name."""
    listed_shots: bool = False
    """Whether the images to learn from are those of ``split_fewshot/shot_K-seed_S.json`` in a
    set's folder; false draws them."""
    workers: int = Field(default=4, ge=0)
    """Threads that decode images; 0 decodes between the steps."""


@config
class SgdConfig:
    """SGD with a rate that falls by a cosine, epoch by epoch, and no warm-up."""

    lr: float = Field(default=0.0015, gt=0)
    """Rate of the first epoch."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of the velocity."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """Added to the gradient, biases included."""
    epochs: int = Field(default=5, ge=1)
    """Passes over the shots."""
    batch_size: int = Field(default=16, ge=1)
    """Images a step; all class names are encoded in each. The last images of an epoch that do not
    fill a batch are left out, unless they are all."""
    imagenet_batch_size: int = Field(default=128, ge=1)
    """Images a step where ImageNet is learnt from."""


@config
class FewShotConfig:
    """A few-shot run: adapters learnt from some images a class, on one or several data sets."""

    protocol: Protocol = "base_to_novel"
    """`base_to_novel`: on each set, learn from the first half of the classes and test on either.
    `cross_dataset`, `domain_generalisation`: learn from all classes of `source` and test on it and
    on `data.sets`."""
    host: HostConfig = Field(default_factory=ClipHost)
    """What the adapters sit on; it stays as it is."""
    adapter: MmaConfig = Field(default_factory=lambda: MmaConfig(gradient_trick=True))
    """The adapters that are learnt."""
    data: FewShotDataConfig = Field(default_factory=FewShotDataConfig)
    """Data sets."""
    source: str = "imagenet"
    """The set that is learnt from, of the protocols with one source."""
    shots: int = Field(default=16, ge=1)
    """Images a class to learn from; a class that has fewer gives all."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """One run each: of shots, order, views and fresh adapters; 0 to 2**63 - 1."""
    template: str = "a photo of a {}."
    """What is said of a class; underscores of its name become spaces."""
    optim: SgdConfig = Field(default_factory=SgdConfig)
    """Optimizer and schedule."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the encoders' passes; weights, vectors and logits are fp32."""
    device: str | None = None
    """Where to run; null takes the rank's GPU if there is one."""
    eval_batch_size: int = Field(default=100, ge=1)
    """Test images encoded together."""
    zero_shot: bool = True
    """Whether the host without adapters is measured as well."""
    out: str = "runs/few_shot"
    """Folder of the results."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds is {list(self.seeds)}; give at least one, each once")
        for seed in self.seeds:
            if not 0 <= seed <= _MOST_SEED:
                raise ConfigError(f"seeds has {seed}; give numbers from 0 to {_MOST_SEED}")
        if self.template.count("{}") != 1 or re.search(r"[{}]", self.template.replace("{}", "")):
            raise ConfigError(
                f"template is {self.template!r}; it must hold one {{}} for the class and no other "
                "brace"
            )
        for name in self.data.own:
            if not re.fullmatch(r"[a-z0-9_]+", name) or name in LAYOUTS:
                raise ConfigError(
                    f"data.own has {name!r}; choose a name of a-z, 0-9 and _ that is not one of "
                    f"{', '.join(LAYOUTS)}"
                )
        targets = self.targets
        if not targets or len(set(targets)) < len(targets):
            raise ConfigError(f"data.sets is {list(targets)}; name at least one set, each once")
        for name in targets:
            self._check_set("data.sets", name, learnt=self.protocol == "base_to_novel")
        if self.protocol != "base_to_novel":
            self._check_set("source", self.source, learnt=True)
            if self.source in targets:
                raise ConfigError(
                    f"source is {self.source!r}, which data.sets has too; it is tested anyway, "
                    "leave it out there"
                )

    @property
    def targets(self) -> tuple[str, ...]:
        """The sets that are tested on, but for the source."""
        if self.data.sets is not None:
            return self.data.sets
        if self.protocol == "domain_generalisation":
            return DOMAINS
        without = () if self.protocol == "base_to_novel" else (self.source,)
        return tuple(name for name in ELEVEN if name not in without)

    @property
    def names(self) -> tuple[str, ...]:
        """All sets that are read, the source first."""
        return self.targets if self.protocol == "base_to_novel" else (self.source, *self.targets)

    def batch_size(self, source: str) -> int:
        """Images a step where a set is learnt from."""
        is_large = source == "imagenet"
        return self.optim.imagenet_batch_size if is_large else self.optim.batch_size

    def _check_set(self, field: str, name: str, learnt: bool) -> None:
        known = [*LAYOUTS, *self.data.own]
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise ConfigError(f"{field} has {name!r}, which is no data set; {hint}")
        if learnt and name in DOMAINS:
            raise ConfigError(
                f"{field} has {name!r}, which has no training images; name one of "
                f"{', '.join(ELEVEN)}"
            )
