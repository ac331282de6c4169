"""The grounding methods side by side: one base, one data set, one budget, several seeds.

    python -m benchmarks.grounding --data scenes --out benchmarks/results/grounding
    python -m benchmarks.grounding --data flickr --flickr DIR --work runs/grounding --out FILE
    python -m benchmarks.grounding --quick

Each host of `benchmarks/grounding.yaml` is pretrained once. Every method that it carries is then
finetuned from that release, and from nothing, for the same steps, batches and optimizer, once a
seed; `python -m finetune.refcoco` does it, as a user would. Finished runs are kept under --work:
the same command goes on where it was stopped. --out FILE writes FILE.json, FILE.csv and FILE.svg.

Differences are paired with the host's cross encoder on the same seeds. All seeds share the one
base, so that no interval says what another pretraining would have brought.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.grounding_cells import Kept, Workplace, digest_of, run_command, write_json
from benchmarks.grounding_data import QUICK_SCENES, SCENES, make_flickr, make_scenes
from benchmarks.grounding_picture import picture
from benchmarks.grounding_recipes import PRETRAINED, SCRATCH, STARTS, Budget, Recipes, choose
from benchmarks.grounding_tables import Row, csv_of, rows_of, table
from benchmarks.machine import HONEST_ALLOCATOR
from finetune.constant_box import constant_baseline
from finetune.predictions import Prediction
from finetune.results import evaluate_predictions
from finetune.samples import corpus_expressions
from wholegrain.data.corpus import Corpus
from wholegrain.errors import ConfigError, run_cli
from wholegrain.hub.release import CHECKSUMS

COUNTS = (1, 16)
"""Expressions a photo whose cost is measured."""
REAL_DATA = "flickr30k_entities_8k"


@dataclass(frozen=True)
class Found:
    """What a comparison found on one data set."""

    rows: list[Row]
    baselines: dict[str, Row]
    """Of what answers without being trained."""
    machine: Row


def compare(
    place: Workplace, pairs: Sequence[tuple[str, str]], starts: Sequence[str], seeds: Sequence[int]
) -> Found:
    """All runs and their costs on one data set, made where they are not there yet."""
    cells = list(place.recipes.cells(place.data, pairs, starts, seeds))
    kept = []
    for number, cell in enumerate(cells, start=1):
        print(f"{number}/{len(cells)} ", end="", flush=True)
        kept.append(place.cell(cell))
    print("costs", flush=True)
    measured, machine = costs(place, kept)
    return Found(rows_of(kept, place.recipes, measured), baselines(place), machine)


def costs(place: Workplace, kept: Sequence[Kept]) -> tuple[dict[str, Row], Row]:
    """Of each ``host.method``, and of the machine.

    Measured is the run of the first seed, pretrained if there is one.
    """
    chosen: dict[str, Kept] = {}
    for one in sorted(kept, key=lambda one: (STARTS.index(one.cell.start), one.cell.seed)):
        chosen.setdefault(f"{one.cell.host}.{one.cell.method}", one)
    measured = _measured(place)
    common = {"corpus": measured["path"], "split": measured["split"]}
    order = {
        **common,
        "releases": {name: str(one.release) for name, one in chosen.items()},
        "counts": list(COUNTS),
        "rounds": place.budget.rounds,
        "photos": place.budget.photos,
    }
    together = _ordered(place, "together", order, list(chosen.values()))
    found: dict[str, Row] = together["methods"]
    for name, one in chosen.items():
        alone = {**common, "release": str(one.release), "count": max(COUNTS)}
        found[name]["memory"] = _ordered(place, name, alone, [one])
    return found, together["machine"]


def _ordered(place: Workplace, name: str, order: dict[str, Any], of: Sequence[Kept]) -> Row:
    """What `grounding_cost` says of an order, kept like a run."""
    digest = digest_of(
        {key: value for key, value in order.items() if key in ("counts", "count", "rounds")},
        order.get("photos"),
        [(one.release / CHECKSUMS).read_text(encoding="utf-8") for one in of],
    )
    file = place.folder / "costs" / f"{place.data}.{name}.{digest[:8]}.json"
    if not file.exists():
        request = file.with_suffix(".order.json")
        write_json(request, order)
        words = ["-m", "benchmarks.grounding_cost", "--order", str(request), "--json", str(file)]
        # Where memory is measured, what is freed shall go back at once; where time is, it need not.
        honest = HONEST_ALLOCATOR if "release" in order else None
        run_command(words, file.with_suffix(".log"), honest)
    found: Row = json.loads(file.read_text(encoding="utf-8"))
    return found


def baselines(place: Workplace) -> dict[str, Row]:
    """What is answered without looking or reading, on the split that is measured."""
    data = place.recipes.finetune_data(place.data, place.corpora)
    train = Corpus.open(data["train"]["path"]).select(data["train"]["split"])
    measured = _measured(place)
    asked = corpus_expressions(Corpus.open(measured["path"]).select(measured["split"]))
    _, constant = constant_baseline(corpus_expressions(train), asked)
    whole = [Prediction.of(one, (0.0, 0.0, one.width, one.height)) for one in asked]
    return {
        "best constant box": constant.summary().to_dict(),
        "whole photo": evaluate_predictions(whole).summary().to_dict(),
    }


def _measured(place: Workplace) -> dict[str, str]:
    measured: dict[str, str] = place.recipes.finetune_data(place.data, place.corpora)["evaluate"][0]
    return measured


def corpora_of(data: str, folder: Path, flickr: Path | None, quick: bool) -> Path:
    """Where a data set's corpora are, made if they are not there.

    Raises:
        ConfigError: the photos are needed and cannot be found.
    """
    if data == "scenes":
        name = "easy_scenes_quick" if quick else "easy_scenes"
        return make_scenes(folder / "corpora" / name, QUICK_SCENES if quick else SCENES)
    if flickr is None and "WHOLEGRAIN_TEST_DATA" in os.environ:
        flickr = Path(os.environ["WHOLEGRAIN_TEST_DATA"]) / REAL_DATA
    if flickr is None or not flickr.is_dir():
        raise ConfigError(
            f"--data flickr reads photos and annotations, but --flickr is {flickr}; give the "
            "folder that `data_tools convert flickr30k_entities --root` reads"
        )
    return make_flickr(folder / "corpora" / "flickr", flickr.resolve())


def budget_of(recipes: Recipes, arguments: argparse.Namespace) -> Budget:
    """The file's budget with what the command line changes of it."""
    budget = recipes.budgets["quick" if arguments.quick else "full"]
    asked = {
        "pretrain_steps": arguments.pretrain_steps,
        "steps": arguments.steps,
        "seeds": None if arguments.seeds is None else tuple(dict.fromkeys(arguments.seeds)),
        "rounds": arguments.rounds,
    }
    return dataclasses.replace(
        budget, **{key: value for key, value in asked.items() if value is not None}
    )


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.grounding", description=__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    add = made.add_argument
    add(
        "--data", choices=("scenes", "flickr"), default="scenes", help="learnt from and measured on"
    )
    add("--flickr", type=Path, metavar="DIR", help="Flickr30k Entities, as data_tools converts it")
    add("--hosts", nargs="+", metavar="NAME", help="of grounding.yaml; default: all")
    add("--methods", nargs="+", metavar="NAME", help="likewise; cross is the others' reference")
    add("--start", choices=("with", "without", "both"), default="both", help="pretraining")
    add("--seeds", type=int, nargs="+", metavar="N", help="of finetuning")
    add("--steps", type=int, help="of finetuning")
    add("--pretrain-steps", type=int, help="of the base models")
    add("--rounds", type=int, help="of the clock")
    add("--quick", action="store_true", help="one seed and few steps: shows that all parts work")
    add("--work", type=Path, default=Path("runs/grounding"), help="corpora and finished runs")
    add("--out", type=Path, metavar="FILE", help="write FILE.json, FILE.csv and FILE.svg")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Compares, prints a table, and writes the files when asked."""
    arguments = build_parser().parse_args(argv)
    recipes = Recipes.read()
    hosts = choose("--hosts", arguments.hosts, recipes.compared_hosts)
    methods = choose("--methods", arguments.methods, recipes.methods)
    starts = {"with": (PRETRAINED,), "without": (SCRATCH,), "both": STARTS}[arguments.start]
    budget = budget_of(recipes, arguments)
    work: Path = arguments.work.resolve()
    corpora = corpora_of(arguments.data, work, arguments.flickr, arguments.quick)
    place = Workplace(recipes, budget, arguments.data, work, corpora)
    pairs = recipes.pairs(hosts, methods)
    if not pairs:
        raise ConfigError(f"--methods {methods} run on none of --hosts {hosts}; see {recipes.file}")
    found = compare(place, pairs, starts, budget.seeds)
    title = recipes.data[arguments.data].title
    Console(width=240).print(table(found.rows, found.baselines, title))
    if arguments.out is not None:
        write(arguments.out, found, place)
    return 0


def write(out: Path, found: Found, place: Workplace) -> None:
    """The three files."""
    # Threads that the runs had; this process only waits for them.
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    report = {
        "data": place.data,
        "title": place.recipes.data[place.data].title,
        "budget": dataclasses.asdict(place.budget),
        "threads": threads,
        "machine": found.machine,
        "baselines": found.baselines,
        "rows": found.rows,
    }
    write_json(out.with_name(out.name + ".json"), report)
    for suffix, text in ((".csv", csv_of(found.rows)), (".svg", picture(report))):
        out.with_name(out.name + suffix).write_text(text, encoding="utf-8")
    print(f"written: {out}.json, {out}.csv, {out}.svg")


if __name__ == "__main__":
    sys.exit(run_cli(main))
