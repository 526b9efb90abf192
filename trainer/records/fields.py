"""Every value that a run records: its name, unit and meaning. Whoever records another declares it here.

A row says what update number ``step`` did: ``step`` counts completed updates, so the first update is step 1 and was
made from the rollouts of k = 0 (docs/methods.md#schedules). Row 0, if there is one, holds the evaluation of the
untrained student. A value that a step did not measure is left out of its row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

FIELDS: dict[str, tuple[str, str]] = {
    "train/loss": ("nats", "what the update minimised, as `loss` and its `aggregation` say"),
    "train/grad_norm": ("", "before clipping"),
    "train/lr": ("", "learning rate of the update"),
    "train/skipped_updates": ("updates", "without a finite gradient, of the run so far"),
    "rollout/epsilon": ("nats", "the budget ε_k per token"),
    "rollout/temperature": ("", "of the rollouts"),
    "rollout/mean_beta": ("0-1", "the teacher's exponent, mean over tokens"),
    "rollout/mean_kl": ("nats", "KL(μ‖student), mean over tokens"),
    "rollout/sum_kl": ("nats", "KL(μ‖student) summed over a rollout, mean over rollouts"),
    "rollout/reverse_kl": ("nats", "KL(student‖teacher) over the support, mean over tokens"),
    "rollout/student_entropy": ("nats", "mean over tokens"),
    "rollout/teacher_entropy": ("nats", "mean over tokens"),
    "rollout/teacher_entropy_spread": ("nats", "standard deviation over tokens; near 0 the teacher is broken"),
    "rollout/teacher_logprob": ("nats", "the teacher's log-probability of the drawn tokens, mean"),
    "rollout/support_mass_student": ("0-1", "probability on the student's top 16, mean over tokens"),
    "rollout/support_mass_teacher": ("0-1", "the teacher's probability there"),
    "rollout/floored": ("0-1", "log-probabilities that count as the loss's floor, a token"),
    "rollout/response_length": ("tokens", "mean over rollouts"),
    "rollout/finished_share": ("0-1", "rollouts that ended with a stop token"),
    "rollout/reward": ("0-1", "share of verified answers, of those that could be graded"),
    "rollout/grader_faults": ("rollouts", "that the grader failed on; they count in no reward"),
    "rollout/refused": ("rollouts", "that could not be had; the step was trained without them"),
    "rollout/prompts_left_out": ("prompts", "of the data that are not used: empty or too long"),
    "rollout/tokens_per_s": ("1/s", "generated, by the wall clock"),
    "drift/mean_abs": ("nats", "|trainer - server| student log-probability of drawn tokens, mean"),
    "drift/max_abs": ("nats", "the largest"),
    "time/<phase>_s": ("s", "rollout, train, push, eval; by the wall clock"),
    "eval/<benchmark>/pass_at_1": ("0-1", "of the student after the update; NaN where no answer could be graded"),
    "eval/<benchmark>/pass_at_1_low": ("0-1", "lower end of its interval"),
    "eval/<benchmark>/pass_at_1_high": ("0-1", "upper end of its interval"),
    "eval/<benchmark>/faults": ("responses", "that could not be had or graded"),
}
"""Name: unit ("" for none) and meaning. A part in <> stands for any name."""

_DECLARED = re.compile("|".join(re.sub("<[^>]*>", r"[^/]+", re.escape(name)) for name in FIELDS))


def undeclared(names: Iterable[str]) -> list[str]:
    """Names of values that no field stands for; ``step`` needs none."""
    return [name for name in names if name != "step" and not _DECLARED.fullmatch(name)]
