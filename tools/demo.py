"""The main job on one machine: pictures and words in, a grounding model and its report out.

Every step is a command that a user could type; each is printed before it runs. Steps that are done
are not done again, so an interrupted demonstration goes on where it stopped.

    python tools/demo.py [--fresh] [--quick]
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path("runs/demo")
SCENES, CORPUS = ROOT / "scenes", ROOT / "corpus"
STAGES = {
    "finetune": "pretrained, box head",
    "finetune_mmca": "pretrained, box head and MMCA",
    "finetune_scratch": "no pretraining, box head",
}
CONSTANT = "best constant box of the training set"
NO_PHOTO, NO_WORDS = "same model, photo hidden", "same model, words hidden"
TARGET = 0.70  # Acc@0.5 on held-out scenes
# Few scenes and steps: shows in two minutes that every part works, not what it can learn.
QUICK = ("--run.steps=6", "--run.validate_every=0", "--run.save_every=0", "--run.log_every=2")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all steps; returns the exit status of the first that fails, or 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--fresh", action="store_true", help="remove an earlier demonstration first"
    )
    parser.add_argument("--quick", action="store_true", help="few scenes and steps: only a check")
    arguments = parser.parse_args(argv)
    if arguments.fresh:
        shutil.rmtree(ROOT, ignore_errors=True)
    start = time.perf_counter()
    for step in steps(arguments.quick):
        print(f"\n$ {shlex.join(['python', *step])}", flush=True)
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, *step], check=False)
        if done.returncode:
            print(f"this step failed with status {done.returncode}", file=sys.stderr)
            return done.returncode
        print(f"({time.perf_counter() - begun:.0f} s)", flush=True)
    print(f"\nall steps: {(time.perf_counter() - start) / 60:.1f} minutes\n")
    if not arguments.quick:
        show_results()
    return 0


def steps(quick: bool) -> list[list[str]]:
    """The commands, without the interpreter."""
    overrides = list(QUICK) if quick else []
    train, other = ("64", "16") if quick else ("4000", "300")
    commands = []
    if not SCENES.exists():
        counts = ["--train", train, "--val", other, "--test", other]
        commands.append(["-m", "data_tools", "scenes", "--out", str(SCENES), *counts])
    for split in ("train", "val"):
        commands.append(
            [
                *("-m", "data_tools", "convert", "coco", "--images", str(SCENES / "images")),
                *("--captions", str(SCENES / f"captions_{split}.json")),
                *("--instances", str(SCENES / f"instances_{split}.json")),
                *("--out", str(CORPUS / split)),
            ]
        )
    commands.append(
        [
            *("-m", "data_tools", "convert", "refcoco", "--root", str(SCENES)),
            *("--images", str(SCENES / "images"), "--split-by", "scenes"),
            *("--out", str(CORPUS / "expressions")),
        ]
    )
    for corpus in ("train", "val", "expressions"):
        commands.append(["-m", "data_tools", "lint", str(CORPUS / corpus)])
    commands.append(["-m", "pretrain", "--config", "configs/pretrain/scenes.yaml", *overrides])
    for config in ("scenes", "scenes_mmca", "scenes_scratch"):
        file = f"configs/finetune/{config}.yaml"
        commands.append(["finetune/refcoco.py", "--config", file, *overrides])
    commands.append(
        [
            *("-m", "wholegrain", "ground", str(SCENES / "images" / "test_000000.jpg")),
            *("the largest object", "the green ball"),
            *("--model", str(ROOT / "finetune" / "release"), "--out", str(ROOT / "grounded.png")),
        ]
    )
    return commands


def show_results() -> None:
    """Prints the held-out figures side by side and says whether the target was reached."""
    results = {
        stage: json.loads((ROOT / stage / "results.json").read_text(encoding="utf-8"))["test"]
        for stage in STAGES
    }
    print("Acc@0.5 on the held-out test scenes, in %")
    for stage, title in STAGES.items():
        merged = results[stage]["model"]["merged"]["all"]
        low, high = merged["interval_95"]["acc@0.5"]
        print(f"  {100 * merged['acc@0.5']:6.1f}   ({100 * low:.1f} .. {100 * high:.1f})   {title}")
    for name in (NO_PHOTO, NO_WORDS, CONSTANT):
        value = results["finetune"][name]["merged"]["all"]["acc@0.5"]
        print(f"  {100 * value:6.1f}   {'':15}   {name}")
    reached = results["finetune"]["model"]["merged"]["all"]["acc@0.5"]
    verdict = "reached" if reached >= TARGET else "NOT reached"
    print(f"target of {100 * TARGET:.0f} %: {verdict}")
    print(f"\nreports: {ROOT}/pretrain/report.html and {ROOT}/finetune/report.html")
    print(f"a picture: {ROOT}/grounded.png")


if __name__ == "__main__":
    sys.exit(main())
