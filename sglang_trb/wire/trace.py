"""What one response says about how its tokens were drawn: a float32 row per token, written in the wire form.

Loads without torch and without sglang.

A row holds ``ROW_FIELDS``; behind them, where the request asked for them, the student's support and the teacher's: 16
token ids (int32, bit for bit in float32 cells), 16 student and 16 teacher log-probabilities.

Legend: _T generated tokens, _C columns of a row, _K the 16 ids of a support.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from sglang_trb.wire.packing import pack
from sglang_trb.wire.params import BlendParams, Return

SUPPORT_SIZE = 16
"""K of METHODS section 3: the student's top-16 ids at rollout time."""

TOKEN_FIELDS = (
    "behavior_logprob",
    "student_logprob",
    "teacher_logprob",
    "beta",
    "kl",
    "student_entropy",
    "teacher_entropy",
)
"""Per-token arrays of ``trb_return: tokens`` (nats; beta in [0, 1])."""

MASS_FIELDS = ("student_masked_mass", "teacher_masked_mass")
"""Probability that stop-id alignment masks away before renormalising (App. D)."""

ROW_FIELDS = TOKEN_FIELDS + MASS_FIELDS
SUPPORT_FIELDS = ("ids", "student_logprob", "teacher_logprob")
SUPPORT_COLUMNS = len(SUPPORT_FIELDS) * SUPPORT_SIZE


def columns_for(returned: Return) -> int:
    """How many columns of a row a request with this ``trb_return`` keeps."""
    supports = returned.includes(Return.SUPPORT) + returned.includes(Return.SUPPORT_BOTH)
    return len(ROW_FIELDS) + supports * SUPPORT_COLUMNS


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
        """The JSON-ready ``trb`` object of the response (CONTRACT, "Wire: response")."""
        columns = {name: self.table_TC[:, i] for i, name in enumerate(ROW_FIELDS)}
        wire = self._summary(columns)
        if self.params.returned.includes(Return.TOKENS):
            wire |= {name: pack(columns[name]) for name in TOKEN_FIELDS}
        if self.params.returned.includes(Return.SUPPORT):
            wire["support"] = self._support(len(ROW_FIELDS))
        if self.params.returned.includes(Return.SUPPORT_BOTH):
            wire["teacher_support"] = self._support(len(ROW_FIELDS) + SUPPORT_COLUMNS)
        return wire

    def _support(self, start: int) -> dict[str, Any]:
        ids, *logprobs = (
            np.ascontiguousarray(self.table_TC[:, first : first + SUPPORT_SIZE])
            for first in range(start, start + SUPPORT_COLUMNS, SUPPORT_SIZE)
        )
        arrays = (ids.view(np.int32), *logprobs)
        return {name: pack(array) for name, array in zip(SUPPORT_FIELDS, arrays, strict=True)}

    def _summary(self, columns: dict[str, np.ndarray]) -> dict[str, Any]:
        return {
            "rule": self.params.rule.value,
            "epsilon": self.params.epsilon,
            "completion_tokens": len(self.table_TC),
            "mean_beta": _mean(columns["beta"]),
            "mean_kl": _mean(columns["kl"]),
            "sum_kl": _finite(columns["kl"].sum(dtype=np.float64)),
            "saturated_fraction": _mean(columns["beta"] == 1.0),
            "mean_student_logprob": _mean(columns["student_logprob"]),
            "mean_teacher_logprob": _mean(columns["teacher_logprob"]),
            "mean_teacher_entropy": _mean(columns["teacher_entropy"]),
            "student_weight_version": self.student_weight_version,
            **{f"max_{name}": _finite(columns[name].max(initial=0.0)) for name in MASS_FIELDS},
        }


def _mean(values_T: np.ndarray) -> float | None:
    return _finite(np.mean(values_T, dtype=np.float64)) if len(values_T) else None


def _finite(value: float) -> float | None:
    """JSON has no infinity: a divergent KL (rule ``teacher`` outside the student's support) is reported as null."""
    return float(value) if math.isfinite(value) else None
