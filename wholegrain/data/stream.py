"""Streams: concept batches for a range of steps, the same whoever asks.

The order is a pure function and each sample's chance is keyed by (seed, corpus, epoch, sample), so
a stream has no state to save: a resume is another `start_step`. Workers get step numbers and give
back whole batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from wholegrain.data.augment import AugmentConfig
from wholegrain.data.batch import ConceptBatch, Sample, collate
from wholegrain.data.budget import ConceptBudget
from wholegrain.data.corpus import Corpus, prefetch
from wholegrain.data.masking import MaskingConfig
from wholegrain.data.order import Order, Part
from wholegrain.data.permutation import keyed_rng, stable_key
from wholegrain.data.prepare import Job, Preparer, SampleReader
from wholegrain.data.sampling import ConceptSampling
from wholegrain.data.skips import Skip, SkipLedger, SkipPolicy
from wholegrain.data.storage import StorageGone
from wholegrain.data.workers import Workers
from wholegrain.errors import DataError, RecordError
from wholegrain.text import Tokenizer

_MAX_REPLACEMENTS = 16  # bad samples in a row; more is no accident
_STUCK_AFTER_S = 600


@dataclass(frozen=True)
class Source:
    """One corpus of a stream's mixture.

    Attributes:
        name: unique in the mixture.
        corpus: usually a `Corpus`, or a split of one.
        per_batch: its samples in each global batch.
        sampling: overrides the stream's for this corpus.
        block, window: of the block-wise order, see `Part`; block None permutes all samples at once.
    """

    name: str
    corpus: SampleReader
    per_batch: int
    sampling: ConceptSampling | None = None
    block: int | None = None
    window: int = 16


def make_order(seed: int, sources: Sequence[Source]) -> Order:
    """The order of a mixture."""
    return Order(
        seed,
        [
            Part(s.name, len(s.corpus), s.corpus.fingerprint, s.per_batch, s.block, s.window)
            for s in sources
        ],
    )


@dataclass(frozen=True)
class _Delivery:
    """What a worker hands over: a batch, or why there is none, and how many samples were bad."""

    batch: ConceptBatch | None
    read: int
    skips: tuple[Skip, ...]
    failure: str | None = None

    def pin_memory(self) -> _Delivery:
        batch = self.batch.pin_memory() if self.batch is not None else None
        return _Delivery(batch, self.read, self.skips, self.failure)


class Stream:
    """Training batches of one rank.

    Iterating yields the batches of steps `start_step`..`stop_step` - 1; ``extras["step"]`` says
    which. Iterating again begins again.

    Args:
        sources: the mixture.
        seed: of order, augmentation, sampling and masking.
        tokenizer: encodes the texts.
        augment, sampling, masking: see their classes; masking None hides no token.
        rank, world: this process takes a contiguous slice of each global batch.
        workers: loader processes; 0 prepares batches in this one. The batches are the same.
        skips: what to do about bad samples; `ledger` counts them.
        pin_memory: page-lock the batches (needs workers and an accelerator).
        budget: concepts of this rank's batch; None keeps them all. What it keeps depends on the
            number of ranks, since each rank has a budget of its own.

    Raises:
        ConfigError: the mixture is unsound or does not divide by `world`.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        seed: int,
        tokenizer: Tokenizer,
        augment: AugmentConfig,
        sampling: ConceptSampling,
        masking: MaskingConfig | None = None,
        rank: int = 0,
        world: int = 1,
        start_step: int = 0,
        stop_step: int,
        workers: int = 0,
        skips: SkipPolicy | None = None,
        pin_memory: bool = False,
        budget: ConceptBudget | None = None,
    ) -> None:
        self.order = make_order(seed, sources)
        self.order.check_world(rank, world)
        self.steps = range(start_step, stop_step)
        self.ledger = SkipLedger(skips or SkipPolicy(), rank, world)
        self._workers, self._pin = workers, pin_memory
        self.preparer = Preparer(tokenizer, augment, masking)
        self._batches = _TrainingBatches(
            tuple(sources), self.order, self.preparer, sampling, rank, world, budget
        )

    def __len__(self) -> int:
        return len(self.steps)

    def batch(self, step: int) -> ConceptBatch:
        """The batch of one step, made in this process."""
        return _received(self._batches[step], self.ledger)

    def __iter__(self) -> Iterator[ConceptBatch]:
        for delivery in _load(self._batches, self.steps, self._workers, self._pin):
            yield _received(delivery, self.ledger)


