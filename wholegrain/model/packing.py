"""Texts of unequal length in one row of tokens, without padding between them."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from wholegrain.model.indexing import take


class Packing:
    """Where each of R texts lies among T tokens.

    Text r is tokens ``starts[r] .. starts[r] + lengths[r] - 1``. Its slot reaches to the next start
    (the last one to T); what a slot holds behind its text is a gap: computed, finite, never read.
    Gaps let the host know T where it cannot know every length, so that it never has to wait for the
    device. Projections, norms and feed-forwards cost what T costs; only attention sees the padded
    rectangle (R, L), and not even that where the hardware attends over unequal lengths.

    Args:
        starts: long (R,), never decreasing, the first one 0.
        lengths: long (R,), each at most its slot.
        total: T, on the host.
        longest: L, at least every slot, on the host.
    """

    def __init__(self, starts: Tensor, lengths: Tensor, total: int, longest: int) -> None:
        self.starts, self.lengths, self.total, self.longest = starts, lengths, total, longest

    def __len__(self) -> int:
        return len(self.starts)

    @classmethod
    def of_lengths(cls, lengths: Tensor, total: int, longest: int) -> Packing:
        """Texts one behind the other; `total` is the sum of their lengths."""
        return cls(lengths.cumsum(0) - lengths, lengths, total, longest)

    @classmethod
    def of_mask(cls, mask: Tensor) -> tuple[Packing, Tensor]:
        """The packing of a padded batch, and the place of each token in it.

        On a CPU the texts lie without gaps; elsewhere each keeps its L places, because counting
        would make the host wait.

        Args:
            mask: bool (R, L), True at tokens, which stand at the front of each row. A row without
                any is taken to hold one, as every text starts with ``[CLS]``.

        Returns:
            The packing, and long (T,) places in the flattened (R, L).
        """
        rows, longest = mask.shape
        lengths = mask.sum(1).clamp(min=1)
        if mask.device.type == "cpu":
            packing = cls.of_lengths(lengths, int(lengths.sum()), longest)
            return packing, packing.places
        starts = torch.arange(rows, device=mask.device) * longest
        return cls(starts, lengths, rows * longest, longest), torch.arange(
            rows * longest, device=mask.device
        )

    @cached_property
    def slots(self) -> Tensor:
        """Long (R,): the tokens from each start to the next."""
        end = self.starts.new_full((1,), self.total)
        return torch.cat([self.starts[1:], end]) - self.starts

    @cached_property
    def row(self) -> Tensor:
        """Long (T,): the text in whose slot each token lies."""
        token = torch.arange(self.total, device=self.starts.device)
        return torch.searchsorted(self.starts, token, right=True) - 1

    @cached_property
    def column(self) -> Tensor:
        """Long (T,): the place of each token in its slot."""
        return torch.arange(self.total, device=self.starts.device) - self.starts[self.row]

    @cached_property
    def mask(self) -> Tensor:
        """Bool (R, L), True at tokens of the rectangle."""
        return torch.arange(self.longest, device=self.starts.device) < self.lengths[:, None]

    @cached_property
    def source(self) -> Tensor:
        """Long (R, L): the token at each place of the rectangle; padding repeats the last one."""
        column = torch.arange(self.longest, device=self.starts.device)
        last = (self.lengths - 1).clamp(min=0)[:, None]
        place = self.starts[:, None] + torch.minimum(column, last)
        return place.clamp(max=max(0, self.total - 1))

    @cached_property
    def places(self) -> Tensor:
        """Long (T,): the place of each token in the flattened rectangle; gaps repeat the last."""
        last = (self.lengths - 1).clamp(min=0)[self.row]
        return self.row * self.longest + torch.minimum(self.column, last)

    def unpack(self, states: Tensor) -> Tensor:
        """(T, D) to (R, L, D); padding holds the text's last token."""
        return take(states, self.source)

    def pack(self, states: Tensor) -> Tensor:
        """(R, L, D) to (T, D); a gap holds its text's last token."""
        return take(states.flatten(0, 1), self.places)

    def choose(self, rows: Tensor, slots: Tensor | None = None, total: int | None = None) -> Chosen:
        """The packing of some texts, in any order and any number of times.

        Args:
            rows: long (S,), the texts.
            slots: long (S,), how many places each is given, at most L; None gives each its length.
            total: the sum of `slots`, on the host; None asks the device for it.
        """
        lengths = self.lengths[rows]
        slots = lengths if slots is None else slots
        total = int(slots.sum()) if total is None else total
        chosen = Packing(slots.cumsum(0) - slots, lengths, total, self.longest)
        if not total:
            return Chosen(rows.new_zeros(0), chosen)
        # A gap repeats its text's slot as far as that goes, and then its last place.
        text = rows[chosen.row]
        column = torch.minimum(chosen.column, self.slots[text] - 1)
        return Chosen(self.starts[text] + column, chosen)

    def repeated(self, times: int) -> Packing:
        """The same texts several times, one set behind the other."""
        offset = torch.arange(times, device=self.starts.device)[:, None] * self.total
        return Packing(
            (offset + self.starts).flatten(),
            self.lengths.repeat(times),
            times * self.total,
            self.longest,
        )

    def followed_by(self, other: Packing) -> Packing:
        """These texts, then those of another row of tokens."""
        return Packing(
            torch.cat([self.starts, self.total + other.starts]),
            torch.cat([self.lengths, other.lengths]),
            self.total + other.total,
            max(self.longest, other.longest),
        )

    @cached_property
    def bounds(self) -> Tensor:
        """int32 (2 R + 1,): starts of texts and gaps in turn, then T; for kernels over segments.

        Every token lies in a segment, so that a kernel leaves none of them unwritten.
        """
        both = torch.stack([self.starts, self.starts + self.lengths], dim=1).flatten()
        return torch.cat([both, both.new_full((1,), self.total)]).int()


class Chosen(NamedTuple):
    """Some texts of a packing, laid out anew."""

    tokens: Tensor
    """Long (T',), which token of the old packing stands at each place of the new one."""
    texts: Packing
    """The new one."""
