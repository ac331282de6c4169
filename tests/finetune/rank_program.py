"""One process of an evaluation, as `test_evaluation` starts it: CORPUS OUT RANK WORLD."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from finetune.evaluation import EvalBatch, evaluate
from wholegrain.data.corpus import Corpus

BATCHING = {"resolution": 16, "max_images": 2, "max_expressions": 4, "resamples": 100}


def predict(batch: EvalBatch) -> tuple[Tensor, Tensor]:
    """A fixed function of photo and words, in float32 as a model would be."""
    weights = torch.randn(768, 4, generator=torch.Generator().manual_seed(0))
    seen = (batch.images.float().flatten(1) / 255 - 0.5) @ weights / 8
    said = torch.tensor([[len(text) % 7, len(text) % 5, 2.0, 2.0] for text in batch.texts])
    answers = torch.sigmoid(seen[batch.image_index] + said / 4 - 0.5)
    return batch.to_pixels(answers), answers[:, 0]


def failing_on(rank: int) -> Callable[[EvalBatch], tuple[Tensor, Tensor]]:
    """A model that breaks on one process only."""

    def broken(batch: EvalBatch) -> tuple[Tensor, Tensor]:
        if dist.get_rank() == rank:
            raise RuntimeError("out of memory")
        return predict(batch)

    return broken


def main(corpus_folder: str, out: str, rank: int, world: int) -> None:
    """Evaluates on this rank; then lets rank 1 fail, and writes what each rank saw."""
    folder = Path(out)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world
    )
    corpus = Corpus.open(corpus_folder)
    evaluation = evaluate(predict, corpus, **BATCHING)
    evaluation.write(folder / f"predictions-{rank}.jsonl")
    (folder / f"figures-{rank}.json").write_text(json.dumps(evaluation.to_dict()))
    try:
        evaluate(failing_on(1), corpus, **BATCHING)
    except Exception as error:
        (folder / f"error-{rank}").write_text(str(error))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
