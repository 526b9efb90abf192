"""A batch of next-token distributions: log-probabilities and probabilities side by side, so each exp is taken once.

Legend: _B rows, _V vocabulary.
"""

from __future__ import annotations

import dataclasses
from functools import cache

import torch

from sglang_trb.footprint import group_rows

LIMIT = 1e9
"""Nats. A token whose logit, divided by the temperature, lies so far below the row's largest counts as forbidden: to
draw it once in n tokens would cost LIMIT / n nats. Within it log-ratios have seven digits behind the point, and beta is
fine enough in float64 to meet a budget to one part in 1e6, whatever the logits and the temperature."""

NEVER = -1e30
"""The log-weight of what cannot be drawn. Finite, so that 0 × log 0 is 0 without a test; exp(NEVER) is 0."""

_FORBIDDEN_BELOW = NEVER / 2


def row_groups(rows: int, vocab: int, device: torch.device) -> list[slice]:
    """Rows to work on together, in groups of like size; one empty slice for no rows."""
    if may_look(device):
        _keep_freed_memory()
    groups = max(1, -(-rows // group_rows(vocab, device.type)))
    return [slice(rows * i // groups, rows * (i + 1) // groups) for i in range(groups)]


@cache
def _keep_freed_memory() -> None:
    """Let glibc keep freed matrices: once a block of almost 32 MiB has been freed, it no longer returns such blocks.

    Otherwise it gives matrices back to the kernel and faults them in anew, page by page, up to 3,800 faults a row of
    151,936 tokens: the solver takes a tenth to a third longer.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Rows of distributions over the vocabulary; float64.

    Attributes:
        log_weights_BV: log-probabilities up to the row's ``log_total_B``, from -LIMIT to 0 for a softmax; NEVER off the
            support. Differences of two distributions' log-weights are as exact as those of the logits they came from.
        weights_BV: their exponentials, up to a factor per row; 0 off the support, and below 1e-300.
        log_total_B: what to subtract from ``log_weights_BV``.
    """

    log_weights_BV: torch.Tensor
    weights_BV: torch.Tensor
    log_total_B: torch.Tensor

    @staticmethod
    def from_logits(logits_BV: torch.Tensor) -> Distribution:
        """Softmax of float64 logits without NaN or +inf; -inf forbids, a row of -inf becomes an empty distribution."""
        return softmax(logits_BV)[0]

    def where(self, rows_B: torch.Tensor, other: Distribution) -> Distribution:
        """The other's rows where chosen, bit for bit; this one's elsewhere, likewise."""
        return Distribution(
            torch.where(rows_B[:, None], other.log_weights_BV, self.log_weights_BV),
            torch.where(rows_B[:, None], other.weights_BV, self.weights_BV),
            torch.where(rows_B, other.log_total_B, self.log_total_B),
        )

    def keeping(self, kept_BV: torch.Tensor) -> tuple[Distribution, torch.Tensor]:
        """Restricted to the kept tokens and renormalised; and the logarithm [B] of what was kept, NEVER for nothing."""
        kept, log_sum_B = softmax(self.log_weights_BV.masked_fill(~(kept_BV & self.support()), float("-inf")))
        return kept, (log_sum_B - self.log_total_B).clamp(min=NEVER)

    def support(self) -> torch.Tensor:
        """Where a token can be drawn, as far as its logarithm says; bool [B, V]."""
        return self.log_weights_BV > _FORBIDDEN_BELOW

    def empty(self) -> torch.Tensor:
        """Rows without any token; bool [B]."""
        return self.weights_BV.amax(1) == 0.0

    def log_probs(self) -> torch.Tensor:
        """Log-probabilities [B, V] with -inf off the support."""
        normalised_BV = self.log_weights_BV - self.log_total_B[:, None]
        return normalised_BV.masked_fill_(~self.support(), float("-inf"))

    def log_prob(self, ids_BK: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the tokens ``ids_BK`` [B, K]; -inf off the support."""
        found_BK = self.log_weights_BV.gather(1, ids_BK)
        normalised_BK = found_BK - self.log_total_B[:, None]
        return normalised_BK.masked_fill(found_BK <= _FORBIDDEN_BELOW, float("-inf"))

    def mean(self, values_BV: torch.Tensor) -> torch.Tensor:
        """Expectation of finite values [B, V]; of a softmax, whose weights sum to 1."""
        return (self.weights_BV * values_BV).sum(1)

    def entropy(self) -> torch.Tensor:
        """Entropy [B] in nats; of a softmax, whose weights sum to 1."""
        return self.log_total_B - self.mean(self.log_weights_BV)


def softmax(logits_BV: torch.Tensor) -> tuple[Distribution, torch.Tensor]:
    """`Distribution.from_logits`, and the logits' log-sum-exp [B]; NEVER for an empty row."""
    log_weights_BV, peak_B1 = below_peak(logits_BV)
    torch.threshold_(log_weights_BV, -LIMIT, NEVER)
    weights_BV = exp_(log_weights_BV.clone())
    total_B1 = weights_BV.sum(1, keepdim=True)
    empty_B1 = total_B1 == 0.0
    total_B1 = total_B1.masked_fill(empty_B1, 1.0)
    log_total_B1 = total_B1.log()
    distribution = Distribution(log_weights_BV, weights_BV.div_(total_B1), log_total_B1.squeeze(1))
    return distribution, (peak_B1 + log_total_B1).masked_fill(empty_B1, NEVER).squeeze(1)


def below_peak(logits_BV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits less their row's largest, which is returned too [B, 1]; a row of -inf stays so."""
    peak_B1 = logits_BV.amax(1, keepdim=True).clamp(min=torch.finfo(logits_BV.dtype).min)
    return logits_BV - peak_B1, peak_B1


def exp_(exponents_BV: torch.Tensor) -> torch.Tensor:
    """The exponential in place, and exactly 0 below 1e-300.

    Subnormal and vanishing results take a CPU 5 to 25 times as long, and most of a filtered row vanishes.
    """
    return torch.threshold_(exponents_BV.clamp_(min=-700.0).exp_(), 1e-300, 0.0)


def cumulative(weights_BV: torch.Tensor) -> torch.Tensor:
    """Sums along each row.

    A row alone is scanned by a device in pieces that meet in any order, and rounds differently from run to run; beside
    a twin it is not. Tensor-parallel ranks must draw the same token.
    """
    if weights_BV.shape[0] == 1 and weights_BV.device.type != "cpu":
        return weights_BV.expand(2, -1).cumsum(1)[:1]
    return weights_BV.cumsum(1)


def may_look(device: torch.device) -> bool:
    """Whether the host may ask for a tensor's values: a device would stall it, and a graph repeats the same work."""
    return device.type == "cpu" and not torch.compiler.is_compiling()


def needed(rows_B: torch.Tensor) -> bool:
    """Whether work that only the chosen rows need must be done; always where the host may not look."""
    return not may_look(rows_B.device) or bool(rows_B.any())
