"""``python -m wholegrain``: a released model from the command line."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from wholegrain.errors import DataError, ReleaseError, run_cli

if TYPE_CHECKING:
    from PIL.Image import Image

    from wholegrain.predict import Grounding

_PICTURES = (".jpg", ".jpeg", ".png", ".webp")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    arguments = build_parser().parse_args(argv)
    verbs = {
        "ground": ground,
        "info": info,
        "import-xvlm": import_from_xvlm,
        "export-xvlm": export_to_xvlm,
        "import-transvg": import_from_transvg,
    }
    return verbs[arguments.verb](arguments)


def ground(arguments: argparse.Namespace) -> int:
    """Finds expressions in a photo, prints the boxes and draws them."""
    from wholegrain.predict import load, read_photo

    if arguments.out is not None:
        _check_out(arguments.out, arguments.photo)
    model = load(arguments.model, device=arguments.device, additions=arguments.additions)
    photo = read_photo(arguments.photo).pixels
    found = model.ground(photo, arguments.texts)
    if arguments.json:
        print(json.dumps([_as_json(one) for one in found], ensure_ascii=False, indent=1))
    else:
        for one in found:
            left, top, right, bottom = one.box
            print(f"{one.score:.2f}  {left:.1f} {top:.1f} {right:.1f} {bottom:.1f}  {one.text}")
    if arguments.out is not None:
        from wholegrain.draw import draw_boxes

        labels = [f"{one.score:.2f}  {one.text}" for one in found]
        _save(draw_boxes(photo, [one.box for one in found], labels), arguments.out)
        print(arguments.out, file=sys.stderr)
    return 0


def info(arguments: argparse.Namespace) -> int:
    """Verifies a release and says what it is."""
    from safetensors import SafetensorError, safe_open

    from wholegrain.config import dump_config, to_dict
    from wholegrain.hub.release import CARD, WEIGHTS, read_info

    release = read_info(arguments.model)
    weights = release.folder / WEIGHTS
    try:
        with safe_open(weights, framework="pt") as tensors:
            names = tensors.keys()
            count = sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)
    except (OSError, SafetensorError) as error:  # the checksum is right: made so, or an odd path
        raise ReleaseError(
            f"{weights}: cannot be read as safetensors ({error}); have the release made again, "
            "and keep it below a path in UTF-8"
        ) from error
    if arguments.json:
        facts = {
            "folder": str(release.folder),
            "values": count,
            "model": to_dict(release.config),
            "extras": release.extras,
            "sha256": release.checksums,
        }
        print(json.dumps(facts, ensure_ascii=False, indent=1))
        return 0
    print(f"{release.folder}: a sound release, {len(release.checksums)} files verified")
    print(f"weights: {count:,} values, {weights.stat().st_size / 1e6:,.1f} MB")
    print(f"card:    {release.folder / CARD}")
    for name, value in release.extras.items():
        print(f"{name}: {value}")
    print(f"\n{dump_config(release.config)}", end="")
    return 0


def import_from_xvlm(arguments: argparse.Namespace) -> int:
    """Makes a release of an X-VLM checkpoint and says what went where."""
    from wholegrain.hub.import_xvlm import import_xvlm

    report = import_xvlm(
        arguments.file,
        arguments.out,
        vocab=arguments.vocab,
        image_size=arguments.image_size,
        text_heads=arguments.text_heads,
        vision_heads=arguments.vision_heads,
        local_layers=arguments.local_layers,
        overwrite=arguments.overwrite,
    )
    print(report)
    print(f"\n{arguments.out}: a release; wholegrain.load reads it")
    return 0


def export_to_xvlm(arguments: argparse.Namespace) -> int:
    """Writes a release in X-VLM's layout."""
    from wholegrain.hub.export_xvlm import export_xvlm

    print(
        export_xvlm(
            arguments.release,
            arguments.out,
            layout=arguments.layout,
            overwrite=arguments.overwrite,
        )
    )
    return 0


