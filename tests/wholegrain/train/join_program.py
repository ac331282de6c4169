"""A rank that joins: TIMEOUT_S [stays away]."""

import os
import sys
import time

import torch
import torch.distributed as dist

from wholegrain.errors import run_cli
from wholegrain.train.join import join
from wholegrain.train.launch import find_place


def main(argv: object) -> int:
    place = find_place(os.environ)
    if str(place.rank) in sys.argv[2:]:
        time.sleep(60)
    join(place, "gloo", timeout_s=float(sys.argv[1]))
    total = torch.tensor([place.rank + 1])
    dist.all_reduce(total)
    print(f"rank {dist.get_rank()} of {dist.get_world_size()}: {int(total)}")
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
