"""What of an image's pass comes before all that depends on texts is computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn


@contextmanager
def computed_once(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within the block, each module's first output is its answer to every later call.

    For passes over the same images, one set of texts after the other: as every pass brings these
    modules the same inputs, all but the first can go without them.

    Args:
        modules: run once a pass; none of them reads a text.
    """
    with ExitStack() as undo:
        for module in modules:
            undo.callback(_remember(module))
        yield


def _remember(module: nn.Module) -> Callable[[], None]:
    """Replaces a module's forward by one that remembers; returns what puts the old one back."""
    own = vars(module).get("forward")  # set on the object, where a block is run in our way
    run: Callable[..., Any] = module.forward
    answers: list[Any] = []

    def forward(*args: Any, **options: Any) -> Any:
        if not answers:
            answers.append(run(*args, **options))
        return answers[0]

    def undo() -> None:
        if own is None:
            del module.forward
        else:
            module.forward = own

    module.forward = forward
    return undo
