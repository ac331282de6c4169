"""Self-paced weighting: losses weighed by how hard their samples are, on learnt scales.

After "Self-paced Multi-grained Cross-modal Interaction Modeling for Referring Expression
Comprehension" (arXiv 2204.09957): a sample of loss L has the difficulty ``d = exp(L^2 / sigma^2)``
and costs ``d (L - lambda)``, where sigma is learnt. Hard samples weigh more, which is the opposite
of ordinary self-paced learning.

That loss has no lower bound: where every L is below lambda it falls without end as sigma goes to 0;
and for sigma below ``lambda / sqrt(2)`` it falls as some L rise. So here sigma has a floor, the
exponent has a ceiling, and whether the model feels a gradient through d is a choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from wholegrain.config import config
from wholegrain.errors import ConfigError, WholegrainError
from wholegrain.objectives.box import over_scales


@config
class SelfPacedConfig:
    """Self-paced weighting of a loss's terms."""

    terms: tuple[str, ...] = ("l1", "giou")
    """Which terms are weighed, each with a sigma of its own."""
    mode: Literal["detached", "literal"] = "detached"
    """`detached` takes no gradient of the model through the difficulty, which then only weighs the
    term's gradient; `literal` differentiates the printed formula. Sigma's gradient is the same."""
    threshold: float = Field(default=0.75, gt=0)
    """lambda: a sample whose loss is above it raises sigma (weights become more even), one below it
    lowers sigma."""
    sigma: float = Field(default=2.5, gt=0)
    """Where sigma starts, in units of the loss."""
    sigma_min: float = Field(default=1.0, gt=0)
    """What sigma never falls below."""
    max_exponent: float = Field(default=3.0, gt=0, le=80)
    """Largest ``L^2 / sigma^2``; beyond it a sample weighs ``exp`` of this and sigma does not feel
    it. fp32 overflows at 88."""
    lr: float = Field(default=5e-5, gt=0)
    """Peak learning rate of sigma's parameters, whatever `optim.lr` is; it follows the schedule."""
    clip: float = Field(default=1.0, gt=0)
    """Largest gradient norm of sigma's parameters, which are clipped by themselves."""
    check: bool = False
    """Whether a term that is not finite ends the run at once, naming it. The host then waits for
    the device in each step: for looking for the cause."""

    def __post_init__(self) -> None:
        if not self.terms or len(set(self.terms)) < len(self.terms):
            raise ConfigError(
                f"self_paced.terms is {list(self.terms)}; name each term once, and at least one"
            )
        if self.sigma <= self.sigma_min:
            raise ConfigError(
                f"self_paced.sigma is {self.sigma}, self_paced.sigma_min is {self.sigma_min}; "
                "start sigma above its floor"
            )
        least = self.threshold / math.sqrt(2)
        if self.mode == "literal" and self.sigma_min < least:
            raise ConfigError(
                f"self_paced.sigma_min is {self.sigma_min}, below threshold / sqrt(2), where the "
                f"literal loss falls as some samples get worse; raise it to "
                f"{math.ceil(least * 1e4) / 1e4} or more, or set self_paced.mode to `detached`"
            )


class SelfPacedLoss(NamedTuple):
    """What to minimise, and how it was weighed."""

    per_sample: Tensor
    """(T,) the sum of the terms, before any mean; negative where a sample is easy. It is
    ``-lambda`` for each paced term of weight 1 (and scale) at a perfect answer, so it is no measure
    to choose a model by."""
    figures: dict[str, Tensor]
    """() without gradient, on the device, of each paced term: ``sigma_TERM``, ``d_mean_TERM``,
    ``d_max_TERM`` and ``clamped_share_TERM`` (of the samples at the ceiling). Empty in evaluation
    mode."""