def import_from_transvg(arguments: argparse.Namespace) -> int:
    """Makes a release of a TransVG or MMCA checkpoint and says what went where."""
    from wholegrain.hub.import_transvg import import_transvg

    report = import_transvg(
        arguments.file,
        arguments.out,
        vocab=arguments.vocab,
        image_size=arguments.image_size,
        text_heads=arguments.text_heads,
        overwrite=arguments.overwrite,
    )
    print(report)
    print(f"\n{arguments.out}: a release; wholegrain.load reads it")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m wholegrain", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("ground", help="find expressions in a photo")
    one.add_argument("photo", type=Path, metavar="PHOTO")
    one.add_argument("texts", nargs="+", metavar="WORDS", help="one expression each, quoted")
    one.add_argument("--model", type=Path, required=True, metavar="DIR", help="a release")
    one.add_argument(
        "--additions", type=Path, metavar="DIR", help="what finetuning added to it, kept apart"
    )
    one.add_argument("--out", type=Path, metavar="PICTURE", help="draw the boxes into this file")
    one.add_argument("--json", action="store_true", help="print boxes (xyxy px) as JSON")
    one.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU if there is one")
    two = verbs.add_parser("info", help="verify a release and show its configuration")
    two.add_argument("model", type=Path, metavar="DIR")
    two.add_argument("--json", action="store_true", help="print as JSON")
    _add_xvlm(verbs)
    _add_transvg(verbs)
    return parser


def _add_xvlm(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    one = verbs.add_parser("import-xvlm", help="make a release of an X-VLM checkpoint")
    one.add_argument("file", type=Path, metavar="FILE.th", help="as X-VLM published it")
    one.add_argument("--out", type=Path, required=True, metavar="DIR", help="the release")
    one.add_argument("--vocab", type=Path, metavar="FILE", help="vocab.txt of bert-base-uncased")
    one.add_argument("--image-size", type=_count, metavar="PIXELS", help="default: the file's own")
    one.add_argument("--text-heads", type=_count, metavar="N", help="default: 64 channels a head")
    one.add_argument("--vision-heads", type=_count, metavar="N", help="of a ViT; default as above")
    one.add_argument("--local-layers", type=int, metavar="N", help="of a ViT, default: 4")
    one.add_argument("--overwrite", action="store_true", help="replace an earlier release")
    two = verbs.add_parser("export-xvlm", help="write a release in X-VLM's layout")
    two.add_argument("release", type=Path, metavar="RELEASE")
    two.add_argument("--out", type=Path, required=True, metavar="FILE.th")
    two.add_argument(
        "--layout",
        choices=("pretrained", "retrieval", "grounding"),
        help="default: that of the imported file, else pretrained",
    )
    two.add_argument("--overwrite", action="store_true", help="replace an earlier file")


def _add_transvg(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    one = verbs.add_parser("import-transvg", help="make a release of a TransVG or MMCA checkpoint")
    one.add_argument("file", type=Path, metavar="FILE.pth", help="as its training stored it")
    one.add_argument("--out", type=Path, required=True, metavar="DIR", help="the release")
    one.add_argument("--vocab", type=Path, metavar="FILE", help="vocab.txt of bert-base-uncased")
    one.add_argument(
        "--image-size", type=_count, default=640, metavar="PIXELS", help="of its training: 640"
    )
    one.add_argument("--text-heads", type=_count, metavar="N", help="default: 64 channels a head")
    one.add_argument("--overwrite", action="store_true", help="replace an earlier release")


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is no positive number")
    return number


def _check_out(out: Path, photo: Path) -> None:
    """Refuses, before any work, a picture that could not or should not be written."""
    try:
        if out.is_dir() or (out.exists() and photo.exists() and out.samefile(photo)):
            raise DataError(f"--out {out}: is a folder, or the photo itself; choose another name")
        if out.suffix.lower() not in _PICTURES:
            raise DataError(f"--out {out}: a picture ends in {', '.join(_PICTURES)}")
        if not out.parent.exists():
            raise DataError(f"--out {out}: there is no folder {out.parent}; make it first")
        # Only the attempt tells: permissions say nothing of quotas, of /proc, or of root's rights.
        aside = _aside(out)
        aside.open("wb").close()
        aside.unlink()
    except OSError as error:
        raise _unwritable(out, error) from error


def _save(picture: Image, out: Path) -> None:
    """Writes a picture that appears whole or not at all."""
    aside = _aside(out)
    try:
        picture.save(aside, quality=92)
        os.replace(aside, out)
    except (OSError, ValueError) as error:  # the system's, or that of the format's encoder
        raise _unwritable(out, error) from error
    finally:
        with suppress(OSError):  # it would hide the error above
            aside.unlink(missing_ok=True)


def _aside(out: Path) -> Path:
    return out.with_name(f".{os.getpid()}-{out.name}")


def _unwritable(out: Path, error: OSError | ValueError) -> DataError:
    reason = getattr(error, "strerror", None) or error
    return DataError(f"--out {out}: cannot be written ({reason}); choose another place")


def _as_json(one: Grounding) -> dict[str, object]:
    return {
        "text": one.text,
        "box": [round(side, 2) for side in one.box],
        "score": round(one.score, 6),
    }


if __name__ == "__main__":
    sys.exit(run_cli(main))
