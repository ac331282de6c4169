"""Corpora, tokenizer and streams of a pretraining run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch

from pretrain.config import CorpusConfig, DataConfig, PretrainConfig
from pretrain.foreign import Capacity
from pretrain.inputs import mark_hidden
from pretrain.mixture import composition
from wholegrain.data import storage
from wholegrain.data.batch import ConceptBatch
from wholegrain.data.budget import ConceptBudget
from wholegrain.data.corpus import Corpus
from wholegrain.data.leak_audit import check_audit
from wholegrain.data.sampling import ConceptSampling
from wholegrain.data.skips import SkipLedger
from wholegrain.data.stream import EvalStream, Source, Stream, make_order
from wholegrain.errors import ConfigError
from wholegrain.text import Tokenizer


@dataclass
class PretrainData:
    """Everything that is read."""

    config: PretrainConfig
    corpora: list[Corpus]
    """Each corpus once, in whatever mixtures it stands."""
    sources: list[Source]
    """The mixture: one for each of its entries."""
    region_sources: list[Source]
    """The mixture of the region updates, where there are any."""
    validation: Corpus | None
    tokenizer: Tokenizer
    grid: tuple[int, int] | None = None
    """The model's patch grid, once it is known: what boxes show of it is counted on the host."""
    leak_audit: str = ""
    """What the audit that the config names says of the training photos."""
    ledgers: list[SkipLedger] = field(default_factory=list)
    """Of the training streams opened so far."""

    def stream(self, start: int, stop: int, rank: int, world: int) -> Iterator[ConceptBatch]:
        """A rank's parts `start` .. `stop` - 1 of the global batches."""
        stream = self._stream(self.sources, start, stop, rank, world, self._budget(world))
        return self._ready(stream, self._has_boxes())

    def region_stream(self, start: int, stop: int, rank: int, world: int) -> Iterator[ConceptBatch]:
        """A rank's parts `start` .. `stop` - 1 of the global batches of regions."""
        budget = self._region_budget(world)
        stream = self._stream(self.region_sources, start, stop, rank, world, budget)
        return self._ready(stream)

    def validation_stream(
        self, rank: int, world: int, batch_size: int = 32
    ) -> Iterator[ConceptBatch]:
        """Validation batches of a rank; the same whatever the number of ranks."""
        data = self.config.data
        if self.validation is None or data.validation is None:
            return iter(())
        stream = EvalStream(
            self.validation,
            batch_size=batch_size,
            tokenizer=self.tokenizer,
            resolution=self.config.model.vision.image_size,
            sampling=_cut(data.validation.sampling or data.sampling, data),
            masking=data.masking,
            rank=rank,
            world=world,
            limit=data.validation_images,
        )
        return self._ready(stream)

    def capacity(self, world: int) -> Capacity:
        """The most that a rank's part of any batch can hold."""
        data, run = self.config.data, self.config.run
        regions = data.region_updates
        images = max(run.batch_size, regions.images if regions is not None else 0)
        share = images // (run.accumulation * world)
        return Capacity(self.most_concepts(world), share, data.max_tokens)

    def most_concepts(self, world: int) -> int:
        """The most concepts that a rank's part of any batch can hold.

        Raises:
            ConfigError: nothing bounds them, or a batch does not divide by the number of ranks.
        """
        most = _most_concepts(self.sources, world)
        budget = self._budget(world)
        if budget is not None:
            most = min(most, budget.concepts)
        regions = self._region_budget(world)
        if regions is not None:
            make_order(0, self.region_sources).check_world(0, world)
            most = max(most, regions.concepts)
        return most

    def fingerprints(self) -> dict[str, str]:
        """Name of each entry of the mixtures to its corpus's fingerprint."""
        sources = [*self.sources, *self.region_sources]
        return {source.name: source.corpus.fingerprint for source in sources}

    def _stream(
        self,
        sources: Sequence[Source],
        start: int,
        stop: int,
        rank: int,
        world: int,
        budget: ConceptBudget | None,
    ) -> Stream:
        data, resolution = self.config.data, self.config.model.vision.image_size
        stream = Stream(
            sources,
            seed=self.config.run.seed,
            tokenizer=self.tokenizer,
            augment=dataclasses.replace(data.augment, resolution=resolution),
            sampling=data.sampling,
            masking=data.masking,
            rank=rank,
            world=world,
            start_step=start,
            stop_step=stop,
            workers=data.workers,
            skips=data.skips,
            budget=budget,
        )
        self.ledgers.append(stream.ledger)
        return stream

    def _ready(self, batches: Iterable[ConceptBatch], boxes: bool = True) -> Iterator[ConceptBatch]:
        """Counts what the host must know, and page-locks what a GPU will fetch.

        From other memory `to(device, non_blocking=True)` waits for all that the device has still to
        do. The streams' own `pin_memory` comes too early: what is counted here moves as well.
        """
        for batch in batches:
            marked = mark_hidden(batch, self.grid, boxes)
            # Where the model is on a GPU, CUDA is in use by the time that its first batch is made.
            yield marked.pin_memory() if torch.cuda.is_initialized() else marked

    def _budget(self, world: int) -> ConceptBudget | None:
        most = self.config.data.max_concepts
        if most is None:
            return None
        return ConceptBudget(self._share("data.max_concepts", most, world))

    def _region_budget(self, world: int) -> ConceptBudget | None:
        regions = self.config.data.region_updates
        if regions is None:
            return None
        share = self._share("data.region_updates.texts", regions.texts, world)
        return ConceptBudget(share, exact=True)

    def _share(self, where: str, count: int, world: int) -> int:
        """Of one rank in one part of a batch."""
        parts = self.config.run.accumulation * world
        if count % parts:
            raise ConfigError(
                f"{where} {count} does not divide into {world} ranks x "
                f"{self.config.run.accumulation} accumulated parts; make it a multiple"
            )
        return count // parts

    def _has_boxes(self) -> bool:
        """Whether the main updates train the box head.

        Beside region updates they leave it alone where no entry of the mixture brings a region:
        not even its moments and decay may move it. Alone they must take every parameter along.
        """
        if not self.region_sources:
            return True
        samplings = [source.sampling for source in self.sources if source.sampling is not None]
        return any(each.max_regions != 0 or each.max_objects != 0 for each in samplings)