class SelfPaced(nn.Module):
    """Weighs per-sample terms by their difficulty; one sigma a term, shared by its scales.

    Of a paced term L the model is trained with ``d (L - lambda)``, ``d = exp(min(L^2 / sigma^2,
    E))``. ``sigma = sigma_min + softplus(rho)`` and rho is the parameter, of no dimension and
    therefore without weight decay; it needs its own rate and clipping (`SelfPacedConfig.lr`,
    `SelfPacedConfig.clip`). A step of AdamW moves sigma by up to ``lr sigmoid(rho)``, which is 78 %
    of the rate at the start and falls to 0 at the floor.

    Sigma finds an equilibrium where ``E[L^2 d (L - lambda)] = 0``. It exists where some L exceed
    lambda and ``E[L^3] / E[L^2] < lambda``. With more hard samples than that sigma grows, and the
    loss becomes the plain one less a constant; with none it falls to its floor.

    A term that is not finite makes the loss so, and `wholegrain.train.optim.Optimizer` leaves the
    update out: nothing is set to zero here, and nothing waits for the device.
    """

    def __init__(self, config: SelfPacedConfig) -> None:
        super().__init__()
        self.config = config
        above = config.sigma - config.sigma_min
        # The inverse of softplus, in a form that does not overflow for a large sigma.
        rho = above + math.log(-math.expm1(-above))
        self.rho = nn.ParameterDict(
            {term: nn.Parameter(torch.tensor(rho, dtype=torch.float32)) for term in config.terms}
        )
        """() of each paced term."""

    def sigma(self, term: str) -> Tensor:
        """() of a term, in units of its loss."""
        rho = self.rho[term]
        return self.config.sigma_min + F.softplus(_exact(rho))

    def forward(
        self, terms: Mapping[str, Tensor], weights: Mapping[str, float] | None = None
    ) -> SelfPacedLoss:
        """The loss of each sample.

        In evaluation mode no term is paced: ``sum of w L``.

        Args:
            terms: (T,) each, at least 0, or (T, S) with one column a scale; T of at least 1. Terms
                that are not paced are added as they are.
            weights: what each term is multiplied by after pacing; None for 1 throughout. Sigma's
                equilibrium does not depend on it.

        Raises:
            ConfigError: a paced term is not among the terms.
            WholegrainError: with `SelfPacedConfig.check`, a term is not finite.
        """
        missing = [term for term in self.config.terms if term not in terms]
        if missing:
            raise ConfigError(
                f"self_paced.terms names {missing[0]!r}, which the loss does not have; name some "
                f"of {', '.join(sorted(terms))}"
            )
        total: Tensor | None = None
        figures: dict[str, Tensor] = {}
        device = next(iter(terms.values())).device
        with torch.autocast(device.type, enabled=False):
            for name, term in terms.items():
                loss = _exact(term)
                if self.config.check:
                    _require_finite(name, loss)
                if self.training and name in self.rho:
                    loss = self._paced(name, loss, figures)
                loss = over_scales(loss)
                if weights is not None:
                    loss = loss * weights[name]
                total = loss if total is None else total + loss
        assert total is not None  # `config.terms` is not empty
        return SelfPacedLoss(total, figures)

    def _paced(self, name: str, loss: Tensor, figures: dict[str, Tensor]) -> Tensor:
        """The term as it is learnt, of the same shape."""
        settings, sigma = self.config, self.sigma(name)
        seen = loss.detach() if settings.mode == "detached" else loss
        exponent = (seen / sigma).square()
        difficulty = exponent.clamp(max=settings.max_exponent).exp()
        with torch.no_grad():
            figures |= {
                f"sigma_{name}": sigma.detach(),
                f"d_mean_{name}": difficulty.mean(),
                f"d_max_{name}": difficulty.amax(),
                f"clamped_share_{name}": (exponent > settings.max_exponent).float().mean(),
            }
        return difficulty * (loss - settings.threshold)


def _exact(values: Tensor) -> Tensor:
    """In fp32 at least: a half's exponential overflows at 11."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _require_finite(name: str, loss: Tensor) -> None:
    bad = (~torch.isfinite(loss)).nonzero()
    if len(bad):
        place = bad[0].tolist()
        raise WholegrainError(
            f"the loss term {name!r} is {loss[tuple(place)].item()} for sample {place[0]} of "
            f"{len(loss)} ({len(bad)} values are not finite); lower optim.lr or look at the data"
        )
