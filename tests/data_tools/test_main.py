import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.__main__ import VERBS, build_parser
from data_tools.arguments import positive, share
from data_tools.sources import SOURCES
from data_tools.threads import ordered_map

# What users' scripts hold. Adding to it is easy; taking from it breaks them.
FLAGS_THAT_STAY = {
    "coco": ["--images", "a", "--captions", "b", "--instances", "c"],
    "flickr30k_entities": ["--root", "a", "--split", "val"],
    "image_text": ["--tars", "a"],
    "refcoco": ["--root", "a", "--images", "b", "--split-by", "unc"],
    "grefcoco": ["--root", "a", "--images", "b", "--split-by", "unc"],
    "objects365": ["--annotations", "a", "--images", "b"],
    "open_images": ["--boxes", "a", "--classes", "b", "--images", "c"],
    "referitgame": ["--root", "a", "--images", "b", "--split-by", "berkeley"],
    "visual_genome": ["--root", "a", "--images", "b"],
    **{name: ["--tars", "a", "b"] for name in ("sbu", "cc3m", "cc12m")},
}


@pytest.mark.parametrize("source", sorted(SOURCES))
def test_flags_that_stay(source: str) -> None:
    flags = ["--out", "o", "--overwrite", "--shard-size", "10", "--max-side", "20"]
    flags += ["--workers", "2", "--limit", "3", "--max-bad", "1%", "--name", "n"]
    flags += ["--processes", "2", "--task", "1/2", "--restart", "--exclude", "x"]
    flags += ["--strict-counts"]
    args = build_parser("convert").parse_args(["convert", source, *FLAGS_THAT_STAY[source], *flags])
    assert (args.source, args.out, args.max_bad) == (source, Path("o"), 0.01)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser(verb).parse_args([verb, "--help"])
    assert ended.value.code == 0
    assert VERBS[verb][1] in " ".join(capsys.readouterr().out.split())


def test_help_imports_no_heavy_library() -> None:
    code = (
        "import sys; sys.argv = ['data_tools', '--help']; import runpy\n"
        "try: runpy.run_module('data_tools', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("text", ["0", "-1", "x", "1.5"])
def test_numbers_that_must_be_positive(text: str) -> None:
    with pytest.raises(Exception, match="whole number"):
        positive(text)


def test_shares() -> None:
    assert (share("1%"), share("0.25"), share("0"), share("100%")) == (0.01, 0.25, 0, 1)
    for text in ("101%", "-1", "x", "nan"):
        with pytest.raises(Exception, match="no share"):
            share(text)


def test_threads_keep_the_order_and_few_items_in_flight() -> None:
    taken: list[int] = []

    def items() -> "list[int]":
        for number in range(100):
            taken.append(number)
            yield number  # type: ignore[misc]

    results = ordered_map(lambda number: number * number, items(), workers=2)
    assert next(results) == 0
    assert len(taken) <= 8
    assert [0, *results] == [number * number for number in range(100)]


def test_an_error_in_a_thread_arrives() -> None:
    with pytest.raises(ZeroDivisionError):
        list(ordered_map(lambda number: 1 // number, [1, 0, 1], workers=2))
