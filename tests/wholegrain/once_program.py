"""A rank that meets an error: MESSAGE [RANK_THAT_MEETS_IT] [joined]."""

import os
import sys
import time

from wholegrain.errors import ConfigError, run_cli


def main(argv: object) -> int:
    message, who, joined = sys.argv[1], sys.argv[2], "joined" in sys.argv
    rank = os.environ["RANK"]
    if joined:
        from wholegrain.train.join import join
        from wholegrain.train.launch import find_place

        join(find_place(os.environ), "gloo", timeout_s=60)
    if who in {"all", rank}:
        raise ConfigError(message.replace("RANK", rank))
    time.sleep(30)
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
