"""Ranks of `test_shared_folder`: FOLDER."""

import sys
from pathlib import Path

from tests.forked_ranks import run_ranks
from wholegrain.errors import ConfigError
from wholegrain.train.shared_folder import check_run_folder

FOLDER = Path(sys.argv[1])


def check(rank: int) -> None:
    for out in (FOLDER / "one", FOLDER / f"own-{rank}"):
        try:
            check_run_folder(out, rank, 2, wait_s=0.2)
        except ConfigError as error:
            print(f"{rank}: {error}", flush=True)
        else:
            print(f"{rank}: fine", flush=True)


if __name__ == "__main__":
    assert run_ranks(2, check, FOLDER / "store") == [0, 0]
