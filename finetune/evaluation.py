"""Evaluation on any number of processes: each expression is answered exactly once.

The usual sampler pads the last round with repeated samples and averages per-batch means, so its
figures depend on the number of processes. Here the batches are fixed by the data, process r answers
the batches k with k % world == r, the answers are gathered by position, and it is an error if one
is missing or there twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from finetune.metrics import RESAMPLES
from finetune.predictions import Prediction
from finetune.results import Evaluation, evaluate_predictions
from finetune.roll_call import check_complete
from finetune.samples import CorpusView, Expression, corpus_expressions, plan_batches
from wholegrain import boxes as convert
from wholegrain.data.augment import squeeze, to_planes
from wholegrain.data.decode import check_size, decode_image
from wholegrain.errors import DataError, TextError
from wholegrain.text import Tokenizer

_FIELDS = 6  # of a gathered answer: position, x1, y1, x2, y2, score


@dataclass(frozen=True)
class EvalBatch:
    """Some images and all that is asked about them."""

    images: Tensor
    """uint8 (I, 3, R, R), each squeezed to the square."""
    sizes: Tensor
    """float64 (I, 2): width and height of the stored image in pixels."""
    image_index: Tensor
    """long (T,): row of `images` that each expression asks about."""
    texts: list[str]
    """(T,), as annotated."""
    expressions: list[Expression]

    def encode_texts(self, tokenizer: Tokenizer, max_tokens: int) -> tuple[Tensor, Tensor]:
        """Token ids (T, L) and their mask, as `Tokenizer.encode_batch` gives them.

        A text without a word, such as "?", is [CLS] alone: training skips it, but the benchmarks
        count every expression, so it is answered by what the photo shows without one.
        """
        rows = [torch.tensor(_ids(tokenizer, text, max_tokens)) for text in self.texts]
        ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_id)
        lengths = torch.tensor([len(row) for row in rows])
        return ids, torch.arange(ids.shape[1]) < lengths[:, None]

    def to_pixels(self, boxes: Tensor) -> Tensor:
        """The model's boxes as xyxy pixels of the stored images, in float64 on the CPU.

        Squeezing scales each axis by itself, so fractions of the square are fractions of the photo.
        What reaches beyond the photo is cut off, as `Grounder.ground` does.

        Args:
            boxes: (T, 4) cxcywh in 0..1 of the square.
        """
        corners = convert.cxcywh_to_xyxy(boxes.detach().cpu().double())
        width, height = self.sizes[self.image_index].unbind(dim=-1)
        return convert.clip_xyxy(convert.denormalise(corners, width, height), width, height)


Predict = Callable[[EvalBatch], tuple[Tensor, Tensor]]
"""Answers a batch: xyxy pixels of the stored images (T, 4) and scores (T,)."""


def evaluate(
    predict: Predict,
    corpus: CorpusView,
    *,
    resolution: int,
    grains: Sequence[str] = ("region",),
    max_images: int = 32,
    max_expressions: int = 128,
    workers: int = 2,
    resamples: int = RESAMPLES,
    seed: int = 0,
    on_batch: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Answers every expression of a corpus view once and returns all metrics.

    Call it on every process of the default process group; each gets the full result. The figures
    are those of one process, to the last digit.

    Args:
        predict: the model; runs without gradients.
        corpus: the view to evaluate on.
        resolution: R, side of the square that images are squeezed to.
        grains: ``region`` for phrases, ``object`` for category names.
        max_images: images in a batch.
        max_expressions: expressions in a batch.
        workers: threads that decode ahead; 0 decodes in this one.
        resamples: bootstrap draws.
        seed: of the draws.
        on_batch: called with (batches done, batches in all) of this process.

    Raises:
        DataError: a broken image, or an answer that is missing, repeated or not finite.
    """
    expressions = corpus_expressions(corpus, grains)
    positions = {one.id: position for position, one in enumerate(expressions)}
    rank, world = _rank_and_world()
    plan = plan_batches(expressions, max_images, max_expressions)[rank::world]

    rows: list[NDArray[np.float64]] = []
    failure: Exception | None = None
    try:
        for done, batch in enumerate(_loaded(corpus, plan, resolution, workers), start=1):
            boxes, scores = _answer(predict, batch)
            at = np.array([[positions[one.id]] for one in batch.expressions], dtype=np.float64)
            rows.append(np.concatenate([at, boxes, scores[:, None]], axis=1))
            if on_batch is not None:
                on_batch(done, len(plan))
    except Exception as error:
        # Raised below, once the other processes know: they would wait for this one for ever.
        failure = error
    answers = _gather(np.concatenate(rows) if rows else np.empty((0, _FIELDS)), failure)
    return evaluate_predictions(_in_order(answers, expressions), resamples=resamples, seed=seed)


