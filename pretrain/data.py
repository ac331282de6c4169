"""Corpora, tokenizer and streams of a pretraining run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pretrain.config import CorpusConfig, DataConfig, PretrainConfig
from pretrain.objective import mark_hidden
from wholegrain.data.batch import ConceptBatch
from wholegrain.data.corpus import Corpus
from wholegrain.data.sampling import ConceptSampling
from wholegrain.data.stream import EvalStream, Source, Stream
from wholegrain.errors import ConfigError
from wholegrain.text import Tokenizer


@dataclass
class PretrainData:
    """Everything that is read."""

    config: PretrainConfig
    corpora: list[Corpus]
    sources: list[Source]
    """One for each corpus."""
    validation: Corpus | None
    tokenizer: Tokenizer

    def stream(self, start: int, stop: int, rank: int, world: int) -> Iterator[ConceptBatch]:
        """A rank's parts `start` .. `stop` - 1 of the global batches."""
        data, resolution = self.config.data, self.config.model.vision.image_size
        stream = Stream(
            self.sources,
            seed=self.config.run.seed,
            tokenizer=self.tokenizer,
            augment=dataclasses.replace(data.augment, resolution=resolution),
            sampling=_sampling(data),
            masking=data.masking,
            rank=rank,
            world=world,
            start_step=start,
            stop_step=stop,
            workers=data.workers,
        )
        return map(mark_hidden, stream)

    def validation_stream(
        self, rank: int, world: int, batch_size: int = 32
    ) -> Iterator[ConceptBatch]:
        """Validation batches of a rank; the same whatever the number of ranks."""
        if self.validation is None:
            return iter(())
        stream = EvalStream(
            self.validation,
            batch_size=batch_size,
            tokenizer=self.tokenizer,
            resolution=self.config.model.vision.image_size,
            sampling=_sampling(self.config.data),
            masking=self.config.data.masking,
            rank=rank,
            world=world,
            limit=self.config.data.validation_images,
        )
        return map(mark_hidden, stream)

    def capacity(self, world: int) -> int:
        """The most concepts that a rank's part of a batch can hold."""
        sampling, run = _sampling(self.config.data), self.config.run
        each = [sampling.captions_per_image, sampling.max_regions, sampling.max_objects]
        if any(count is None for count in each):
            raise ConfigError(
                "data.sampling: captions_per_image, max_regions and max_objects need numbers in "
                "training; null (all) is for evaluation"
            )
        concepts = sum(count or 0 for count in each) * (sampling.texts_per_region or 1)
        return run.batch_size // (run.accumulation * world) * concepts

    def fingerprints(self) -> dict[str, str]:
        """Name of each corpus to its fingerprint."""
        return {source.name: source.corpus.fingerprint for source in self.sources}


def open_data(config: PretrainConfig, tokenizer: Tokenizer | None = None) -> PretrainData:
    """Opens corpora and makes the tokenizer.

    Args:
        config: the run's.
        tokenizer: of the run's checkpoint, where it is resumed.
    """
    data, run = config.data, config.run
    corpora = [open_corpus(corpus) for corpus in data.train]
    sources = []
    for number, corpus in enumerate(data.train):
        per_batch = corpus.per_batch or run.batch_size
        if per_batch % run.accumulation:
            raise ConfigError(
                f"data.train[{number}].per_batch {per_batch} does not divide into "
                f"run.accumulation {run.accumulation} parts; make it a multiple"
            )
        # Named by its place, not its path: the order is a function of the name, and a corpus
        # may lie elsewhere on another machine.
        name = f"data.train[{number}]"
        sources.append(Source(name, corpora[number], per_batch // run.accumulation))
    validation = open_corpus(data.validation) if data.validation else None
    if tokenizer is None:
        tokenizer = make_tokenizer(data, corpora)
    return PretrainData(config, corpora, sources, validation, tokenizer)


def open_corpus(corpus: CorpusConfig) -> Corpus:
    """The corpus, or its split."""
    opened = Corpus.open(Path(corpus.path))
    return opened.select(corpus.split) if corpus.split else opened


def make_tokenizer(data: DataConfig, corpora: Iterable[Corpus]) -> Tokenizer:
    """The tokenizer that the config names, or one learnt from the corpora."""
    vocab = data.tokenizer.vocab
    if vocab is not None:
        return Tokenizer.load(vocab) if vocab.endswith(".json") else Tokenizer.from_vocab(vocab)
    texts = (text for corpus in corpora for text in _texts(corpus))
    return Tokenizer.train(islice(texts, data.tokenizer.texts), data.tokenizer.size)


def _texts(corpus: Corpus) -> Iterator[str]:
    for index in range(len(corpus)):
        record = corpus.record(index)
        yield from record.captions
        for region in record.regions:
            yield from region.texts
            yield from region.attributes


def _sampling(data: DataConfig) -> ConceptSampling:
    return dataclasses.replace(data.sampling, max_tokens=data.max_tokens)