def open_data(config: PretrainConfig, tokenizer: Tokenizer | None = None) -> PretrainData:
    """Opens corpora and makes the tokenizer.

    Args:
        config: the run's.
        tokenizer: of the run's checkpoint, where it is resumed.
    """
    data, run = config.data, config.run
    if data.storage is not None:
        storage.configure(data.storage)
    opened: dict[tuple[str, str | None], Corpus] = {}
    sources = _sources("data.train", data.train, run.batch_size, data.sampling, config, opened)
    region_sources: list[Source] = []
    if data.region_updates is not None:
        rules = data.region_updates
        region_sources = _sources(
            "data.region_updates.train", rules.train, rules.images, rules.sampling, config, opened
        )
    validation = open_corpus(data.validation) if data.validation else None
    corpora = list(opened.values())
    leak_audit = check_audit(data.audit, corpora, "data.audit")
    if tokenizer is None:
        tokenizer = make_tokenizer(data, corpora)
    return PretrainData(
        config, corpora, sources, region_sources, validation, tokenizer, leak_audit=leak_audit
    )


def _sources(
    where: str,
    entries: Sequence[CorpusConfig],
    total: int,
    sampling: ConceptSampling,
    config: PretrainConfig,
    opened: dict[tuple[str, str | None], Corpus],
) -> list[Source]:
    """The entries of a mixture whose global batch has `total` images; fills `opened`."""
    parts = config.run.accumulation
    sources = []
    shares = composition(where, entries, "the global batch of", total, parts)
    for number, (entry, share) in enumerate(zip(entries, shares, strict=True)):
        # Named by its place, not its path: the order is a function of the name, and a corpus
        # may lie elsewhere on another machine.
        name = f"{where}[{number}]"
        key = (entry.path, entry.split)
        if key not in opened:
            opened[key] = open_corpus(entry)
        rules = _cut(entry.sampling or sampling, config.data)
        order = entry.order or config.data.order
        sources.append(Source(name, opened[key], share // parts, rules, order.block, order.window))
    return sources


def open_corpus(corpus: CorpusConfig) -> Corpus:
    """The corpus, or its split."""
    opened = Corpus.open(corpus.path)
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


def _cut(sampling: ConceptSampling, data: DataConfig) -> ConceptSampling:
    return dataclasses.replace(sampling, max_tokens=data.max_tokens)


def _most_concepts(sources: Sequence[Source], world: int) -> int:
    """The most concepts of any rank's part of a batch, before any budget."""
    most = []
    for source in sources:
        count = source.sampling.most_concepts() if source.sampling is not None else None
        if count is None:
            raise ConfigError(
                f"{source.name}: the sampling's captions_per_image, max_regions and max_objects, "
                "or its max_concepts, need numbers in training; null (all) is for evaluation"
            )
        most.append(count)
    order = make_order(0, sources)
    slices = [order.rank_slice(0, rank, world).part.tolist() for rank in range(world)]
    return max(sum(most[part] for part in parts) for parts in slices)
