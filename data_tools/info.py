"""``info``: what a corpus holds, by its manifest alone (no sample is read)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console

from data_tools.tables import counts_table
from wholegrain.data.corpus_manifest import read_manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``info``."""
    parser.add_argument("corpus", type=Path, help="corpus folder")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    manifest = read_manifest(args.corpus)
    if args.json:
        print(json.dumps(manifest, ensure_ascii=False, indent=1))
        return 0
    console = Console()
    console.print(counts_table(manifest))
    origin = manifest["source"]
    for label, value in (
        ("converter", origin.get("converter", "unknown")),
        ("fingerprint", manifest["fingerprint"]),
    ):
        console.print(f"{label:12} {value}", highlight=False, markup=False, soft_wrap=True)
    return 0
