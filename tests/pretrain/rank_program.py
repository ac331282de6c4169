"""One process of `test_validate`, started by torchrun: CONFIG RUN OUT."""

import json
import sys
from pathlib import Path

import torch
from torch import distributed as dist

from pretrain.config import PretrainConfig
from pretrain.data import open_data
from pretrain.validate import validate
from wholegrain.config import from_dict, load_config
from wholegrain.model.config import ModelConfig
from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.text import Tokenizer
from wholegrain.train import checkpoint


def measure(config_file: Path, run: Path, rank: int, world: int) -> dict[str, float]:
    """The validation figures of a run's newest checkpoint, in batches of 2 images."""
    config = load_config(PretrainConfig, config_file)
    found = checkpoint.latest(run)
    assert found is not None
    described = json.loads((found.folder / "config.json").read_text())
    model = MultiGrainModel(from_dict(ModelConfig, described)).eval()
    found.load(model)
    data = open_data(config, Tokenizer.load(found.folder / "tokenizer.json"))
    batches = data.validation_stream(rank, world, batch_size=2)
    with torch.no_grad():
        return validate(model, batches, config.objective, torch.device("cpu"))


def main(config_file: Path, run: Path, out: Path) -> None:
    """Measures on this rank and writes what it got."""
    dist.init_process_group("gloo")
    figures = measure(config_file, run, dist.get_rank(), dist.get_world_size())
    (out / f"figures-{dist.get_rank()}.json").write_text(json.dumps(figures))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