class EvalStream:
    """Evaluation batches: every sample once, in order, without chance.

    Batch k holds samples ``k * batch_size`` onwards; a rank takes each `world`-th batch. Bad
    samples are left out (a replacement would be counted twice) and counted in `ledger`.

    Args:
        corpus: or a split of one.
        tokenizer: encodes the texts.
        resolution: side of the squeezed image.
        sampling: default: every text of every region and every caption.
        masking: None hides no token; otherwise the same tokens at each evaluation.
    """

    def __init__(
        self,
        corpus: SampleReader,
        *,
        batch_size: int,
        tokenizer: Tokenizer,
        resolution: int,
        sampling: ConceptSampling | None = None,
        masking: MaskingConfig | None = None,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        skips: SkipPolicy | None = None,
        limit: int | None = None,
    ) -> None:
        self.ledger = SkipLedger(skips or SkipPolicy(), rank, world)
        self._workers = workers
        size = len(corpus) if limit is None else min(limit, len(corpus))
        self._batches = _EvalBatches(
            corpus,
            size,
            batch_size,
            Preparer(tokenizer, AugmentConfig.plain(resolution), masking),
            sampling or ConceptSampling.everything(),
        )
        self._steps = range(rank, -(-size // batch_size), world)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[ConceptBatch]:
        for delivery in _load(self._batches, self._steps, self._workers, False):
            if delivery.batch is None and delivery.failure is None:
                self.ledger.add(delivery.read, delivery.skips)
            else:
                yield _received(delivery, self.ledger)


class _TrainingBatches:
    def __init__(
        self,
        sources: tuple[Source, ...],
        order: Order,
        preparer: Preparer,
        sampling: ConceptSampling,
        rank: int,
        world: int,
        budget: ConceptBudget | None,
    ) -> None:
        self.sources, self.order, self.preparer = sources, order, preparer
        self.rank, self.world, self.budget = rank, world, budget
        self.samplings = [source.sampling or sampling for source in sources]
        self.keys = [stable_key("sample", part.name, part.fingerprint) for part in order.parts]

    def __getitem__(self, step: int) -> _Delivery:
        skips: list[Skip] = []
        slots = self.order.rank_slice(step, self.rank, self.world).triples()
        try:
            self._prefetch(step)
            outcomes = self.preparer.prepare([self._job(*slot, attempt=0) for slot in slots])
            samples = [
                self._replaced(slot, outcome, skips) if isinstance(outcome, DataError) else outcome
                for slot, outcome in zip(slots, outcomes, strict=True)
            ]
        except DataError as error:  # too many bad samples in a row, or storage that is gone
            return _Delivery(None, len(slots) + len(skips), tuple(skips), str(error))
        if self.budget is not None:
            rng = keyed_rng("budget", self.order.seed, step, self.rank, *self.keys)
            samples = self.budget.kept(samples, rng)
        batch = collate(samples, self.preparer.tokenizer.pad_id)
        batch.extras["step"] = step
        return _Delivery(batch, len(samples) + len(skips), tuple(skips))

    def _job(self, part: int, epoch: int, index: int, attempt: int) -> Job:
        """What is to be prepared for a slot: its sample, then one successor after the other."""
        source = self.sources[part]
        # The replacement's own key would make two equal copies of it in one epoch.
        rng = keyed_rng(self.keys[part], self.order.seed, epoch, index, attempt)
        candidate = (index + attempt) % len(source.corpus)
        return Job(source.corpus, candidate, self.samplings[part], rng, part=part)

    def _prefetch(self, step: int) -> None:
        """Asks for the remote shards of a later step, so that they are here when it comes."""
        wanted = []
        for number, source in enumerate(self.sources):
            corpus = source.corpus
            if isinstance(corpus, Corpus) and corpus.is_remote:
                later = self.order.rank_slice(step + self._ahead(number), self.rank, self.world)
                wanted.append((corpus, later.index[later.part == number].tolist()))
        if wanted:
            prefetch(wanted)

    def _ahead(self, number: int) -> int:
        """Steps to half a window further on."""
        part = self.order.parts[number]
        rows = (part.block or 1) * part.window
        return max(1, rows // (2 * part.per_batch))

    def _replaced(
        self, slot: tuple[int, int, int], outcome: Sample | DataError, skips: list[Skip]
    ) -> Sample:
        """The sample at a slot whose own is bad: the first sound one of its successors."""
        source = self.sources[slot[0]]
        attempts = min(len(source.corpus), _MAX_REPLACEMENTS)
        for attempt in range(attempts):
            if attempt:
                (outcome,) = self.preparer.prepare([self._job(*slot, attempt=attempt)])
            if not isinstance(outcome, DataError):
                return outcome
            skips.append(_skip(source.name, (slot[2] + attempt) % len(source.corpus), outcome))
        raise DataError(
            f"corpus {source.name!r}: {attempts} samples in a row are bad, the last: "
            f"{skips[-1].message}; run `python -m data_tools lint` on it and convert it again"
        )


class _EvalBatches:
    def __init__(
        self,
        corpus: SampleReader,
        size: int,
        batch_size: int,
        preparer: Preparer,
        sampling: ConceptSampling,
    ) -> None:
        self.corpus, self.size, self.batch_size = corpus, size, batch_size
        self.preparer, self.sampling = preparer, sampling

    def __getitem__(self, step: int) -> _Delivery:
        first = step * self.batch_size
        indices = range(first, min(first + self.batch_size, self.size))
        jobs = [
            Job(
                self.corpus,
                index,
                self.sampling,
                None,
                keyed_rng("evaluation", self.corpus.fingerprint, index),
            )
            for index in indices
        ]
        try:
            outcomes = self.preparer.prepare(jobs)
        except StorageGone as error:
            return _Delivery(None, 0, (), str(error))
        samples = [outcome for outcome in outcomes if not isinstance(outcome, DataError)]
        skips = [
            _skip("evaluation", index, outcome)
            for index, outcome in zip(indices, outcomes, strict=True)
            if isinstance(outcome, DataError)
        ]
        if not samples:
            return _Delivery(None, len(indices), tuple(skips))
        batch = collate(samples, self.preparer.tokenizer.pad_id)
        batch.extras["step"] = step
        return _Delivery(batch, len(indices), tuple(skips))


def _skip(part: str, index: int, error: DataError) -> Skip:
    named = "record" if isinstance(error, RecordError) else "unreadable"
    return Skip(part, index, getattr(error, "cause", named), str(error))


def _received(delivery: _Delivery, ledger: SkipLedger) -> ConceptBatch:
    ledger.add(delivery.read, delivery.skips)
    if delivery.batch is None:
        raise DataError(delivery.failure or "the batch is empty")
    return delivery.batch


def _load(
    batches: _TrainingBatches | _EvalBatches, steps: range, workers: int, pin_memory: bool
) -> Iterator[_Delivery]:
    deliveries: Iterable[_Delivery]
    if workers:
        deliveries = Workers(batches.__getitem__, steps, workers, patience_s=_STUCK_AFTER_S)
    else:
        deliveries = map(batches.__getitem__, steps)
    for delivery in deliveries:
        yield delivery.pin_memory() if pin_memory else delivery
