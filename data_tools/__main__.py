"""``python -m data_tools VERB``; each verb is a module with ``add_arguments`` and ``run``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from wholegrain.errors import run_cli

VERBS = {
    "fetch": ("data_tools.fetch", "get a published data set's files, verified"),
    "convert": ("data_tools.convert", "turn a published data set into a corpus of shards"),
    "index": ("data_tools.index", "index plain WebDataset tars, or renew a corpus's index"),
    "audit": ("data_tools.audit", "look for evaluation photos in corpora"),
    "lint": ("data_tools.lint", "check a corpus: checksums, images, records"),
    "info": ("data_tools.info", "print what a corpus holds"),
    "stats": ("data_tools.stats", "print how texts, boxes and images are distributed"),
    "preview": ("data_tools.preview", "write an HTML page with boxes drawn on photos"),
    "augmentations": ("data_tools.augmentations", "write an HTML page of augmented photos"),
    "scenes": ("data_tools.scenes.cli", "render the embedded corpus"),
}


def build_parser(verb: str | None) -> argparse.ArgumentParser:
    """The parser with the options of one verb; ``None``: with the list of verbs alone.

    Only the verb that is asked for is imported, so that ``--help`` does not wait for libraries.
    """
    parser = argparse.ArgumentParser(
        prog="python -m data_tools", description="Raw data sets to shards, and a look at both."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, (module, summary) in VERBS.items():
        command = verbs.add_parser(name, help=summary, description=summary)
        if name == verb:
            importlib.import_module(module).add_arguments(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = arguments[0] if arguments and arguments[0] in VERBS else None
    args = build_parser(verb).parse_args(arguments)
    status: int = importlib.import_module(VERBS[args.verb][0]).run(args)
    return status


if __name__ == "__main__":
    sys.exit(run_cli(main))
