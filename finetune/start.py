"""Where finetuning starts: a release, the newest checkpoint of a run, or nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import torch

from finetune.config import FinetuneConfig
from wholegrain.data.corpus import Corpus
from wholegrain.errors import ConfigError
from wholegrain.hub.backbones import load_backbones
from wholegrain.hub.release import CHECKSUMS, load_release, model_config
from wholegrain.model.grounding_reach import unreached
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.text import Tokenizer
from wholegrain.train import checkpoint


def starting_model(config: FinetuneConfig, corpus: Corpus) -> tuple[MultiGrainModel, Tokenizer]:
    """The model with its head and adapters, and the tokenizer that goes with it.

    Args:
        config: the run's.
        corpus: the training split, whose texts a missing vocabulary is learnt from.
    """
    torch.manual_seed(config.run.seed)
    if config.init is not None:
        model, tokenizer = pretrained(Path(config.init))
    else:
        assert config.model is not None  # the config says so
        tokenizer = _tokenizer(config, corpus)
        text = dataclasses.replace(config.model.text, vocab_size=tokenizer.vocab_size)
        model = MultiGrainModel(dataclasses.replace(config.model, text=text))
        if config.backbones is not None:
            paths = dataclasses.asdict(config.backbones)
            load_backbones(model, **{name: Path(path) for name, path in paths.items() if path})
    if config.fusion is not None:
        model.new_fusion(config.fusion, config.box_head)
    elif config.box_head is not None:
        model.new_box_head(config.box_head)
    for adapter in config.adapters:
        model.add_adapter(adapter)
    if config.data.max_tokens > model.max_text:
        raise ConfigError(
            f"data.max_tokens is {config.data.max_tokens}, but the model reads texts of at most "
            f"{model.max_text} tokens (text.max_positions; fusion.max_text where there is one); "
            "lower data.max_tokens"
        )
    _freeze(model, config.train_host)
    return model, tokenizer


def pretrained(folder: Path, field: str = "init") -> tuple[MultiGrainModel, Tokenizer]:
    """The model of a release, or of the newest checkpoint of a run folder.

    Args:
        folder: of either.
        field: of the configuration that names it, for the error.

    Raises:
        ConfigError: it is neither.
        ReleaseError, CheckpointError: it is one that cannot be read.
    """
    if (folder / CHECKSUMS).exists():
        model, tokenizer, _ = load_release(folder)
        return model, tokenizer
    found = checkpoint.latest(folder)
    if found is None:
        raise ConfigError(
            f"{field} is {str(folder)!r}, which holds neither a release ({CHECKSUMS}) nor a "
            "complete checkpoint; give a release folder or a run folder"
        )
    problem = checkpoint.verify(found)
    if problem is not None:
        raise ConfigError(
            f"{field}: {found.folder} is not whole: {problem}; give another run or a release"
        )
    described = json.loads((found.folder / "config.json").read_text(encoding="utf-8"))
    model = MultiGrainModel(model_config(described, where=str(found.folder / "config.json")))
    found.load(model)
    return model, Tokenizer.load(found.folder / "tokenizer.json")


def _tokenizer(config: FinetuneConfig, corpus: Corpus) -> Tokenizer:
    if config.tokenizer is None:
        return Tokenizer.train(_texts(corpus), config.vocabulary)
    if config.tokenizer.endswith(".json"):
        return Tokenizer.load(config.tokenizer)
    return Tokenizer.from_vocab(config.tokenizer)


def _texts(corpus: Corpus) -> Iterator[str]:
    for index in range(len(corpus)):
        for region in corpus.record(index).regions:
            yield from region.texts


def _freeze(model: MultiGrainModel, train_host: bool) -> None:
    """Stops what no box depends on, and the host where only additions shall train."""
    model.requires_grad_(train_host)
    model.box_head.requires_grad_(True)
    model.adapters.requires_grad_(True)
    if model.fusion is not None:
        model.fusion.requires_grad_(True)
    parameters = dict(model.named_parameters())
    for name in unreached(model):
        parameters[name].requires_grad_(False)
