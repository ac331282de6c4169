"""What a finetuned model's card says of evaluation photos, of this stage and of the one before.

A model that met a test photo in pretraining has met it, however clean its finetuning was.
"""

from __future__ import annotations

from pathlib import Path

from finetune.config import FinetuneConfig
from wholegrain.data.corpus import Corpus
from wholegrain.data.leak_audit import STATEMENT, check_audit
from wholegrain.hub.card import NO_LEAK_AUDIT
from wholegrain.hub.release import CHECKSUMS, read_info
from wholegrain.train import checkpoint

_LONGEST = 10_000  # characters


def leak_statement(config: FinetuneConfig, corpus: Corpus) -> str:
    """The statement for the card, in Markdown; empty where nothing was audited.

    Raises:
        ConfigError: the audit that the config names does not allow to train on the corpus.
    """
    here = check_audit(config.data.audit, [corpus], "data.audit")
    if config.init is None:
        return here
    before = statement_of(Path(config.init))
    if not here and not before:
        return ""
    return f"Before finetuning: {before or NO_LEAK_AUDIT}\n\nIn finetuning: {here or NO_LEAK_AUDIT}"


def statement_of(init: Path) -> str:
    """What a release, or a run folder's newest checkpoint, says of its own training photos."""
    if (init / CHECKSUMS).exists():
        text = str(read_info(init).extras.get("leak_audit", ""))
    else:
        found = checkpoint.latest(init)
        path = found.folder / STATEMENT if found is not None else None
        text = path.read_text(encoding="utf-8") if path is not None and path.is_file() else ""
    # Others wrote the release: its words may not become a page of their own in our card.
    return " ".join(text[:_LONGEST].split()).replace("<", "&lt;")
