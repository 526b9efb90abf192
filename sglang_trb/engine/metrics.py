"""Prometheus metrics of the blend, under SGLang's own ``/metrics``.

The counters are made on first use: SGLang sets the directory that its processes share before that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from sglang.srt.runtime_context import get_observability, get_parallel

from sglang_trb.wire.params import Rule
from sglang_trb.wire.record import TokenRecord
from sglang_trb.wire.trace import record_of

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge

_WINDOW_WEIGHT = 0.01
"""Weight of one token in the exponentially moving means: they speak of about the last hundred tokens."""


@cache
def _counter(name: str, description: str, *labels: str) -> Counter:
    from prometheus_client import Counter

    return Counter(f"sglang:trb_{name}", description, labels)


@cache
def _gauge(name: str, description: str) -> Gauge:
    from prometheus_client import Gauge

    return Gauge(f"sglang:trb_{name}", description, multiprocess_mode="mostrecent")


def observe_tokens(rules: Sequence[Rule], table_BC: np.ndarray) -> None:
    """Count the tokens of one step.

    Args:
        rules: the rule that drew each token.
        table_BC: their statistics rows (`sglang_trb.wire.record.TokenRecord` first).
    """
    if not rules or not get_observability().enable_metrics or get_parallel().tp_rank != 0:
        return
    for rule in set(rules):
        _counter("tokens", "Generated tokens by rollout rule.", "rule").labels(rule.value).inc(rules.count(rule))
    blended = np.array([rule is Rule.TRUST_REGION for rule in rules])
    if not blended.any():
        return
    record = record_of(table_BC[blended])
    for name, of in _MEANS.items():
        values = of(record)
        _counter(f"{name}_sum", f"Sum over blended tokens of {_MEANING[name]}.").inc(float(values.sum()))
        _moving_mean(name).update(float(values.mean()), len(values))


_MEANS: dict[str, Callable[[TokenRecord[np.ndarray]], np.ndarray]] = {
    "beta": lambda record: record.beta.astype(np.float64),
    "kl": lambda record: record.kl.astype(np.float64).clip(min=0.0),  # a counter refuses rounding
    "saturated": lambda record: record.beta == 1.0,
}
_MEANING = {
    "beta": "the interpolation coefficient beta",
    "kl": "KL(mu || student) in nats",
    "saturated": "beta = 1 (the teacher itself was feasible)",
}


class _MovingMean:
    """An exponentially moving mean over tokens, shown as a gauge."""

    def __init__(self, name: str) -> None:
        self._gauge = _gauge(f"mean_{name}", f"Moving mean over recent blended tokens of {_MEANING[name]}.")
        self._value: float | None = None

    def update(self, mean: float, count: int) -> None:
        weight = 1.0 if self._value is None else 1.0 - (1.0 - _WINDOW_WEIGHT) ** count
        self._value = mean if self._value is None else self._value + weight * (mean - self._value)
        self._gauge.set(self._value)


@cache
def _moving_mean(name: str) -> Any:
    return _MovingMean(name)


def observe_rejected(reason: str) -> None:
    """Count a request that was refused or failed: ``invalid`` parameters, a ``row`` error, or ``updating`` weights."""
    if get_observability().enable_metrics:
        _counter("rejected_requests", "Requests refused or failed by sglang-trb.", "reason").labels(reason).inc()
