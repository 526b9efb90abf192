"""A batch of next-token distributions: log-probabilities and probabilities side by side, so each exp is taken once.

Legend: _B rows, _V vocabulary.
"""

from __future__ import annotations

import dataclasses
from functools import cache

import torch

NEVER = -1e30
"""The log-probability of what cannot be drawn. Finite, so that 0 × log 0 is 0 without a test; exp(NEVER) is 0."""

_FORBIDDEN_BELOW = NEVER / 2

_CPU_GROUP_ELEMENTS = (1 << 16) - 1
"""Rows × vocabulary of a group on a CPU: half a MB per float64 matrix. torch sums 32,768 entries or more in parallel
pieces when they are one row, but not when they are several; such a row must always be alone, or its last bit depends on
the batch."""


def row_groups(rows: int, vocab: int, device: torch.device) -> list[slice]:
    """Rows to work on together: on a CPU as many as stay in the cache, elsewhere all; one empty slice for no rows."""
    size = max(1, rows)
    if device.type == "cpu":
        if not torch.compiler.is_compiling():
            _keep_freed_memory()
        size = max(1, _CPU_GROUP_ELEMENTS // vocab)
    return [slice(start, min(start + size, rows)) for start in range(0, max(rows, 1), size)]


@cache
def _keep_freed_memory() -> None:
    """Let glibc keep freed matrices: once a block of almost 32 MiB has been freed, it no longer returns such blocks.

    Otherwise it gives matrices back to the kernel and faults them in anew, page by page, up to 3,800 faults a row of
    151,936 tokens: the solver takes a tenth to a third longer.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Rows of a law; float64.

    Attributes:
        log_weights_BV: log-probabilities up to the row's ``log_total_B``; at most NEVER / 2 off the support.
        weights_BV: their exponentials, up to a factor per row; 0 off the support.
        log_total_B: what to subtract from ``log_weights_BV``.
    """

    log_weights_BV: torch.Tensor
    weights_BV: torch.Tensor
    log_total_B: torch.Tensor

    @staticmethod
    def from_logits(logits_BV: torch.Tensor) -> Distribution:
        """Softmax of float64 logits without NaN or +inf; a row of -inf becomes an empty distribution."""
        return softmax(logits_BV)[0]

    def where(self, rows_B: torch.Tensor, other: Distribution) -> Distribution:
        """The other's rows where chosen, bit for bit; this one's elsewhere, likewise."""
        return Distribution(
            torch.where(rows_B[:, None], other.log_weights_BV, self.log_weights_BV),
            torch.where(rows_B[:, None], other.weights_BV, self.weights_BV),
            torch.where(rows_B, other.log_total_B, self.log_total_B),
        )

    def keeping(self, kept_BV: torch.Tensor) -> Distribution:
        """Restricted to the kept tokens and renormalised."""
        return Distribution.from_logits(self.log_weights_BV.masked_fill(~kept_BV, NEVER))

    def support(self) -> torch.Tensor:
        """Where a token can be drawn, as far as its logarithm says; bool [B, V]."""
        return self.log_weights_BV > _FORBIDDEN_BELOW

    def empty(self) -> torch.Tensor:
        """Rows without any token; bool [B]."""
        return self.weights_BV.amax(1) == 0.0

    def log_probs(self) -> torch.Tensor:
        """Log-probabilities [B, V] with -inf off the support."""
        normalised_BV = self.log_weights_BV - self.log_total_B[:, None]
        return normalised_BV.masked_fill(~self.support(), float("-inf"))

    def log_prob(self, ids_BK: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the tokens ``ids_BK`` [B, K]; -inf off the support."""
        found_BK = self.log_weights_BV.gather(1, ids_BK)
        normalised_BK = found_BK - self.log_total_B[:, None]
        return normalised_BK.masked_fill(found_BK <= _FORBIDDEN_BELOW, float("-inf"))

    def mean(self, values_BV: torch.Tensor) -> torch.Tensor:
        """Expectation of finite values [B, V]; for a normalised distribution."""
        return (self.weights_BV * values_BV).sum(1)

    def entropy(self) -> torch.Tensor:
        """Entropy [B] in nats; for a normalised distribution."""
        return -self.mean(self.log_weights_BV)


def softmax(logits_BV: torch.Tensor) -> tuple[Distribution, torch.Tensor]:
    """`Distribution.from_logits`, and the logits' log-sum-exp [B]; NEVER for an empty row."""
    logits_BV = logits_BV.clamp(min=NEVER)
    peak_B1 = logits_BV.amax(1, keepdim=True)
    empty_B1 = peak_B1 <= _FORBIDDEN_BELOW
    weights_BV = exp_(logits_BV - peak_B1).masked_fill_(empty_B1, 0.0)
    total_B1 = weights_BV.sum(1, keepdim=True).masked_fill(empty_B1, 1.0)
    log_sum_B1 = peak_B1 + total_B1.log()
    log_probs_BV = logits_BV - log_sum_B1.masked_fill(empty_B1, 0.0)
    distribution = Distribution(log_probs_BV, weights_BV.div_(total_B1), torch.zeros_like(total_B1[:, 0]))
    return distribution, log_sum_B1.squeeze(1)


def exp_(exponents_BV: torch.Tensor) -> torch.Tensor:
    """The exponential in place, and exactly 0 below 1e-300.

    Subnormal and vanishing results take a CPU 5 to 25 times as long, and most of a filtered row vanishes.
    """
    return torch.threshold_(exponents_BV.clamp_(min=-700.0).exp_(), 1e-300, 0.0)
