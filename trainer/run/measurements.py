"""What a step's rollouts were like, as it is recorded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.grading.grader import Grade, Verdict
from trainer.records import Row, fields
from trainer.rollouts.rollout import Rollout
from trainer.rollouts.teacher_check import teacher_row
from trainer.rollouts.versions import updates_of
from trainer.statistics import auroc


def of_rollouts(
    rollouts: Sequence[Rollout], grades: Sequence[Grade | None], drawn: Sequence[Rollout], seconds: float
) -> Row:
    """The row of a step's rollouts.

    Args:
        rollouts: all of the step; none, if all were refused.
        grades: one for each; None where its problem has no gold answer.
        drawn: those that this process drew; the others were in the journal.
        seconds: that drawing them took.
    """
    row = rewards(grades)
    if rollouts:
        row |= _statistics(rollouts) | teacher_row(rollouts) | _separation(rollouts, grades)
    if drawn:
        row[fields.TOKENS_PER_S] = sum(len(rollout) for rollout in drawn) / seconds
    return row


def staleness(step: int, rollouts: Sequence[Rollout]) -> Row:
    """How many updates the rollouts of step k are behind, by the weight version that each carries."""
    behind = [step - updates_of(rollout.weight_version) for rollout in rollouts]
    return {fields.STALENESS: float(np.mean(behind))} if behind else {}


def rewards(grades: Sequence[Grade | None]) -> Row:
    """The share of right answers, of those that could be graded, and how many could not."""
    known = [grade for grade in grades if grade is not None]
    verdicts = [grade.verdict for grade in known if grade.verdict is not Verdict.FAULT]
    if not known:
        return {}
    row: Row = {fields.GRADER_FAULTS: float(len(known) - len(verdicts))}
    if verdicts:
        row[fields.REWARD] = float(np.mean([verdict is Verdict.RIGHT for verdict in verdicts]))
    return row


def _statistics(rollouts: Sequence[Rollout]) -> Row:
    tokens = [rollout.tokens for rollout in rollouts if rollout.tokens is not None]
    beta, kl = (
        np.concatenate(parts).astype(np.float64) for parts in ([t.beta for t in tokens], [t.kl for t in tokens])
    )
    log_ratio = sum(float((t.behavior_logprob - t.student_logprob).sum(dtype=np.float64)) for t in tokens)
    lengths = np.array([len(rollout) for rollout in rollouts])
    return {
        fields.MEAN_BETA: float(beta.mean()),
        fields.MEAN_KL: float(kl.mean()),
        fields.SUM_KL: float(kl.sum() / len(rollouts)),
        fields.LOG_RATIO_KL: log_ratio / len(rollouts),
        fields.RESPONSE_LENGTH: float(lengths.mean()),
        fields.FINISHED_SHARE: float(np.mean([rollout.finish == "stop" for rollout in rollouts])),
    }


def _separation(rollouts: Sequence[Rollout], grades: Sequence[Grade | None]) -> Row:
    """How well mean(log q - log p) tells right answers from wrong ones; nothing where all are of one kind."""
    scores: dict[bool, list[float]] = {True: [], False: []}
    for rollout, grade in zip(rollouts, grades, strict=True):
        if rollout.tokens is not None and grade is not None and grade.verdict is not Verdict.FAULT:
            log_ratio = rollout.tokens.teacher_logprob.astype(np.float64) - rollout.tokens.student_logprob
            scores[grade.verdict is Verdict.RIGHT].append(float(log_ratio.mean()))
    return {fields.SEPARATION: auroc(scores[True], scores[False])} if scores[True] and scores[False] else {}
