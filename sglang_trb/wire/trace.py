"""What one response says about how its tokens were drawn: a float32 row per token, written in the wire form.

Loads without torch and without sglang.

A row holds a `record.TokenRecord`; behind it, where the request asked for them, the student's support and the
teacher's: ids (int32, bit for bit in float32 cells), then the log-probabilities.

Legend: _T generated tokens, _C columns of a row, _K the 16 ids of a support.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sglang_trb.wire.packing import pack, unpack
from sglang_trb.wire.params import BlendParams, Return
from sglang_trb.wire.record import (
    MASSES,
    RECORD_COLUMNS,
    SUPPORT_COLUMNS,
    SUPPORT_SIZE,
    Support,
    TokenRecord,
    TokenStatistics,
)

SUPPORT_LEVELS = {"support": Return.SUPPORT, "teacher_support": Return.SUPPORT_BOTH}
"""The supports of a response, by their names on the wire, in the order of their columns: which level brings them."""


def columns_for(returned: Return) -> int:
    """How many columns of a row a request with this ``trb_return`` keeps."""
    return RECORD_COLUMNS + SUPPORT_COLUMNS * sum(map(returned.includes, SUPPORT_LEVELS.values()))


def record_of(table_TC: np.ndarray) -> TokenRecord[np.ndarray]:
    """The record of each row of a table, its fields float32 [T]."""
    return TokenRecord.of(table_TC[:, :RECORD_COLUMNS].T)


def tokens_of(trb: Mapping[str, Any]) -> TokenStatistics[np.ndarray]:
    """The arrays [T] of a response's ``trb`` object that was asked for with ``trb_return: tokens`` or more.

    Raises:
        KeyError, InvalidParameter: an array is missing or malformed.
    """
    return TokenStatistics.of(unpack(trb[name], f"trb.{name}") for name in TokenStatistics.names())


class Trace:
    """Collects the rows of one request while its tokens are drawn."""

    def __init__(self, params: BlendParams) -> None:
        self.params = params
        self._columns = columns_for(params.returned)
        self._rows: list[np.ndarray] = []

    def append(self, row_C: np.ndarray) -> None:
        """Keep the request's columns of one token's row (float32 [C], C may be wider than needed)."""
        self._rows.append(row_C[: self._columns].copy())

    def finish(self, num_tokens: int, student_weight_version: str | None) -> FinishedTrace:
        """Close the trace over the tokens of the response; a stop string may have cut drawn tokens off its end."""
        if len(self._rows) < num_tokens:
            raise RuntimeError(f"{num_tokens} tokens were returned, statistics exist for {len(self._rows)}")
        table_TC = np.stack(self._rows[:num_tokens]) if num_tokens else np.zeros((0, self._columns), np.float32)
        return FinishedTrace(self.params, table_TC, student_weight_version)


@dataclasses.dataclass(frozen=True, slots=True)
class FinishedTrace:
    """The statistics of a finished response; ``table_TC`` is float32 [T, columns_for(params.returned)]."""

    params: BlendParams
    table_TC: np.ndarray
    student_weight_version: str | None

    def to_wire(self) -> dict[str, Any]:
        """The JSON-ready ``trb`` object of the response (docs/wire.md, "Response")."""
        record = record_of(self.table_TC)
        wire = self._summary(record)
        if self.params.returned.includes(Return.TOKENS):
            named = record.named()
            wire |= {name: pack(named[name]) for name in TokenStatistics.names()}
        start = RECORD_COLUMNS
        for name, level in SUPPORT_LEVELS.items():
            if self.params.returned.includes(level):
                wire[name] = self._support(start).map(pack).named()
                start += SUPPORT_COLUMNS
        return wire

    def _support(self, start: int) -> Support[np.ndarray]:
        ids_TK, *logprobs = (
            np.ascontiguousarray(self.table_TC[:, first : first + SUPPORT_SIZE])
            for first in range(start, start + SUPPORT_COLUMNS, SUPPORT_SIZE)
        )
        return Support.of([ids_TK.view(np.int32), *logprobs])

    def _summary(self, record: TokenRecord[np.ndarray]) -> dict[str, Any]:
        return {
            "rule": self.params.rule.value,
            "epsilon": self.params.epsilon,
            "completion_tokens": len(self.table_TC),
            "mean_beta": _mean(record.beta),
            "mean_kl": _mean(record.kl),
            "sum_kl": _finite(record.kl.sum(dtype=np.float64)),
            "saturated_fraction": _mean(record.beta == 1.0),
            "mean_student_logprob": _mean(record.student_logprob),
            "mean_teacher_logprob": _mean(record.teacher_logprob),
            "mean_teacher_entropy": _mean(record.teacher_entropy),
            "student_weight_version": self.student_weight_version,
            **{f"max_{name}": _finite(record.named()[name].max(initial=0.0)) for name in MASSES},
        }


def _mean(values_T: np.ndarray) -> float | None:
    return _finite(np.mean(values_T, dtype=np.float64)) if len(values_T) else None


def _finite(value: float) -> float | None:
    """JSON has no infinity: a divergent KL (rule ``teacher`` outside the student's support) is reported as null."""
    return float(value) if math.isfinite(value) else None