def load_batch(corpus: CorpusView, expressions: Sequence[Expression], resolution: int) -> EvalBatch:
    """Decodes the images of some expressions, each once.

    Raises:
        DataError: an image is broken or its size is not the record's.
    """
    rows: dict[int, int] = {}
    images, sizes = [], []
    for one in expressions:
        if one.record in rows:
            continue
        rows[one.record] = len(rows)
        where = f"image of record {one.image!r}"
        decoded = decode_image(corpus.image_bytes(one.record), where, min_side=resolution)
        check_size(decoded, one.width, one.height, where)
        images.append(to_planes(squeeze(decoded.pixels, resolution)))
        sizes.append((one.width, one.height))
    return EvalBatch(
        images=torch.stack(images),
        sizes=torch.tensor(sizes, dtype=torch.float64),
        image_index=torch.tensor([rows[one.record] for one in expressions]),
        texts=[one.text for one in expressions],
        expressions=list(expressions),
    )


def hide_photo(predict: Predict) -> Predict:
    """The same model, each photo replaced by its batch's mean colour: what the words alone give."""

    def blind(batch: EvalBatch) -> tuple[Tensor, Tensor]:
        colour = batch.images.double().mean(dim=(0, 2, 3)).round().to(torch.uint8)
        grey = colour[None, :, None, None].expand_as(batch.images).contiguous()
        return predict(replace(batch, images=grey))

    return blind


def hide_words(predict: Predict, words: str = "the thing") -> Predict:
    """The same model, each text replaced by the same words: what the photo alone gives."""

    def deaf(batch: EvalBatch) -> tuple[Tensor, Tensor]:
        return predict(replace(batch, texts=[words] * len(batch.texts)))

    return deaf


def _ids(tokenizer: Tokenizer, text: str, max_tokens: int) -> list[int]:
    try:
        return tokenizer.encode(text, max_tokens)
    except TextError:
        return [tokenizer.cls_id]


def _answer(predict: Predict, batch: EvalBatch) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    with torch.inference_mode():
        boxes, scores = predict(batch)
    found = boxes.detach().cpu().double().numpy()
    sure = scores.detach().cpu().double().numpy()
    wanted = len(batch.expressions)
    if found.shape != (wanted, 4) or sure.shape != (wanted,):
        raise ValueError(
            f"{wanted} expressions need boxes ({wanted}, 4) and scores ({wanted},), "
            f"got {found.shape} and {sure.shape}"
        )
    broken = np.flatnonzero(~(np.isfinite(found).all(axis=1) & np.isfinite(sure)))
    if len(broken):
        one = batch.expressions[int(broken[0])]
        raise DataError(
            f"the answer to {one.id} ({one.text!r}) is {found[broken[0]].tolist()}, score "
            f"{sure[broken[0]]}: not finite; evaluate an earlier checkpoint"
        )
    return found, sure


def _loaded(
    corpus: CorpusView, plan: Sequence[Sequence[Expression]], resolution: int, workers: int
) -> Iterator[EvalBatch]:
    """The batches in order, the next few being decoded while one is answered."""
    if workers == 0:
        yield from (load_batch(corpus, part, resolution) for part in plan)
        return
    with ThreadPoolExecutor(workers) as pool:
        parts = iter(plan)
        waiting: list[Future[EvalBatch]] = [
            pool.submit(load_batch, corpus, part, resolution) for part in islice(parts, workers + 1)
        ]
        try:
            while waiting:
                batch = waiting.pop(0).result()
                if (part := next(parts, None)) is not None:
                    waiting.append(pool.submit(load_batch, corpus, part, resolution))
                yield batch
        finally:
            for future in waiting:
                future.cancel()


def _rank_and_world() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _gather(rows: NDArray[np.float64], failure: Exception | None) -> NDArray[np.float64]:
    """All processes' rows (n, F), or everyone's error if one of them failed."""
    world = _rank_and_world()[1]
    if world == 1:
        if failure is not None:
            raise failure
        return rows
    on_gpu = dist.get_backend() == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    own = torch.tensor([-1 if failure is not None else len(rows)], device=device)
    counts = [torch.empty_like(own) for _ in range(world)]
    dist.all_gather(counts, own)
    if failure is not None:
        raise failure
    sizes = [int(count) for count in counts]
    failed = [other for other, size in enumerate(sizes) if size < 0]
    if failed:
        raise DataError(f"evaluation stopped: process {failed[0]} of {world} failed; see its error")
    padded = torch.zeros((max(sizes), _FIELDS), dtype=torch.float64, device=device)
    padded[: len(rows)] = torch.from_numpy(rows)
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]).cpu().numpy()


def _in_order(rows: NDArray[np.float64], expressions: Sequence[Expression]) -> list[Prediction]:
    """The gathered answers in the corpus's order, each expression exactly once."""
    check_complete(
        (expressions[int(row[0])].id for row in rows),
        [one.id for one in expressions],
        "the processes do not share one corpus or one plan of batches",
    )
    ordered = rows[np.argsort(rows[:, 0])].tolist()
    return [
        Prediction.of(one, (x1, y1, x2, y2), score)
        for one, (_, x1, y1, x2, y2, score) in zip(expressions, ordered, strict=True)
    ]
