"""What a step's rollouts say about the teacher that drew along: measured at every step, and a reason to stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sglang_trb.pair.teacher_health import TeacherHealth, look_at
from sglang_trb.wire.record import TokenStatistics
from trainer.errors import TrainerError
from trainer.records import Row, fields
from trainer.rollouts.rollout import Rollout


class BrokenTeacher(TrainerError, RuntimeError):
    """The teacher answers, but not like a trained model; the message has the condition's name."""


def check_teacher(rollouts: Sequence[Rollout], vocab_size: int, allowed: bool, note: Callable[[str], None]) -> None:
    """Say what is suspicious about the teacher's distributions, and stop where it is beyond doubt.

    Args:
        rollouts: of a step, at least one.
        vocab_size: ids that can be drawn.
        allowed: only say it.
        note: called with a line for people.

    Raises:
        BrokenTeacher: see `sglang_trb.pair.teacher_health`.
    """
    health = look_at(_all_positions(rollouts, lambda tokens: tokens.teacher_entropy), vocab_size)
    if health.broken and not allowed:
        raise BrokenTeacher(f"{health.explained()}; allowed: with server.allow_broken_teacher=true only")
    if health.condition is not None:
        note(health.explained())


def check_server(url: str, info: Mapping[str, Any], allowed: bool) -> None:
    """The same by what a server found when it started; None where it could not look.

    Raises:
        BrokenTeacher: names the server.
    """
    found = info["teacher_health"]
    health = None if found is None else TeacherHealth(**found)
    if health is not None and health.broken and not allowed:
        raise BrokenTeacher(f"{url}: {health.explained()}; allowed: with server.allow_broken_teacher=true only")


def teacher_row(rollouts: Sequence[Rollout]) -> Row:
    """The teacher's numbers of a step's row; its mean entropy is among the loss's."""
    return {
        fields.TEACHER_ENTROPY_SPREAD: float(_all_positions(rollouts, lambda tokens: tokens.teacher_entropy).std()),
        fields.TEACHER_LOGPROB: float(_all_positions(rollouts, lambda tokens: tokens.teacher_logprob).mean()),
    }


def _all_positions(rollouts: Sequence[Rollout], of: Callable[[TokenStatistics[np.ndarray]], np.ndarray]) -> np.ndarray:
    return np.concatenate([of(r.tokens) for r in rollouts if r.tokens is not None]).astype(np.float64)
