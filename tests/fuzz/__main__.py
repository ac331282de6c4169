"""Fuzzes one reader, or all: ``python -m tests.fuzz --target record --seconds 60``.

Inputs come from atheris, guided by what of the Python code they reach. Each runs against a time
limit, and the process against a memory limit. Printed at the end: the number of inputs, their rate,
and the memory of the process at the start and at the end. The exit status is 1 if an input failed;
it then lies in ``--crashes``.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.fuzz.scratch import PARENT, memory_folder

TARGETS = ("record", "tar", "image_header", "decode", "refer_pickle", "manifest_index")
_SEVERAL = re.compile(r"rss: (\d+)Mb")


def main(argv: list[str] | None = None) -> int:
    """Run the engine once a target, in a process of its own, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--target", choices=[*TARGETS, "all"], default="all")
    parser.add_argument("--runs", type=int, default=-1, help="inputs at most (default: no limit)")
    parser.add_argument("--seconds", type=int, default=60, help="at most, a target")
    parser.add_argument("--timeout", type=int, default=10, help="seconds that an input may take")
    parser.add_argument("--memory", type=int, default=1024, help="MB that the process may take")
    parser.add_argument("--crashes", type=Path, default=Path("fuzz-crashes"))
    parser.add_argument("--replay", type=Path, help="check this input and do nothing else")
    parser.add_argument("--engine", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.replay is not None:
        _module(args.target).check(args.replay.read_bytes())
        return 0
    if args.engine is not None:
        return _engine(args.target, args.engine)
    targets = TARGETS if args.target == "all" else (args.target,)
    return max(_fuzz(target, args) for target in targets)


def _module(target: str) -> Any:
    return importlib.import_module(f"tests.fuzz.fuzz_{target}")


def _engine(target: str, flags: list[str]) -> int:
    import atheris

    with atheris.instrument_imports(include=["wholegrain.data", "data_tools.sources"]):
        module = _module(target)

    def one_input(data: bytes) -> None:
        module.check(data)

    atheris.Setup([f"fuzz_{target}", *flags], one_input)
    atheris.Fuzz()
    return 0


def _fuzz(target: str, args: argparse.Namespace) -> int:
    args.crashes.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="fuzz-corpus-") as folder,
        tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory_folder()) as scratch,
    ):
        for number, seed in enumerate(_module(target).seeds()):
            (Path(folder) / f"seed-{number:02d}").write_bytes(seed)
        flags = [
            folder,
            f"-runs={args.runs}",
            f"-max_total_time={args.seconds}",
            f"-timeout={args.timeout}",
            f"-rss_limit_mb={args.memory}",
            f"-artifact_prefix={args.crashes}/{target}-",
            "-max_len=8192",
            "-print_final_stats=1",
        ]
        command = [sys.executable, "-m", "tests.fuzz", "--target", target, "--engine", *flags]
        started = time.monotonic()
        done = subprocess.run(
            command,
            env=os.environ | {PARENT: scratch},
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        seconds = time.monotonic() - started
    print(f"{target}: {_summary(done.stdout, seconds)}", flush=True)
    if done.returncode:
        print("\n".join(done.stdout.splitlines()[-40:]))
    return int(done.returncode != 0)


def _summary(output: str, seconds: float) -> str:
    found = re.findall(r"stat::number_of_executed_units:\s+(\d+)", output)
    inputs = int(found[-1]) if found else 0
    memory = [int(value) for value in _SEVERAL.findall(output)] or [0]
    # Of 100,000 inputs onwards all that is loaded on first use is there.
    warm = [
        int(rss)
        for count, rss in re.findall(r"#(\d+)\t.*?rss: (\d+)Mb", output)
        if int(count) >= 100_000
    ]
    grown = f", {warm[-1] - warm[0]:+d} MB from input 100,000 to the end" if warm else ""
    return (
        f"{inputs:,} inputs in {seconds:.0f} s ({inputs / seconds:,.0f}/s), memory "
        f"{memory[0]} MB at the start, {memory[-1]} MB at the end{grown}"
    )


if __name__ == "__main__":
    sys.exit(main())
