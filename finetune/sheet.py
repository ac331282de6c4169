"""The mark sheet of an evaluation: what every expression is worth, before any mean is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.metrics import RESAMPLES, Array, Mask, Summary, summarise
from finetune.protocols import Corners
from wholegrain.errors import DataError

ALL = "all"

Question = tuple[str, str, tuple[Corners, ...]]
"""Id, image and true boxes of an expression."""


@dataclass(frozen=True)
class Sheet:
    """Marks of E expressions."""

    questions: list[Question]
    images: NDArray[np.int64]
    """(E,) the number of each expression's image, 0..K-1, by the images' names."""
    marks: dict[str, dict[str, Array]]
    """Protocol -> mark -> (E,)."""
    groups: dict[str, Mask]
    """Slice -> mask (E,); ``all`` comes first."""

    @classmethod
    def of(
        cls,
        questions: Sequence[Question],
        marks: Mapping[str, Mapping[str, Array]],
        slices: Mapping[str, Mask],
    ) -> Sheet:
        """The sheet with its images numbered."""
        _, images = np.unique([image for _, image, _ in questions], return_inverse=True)
        return cls(
            questions=list(questions),
            images=images.astype(np.int64),
            marks={protocol: dict(rows) for protocol, rows in marks.items()},
            groups={ALL: np.ones(len(questions), dtype=bool)} | dict(slices),
        )

    def summaries(
        self, *, resamples: int = RESAMPLES, seed: int = 0
    ) -> dict[str, dict[str, Summary]]:
        """Protocol -> slice -> metrics."""
        return {
            protocol: summarise(rows, self.images, self.groups, resamples=resamples, seed=seed)
            for protocol, rows in self.marks.items()
        }

    def minus(self, other: Sheet) -> Sheet:
        """This sheet, its marks less those of the other for the same expressions.

        Raises:
            DataError: the two are not about the same expressions, images and true boxes.
        """
        places = {question[0]: place for place, question in enumerate(other.questions)}
        order = []
        for question in self.questions:
            place = places.get(question[0])
            if place is None or other.questions[place] != question:
                fault = "is not in the other" if place is None else "has other true boxes there"
                raise DataError(
                    f"the files answer different questions: {question[0]!r} {fault}; compare "
                    "predictions for one split of one corpus"
                )
            order.append(place)
        if len(order) != len(other.questions):
            raise DataError(
                f"the files answer different questions: {len(order)} and {len(other.questions)} "
                "expressions; compare predictions for one split of one corpus"
            )
        marks = {
            protocol: {name: row - other.marks[protocol][name][order] for name, row in rows.items()}
            for protocol, rows in self.marks.items()
        }
        return Sheet(self.questions, self.images, marks, self.groups)
