"""Parameters under AdamW whose every update is a function of the step, for tests of checkpoints."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from wholegrain.train.checkpoint import Checkpoint
from wholegrain.train.checkpoint_writer import Writer
from wholegrain.train.optimizer_state import MOMENTS, Fragment, StoredState


class Toy(nn.Module):
    """A matrix and a vector of which every rank holds all, and a share of their moments."""

    def __init__(self, rows: int = 7) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.linspace(-1, 1, 3 * rows).reshape(rows, 3))
        self.bias = nn.Parameter(torch.ones(5))
        self.idle = nn.Parameter(torch.ones(2))
        self.adamw = torch.optim.AdamW(self.parameters(), lr=0.01, fused=True)
        self.done = 0

    def advance(self, steps: int) -> Toy:
        """Updates until so many steps are done; `idle` never has one."""
        for step in range(self.done, steps):
            for parameter in (self.matrix, self.bias):
                parameter.grad = torch.cos(parameter.detach() * (step + 1))
            self.adamw.step()
        self.done = steps
        return self

    def fragments(self, rank: int = 0, world: int = 1) -> list[Fragment]:
        """What a rank holds: the parameters end to end are cut in `world` parts, as ZeRO does."""
        held, offset = [], 0
        total = sum(parameter.numel() for parameter in self.parameters())
        first, last = (total * share // world for share in (rank, rank + 1))
        for name, parameter in self.named_parameters():
            start = max(first - offset, 0)
            stop = min(last - offset, parameter.numel())
            offset += parameter.numel()
            state = self.adamw.state.get(parameter)
            if start < stop and state:
                tensors = {moment: state[moment].flatten()[start:stop] for moment in MOMENTS}
                shape, step = tuple(parameter.shape), float(state["step"])
                held.append(Fragment(name, start, shape, step, tensors))
        return held

    def save(self, writer: Writer, rank: int = 0, world: int = 1) -> None:
        """Hands this rank's share of the present state to its writer."""
        main = rank == 0
        weights = self.state_dict() if main else None
        facts = {"facts": {"seed": 0}} if main else None
        writer.save(self.done, weights, self.fragments(rank, world), facts, {"a.json": "{}"})

    def load(self, checkpoint: Checkpoint) -> Toy:
        """Takes up a checkpoint, whoever wrote it."""
        checkpoint.load(self)
        self.load_moments(checkpoint.optimizer())
        self.done = checkpoint.step
        return self

    def load_moments(self, stored: StoredState) -> None:
        stored.require_fit({name: tuple(p.shape) for name, p in self.named_parameters()})
        for name, parameter in self.named_parameters():
            step, moments = stored.read(name, 0, parameter.numel())
            if step:
                self.adamw.state[parameter] = {
                    "step": torch.tensor(step),
                    **{moment: flat.reshape(parameter.shape) for moment, flat in moments.items()},
                }

    def digest(self) -> str:
        """Of every bit of the state."""
        digest = hashlib.sha256()
        for parameter in self.parameters():
            state = self.adamw.state.get(parameter, {})
            for tensor in (parameter.detach(), *(state[name] for name in sorted(state))):
                digest.update(tensor.numpy().data)
        return digest.hexdigest()
