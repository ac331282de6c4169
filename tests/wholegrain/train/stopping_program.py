"""One process of `test_stopping`, started by torchrun: OUT."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from tests.wholegrain.train.conftest import FEATURES, Points, Regression
from wholegrain.train.config import OptimConfig, RunConfig
from wholegrain.train.engine import Engine
from wholegrain.train.loop import Interrupted, Stage, fit
from wholegrain.train.open_run import open_run
from wholegrain.train.run_folder import CONFIG

RUN = RunConfig(steps=9, batch_size=8, log_every=1, validate_every=5, save_every=3, keep=9)


def train(out: Path, run: RunConfig, signal_at: int | None) -> list[object]:
    """Trains; rank 1 alone is asked to stop as it makes the step of that number.

    Returns:
        The step that the run began at, or what it was stopped with, and the validations of this
        start.
    """
    engine = Engine(run)
    torch.manual_seed(0)
    model = Regression()
    validated: list[int] = []
    share = run.batch_size // engine.world

    def batches(start: int, stop: int) -> Iterator[Points]:
        for part in range(start, stop):
            if engine.rank == 1 and part + 1 == signal_at:
                os.kill(os.getpid(), signal.SIGTERM)
            whole = torch.randn(8, FEATURES, generator=torch.Generator().manual_seed(part))
            yield Points(whole[engine.rank * share : (engine.rank + 1) * share])

    def validate() -> dict[str, float]:
        validated.append(1)
        return {"figure": float(model.line.weight.sum())}

    stage = Stage(name="toy", module=model, model=model, batches=batches, validate=validate)
    out.mkdir(parents=True, exist_ok=True)
    (out / CONFIG).touch()
    try:
        with open_run(out, run, engine) as folder:
            began: object = fit(stage, run, OptimConfig(lr=0.05, warmup=2), engine, folder)
    except Interrupted as error:
        began = str(error)
    engine.wait()
    weights = [value.tolist() for value in model.state_dict().values()]
    return [began, len(validated), weights]


def main(out: Path) -> None:
    """A run without a stop, one that is stopped before a validation, and one taken back."""
    found = {"whole": train(out / "whole", RUN, None)}
    # The vote of step 4 travels for two steps; the validation of step 5 does not wait for it.
    found["stopped"] = train(out / "stopped", RUN, 4)
    found["resumed"] = train(out / "stopped", RUN, None)
    found["again"] = train(out / "stopped", RUN, None)
    back = RunConfig(**{**RUN.__dict__, "resume": 3})
    found["back"] = train(out / "whole", back, None)
    if dist.get_rank() == 0:
        (out / "found.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
