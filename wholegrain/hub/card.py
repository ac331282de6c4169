"""The model card: the README of a release, generated from what the run knows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from wholegrain.model.multigrain import MultiGrainModel
from wholegrain.report.content import ResultTable
from wholegrain.report.tables import CellView, TableView

NO_LEAK_AUDIT = "No audit for evaluation photos among the training photos was run."
GENERAL_LIMITATIONS = (
    "It sees the photo squeezed to a square of {size} px: what is small there is easily missed.",
    "Texts are lower-cased and cut to the model's longest; it answers every expression with a box, "
    "also when nothing in the photo fits. The score is the box head's own confidence "
    "(matching probability, share of the votes inside the box, or expected overlap), not a "
    "calibrated chance that the box is right.",
    "It repeats the biases of its training data. Do not use it to identify people or to decide "
    "about them.",
)


@dataclass(frozen=True, slots=True)
class Card:
    """What a model card tells beyond what the model itself shows."""

    title: str
    summary: str = ""
    """What it is and what it is for, in a paragraph."""
    manifests: Sequence[Mapping[str, Any]] = ()
    """Manifests of the corpora it learnt from, as `data` writes them: name, counts, splits,
    fingerprint."""
    recipe: str = ""
    """The resolved configuration as YAML."""
    command: str = ""
    """The command that trained it."""
    results: Sequence[ResultTable] = ()
    """Figures with their baselines; each table carries the command that reproduces it."""
    leak_audit: str = ""
    """What is known of evaluation photos among the training photos."""
    limitations: Sequence[str] = ()
    """Sentences added to the general ones."""
    license: str = ""
    """SPDX name of the weights' licence; empty where none was decided."""


def render_card(card: Card, model: MultiGrainModel) -> str:
    """The card of `model` as Markdown with the front matter that model hubs read."""
    sections = [
        _front_matter(card),
        f"# {_line(card.title)}",
        card.summary,
        _facts(model),
        _USE,
        "## Data",
        _data(card.manifests),
        card.leak_audit or NO_LEAK_AUDIT,
        *_results(card.results),
        "## Recipe",
        _fenced(card.command, "sh"),
        _fenced(card.recipe, "yaml"),
        "## Limitations",
        _limitations(card, model),
    ]
    return "\n\n".join(section.strip("\n") for section in sections if section) + "\n"


_USE = """## Use

```python
import wholegrain

model = wholegrain.load("path/to/this/folder")
for found in model.ground("photo.jpg", ["the man in red", "the dog"]):
    print(found.text, found.box, found.score)  # box: left, top, right, bottom in pixels
```

Or from a shell: `python -m wholegrain ground photo.jpg "the man in red" --model FOLDER --out
picture.png`. Loading verifies `checksums.json` and runs nothing from this folder."""


def _front_matter(card: Card) -> str:
    values: dict[str, Any] = {
        "library_name": "wholegrain",
        "tags": ["visual-grounding", "referring-expression-comprehension", "image-text-retrieval"],
    }
    if card.license:
        values["license"] = card.license
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---"


def _facts(model: MultiGrainModel) -> str:
    config = model.config
    size = sum(parameter.numel() for parameter in model.parameters())
    vision = getattr(config.vision, "name", config.vision.kind)
    rows = {
        "Parameters": f"{size:,}",
        "Image encoder": f"{vision}, {config.vision.image_size} px",
        "Text and cross encoder": f"{config.text.fusion_layer} + "
        f"{config.text.layers - config.text.fusion_layer} layers of {config.text.hidden_size}",
        "Word pieces": f"{config.text.vocab_size:,}",
        "Box head": config.box_head.kind,
        "Fusion": config.fusion.kind,
        "Adapters": ", ".join(adapter.kind for adapter in config.adapters) or "none",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {k} | {_line(v)} |" for k, v in rows.items())])


def _data(manifests: Sequence[Mapping[str, Any]]) -> str:
    if not manifests:
        return "No corpora were recorded."
    lines = ["| corpus | holds | splits | fingerprint |", "|---|---|---|---|"]
    for manifest in manifests:
        holds = ", ".join(f"{n:,} {what}" for what, n in manifest.get("counts", {}).items() if n)
        splits = ", ".join(f"{name} {n:,}" for name, n in manifest.get("splits", {}).items())
        fingerprint = _line(str(manifest.get("fingerprint", "")))
        lines.append(
            f"| {_line(str(manifest.get('name', '')))} | {_line(holds)} | {_line(splits)} "
            f"| `{fingerprint}` |"
        )
    return "\n".join(lines)


def _results(tables: Sequence[ResultTable]) -> list[str]:
    if not tables:
        return ["## Results", "No evaluation was recorded with this release."]
    parts = ["## Results"]
    for table in tables:
        view = TableView.of(table)
        marks = ["---:" if column.numeric else "---" for column in view.columns]
        rows = [
            "| " + " | ".join(_line(str(head)) for head in table.columns) + " |",
            "|" + "|".join(marks) + "|",
            *(_row(row, "**") for row in view.figures),
            *(_row(row, "") for row in view.baselines),
        ]
        parts += [f"### {_line(table.name)}", "\n".join(rows), _line(table.note)]
        parts.append(_fenced(table.command, "sh"))
    return parts


def _row(cells: Sequence[CellView], mark: str) -> str:
    label, *figures = [
        _line(f"{cell.text} ({cell.interval})" if cell.interval else cell.text) for cell in cells
    ]
    return "| " + " | ".join([f"{mark}{label}{mark}", *figures]) + " |"


def _limitations(card: Card, model: MultiGrainModel) -> str:
    general = [line.format(size=model.config.vision.image_size) for line in GENERAL_LIMITATIONS]
    return "\n".join(f"- {line}" for line in [*card.limitations, *general])


def _line(text: str) -> str:
    """One line of Markdown that shows `text` as it is: no table breaks, no HTML."""
    flat = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([|`])", r"\\\1", flat)


def _fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any inside it."""
    if not text.strip():
        return ""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text.strip()}\n{fence}"
