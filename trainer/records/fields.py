"""Every value that a run records: its name, unit and meaning, once. Whoever records another declares it here.

A row says what update number ``step`` did: ``step`` counts completed updates, so the first update is step 1 and was
made from the rollouts of k = 0 (docs/methods.md#schedules). Row 0, if there is one, holds the evaluation of the
untrained student. A value that a step did not measure is left out of its row.

A declaration is the name itself, so it stands wherever the name would: in a row, a chart, a line on the screen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Self


class Metric(str):
    """A recorded value's name, with what is to be known of it.

    Attributes:
        unit: "" for none.
        meaning: in a few words.
        label: what the screen calls it; "" for values that are not shown there.
        log: the same in a log's line, in ASCII: its encoding may be anything.
        shown: format of its value there.
    """

    unit: str
    meaning: str
    label: str
    log: str
    shown: str

    def __new__(cls, name: str, unit: str, meaning: str, label: str = "", log: str = "", shown: str = "") -> Self:
        metric = str.__new__(cls, name)
        metric.unit, metric.meaning = unit, meaning
        metric.label, metric.log, metric.shown = label, log or label, shown
        return metric


class Family(Metric):
    """Metrics that differ in the part in <>."""

    def of(self, member: str) -> str:
        """The name of one of them."""
        return re.sub("<[^>]*>", lambda _: member, self)

    def member(self, name: str) -> str | None:
        """Which one a name is of, None if it is of none."""
        before, _, after = re.split("(<[^>]*>)", self)
        found = re.fullmatch(f"{re.escape(before)}(.+){re.escape(after)}", name)
        return found[1] if found else None


LOSS = Metric("train/loss", "nats", "what the update minimised, as `loss` and its `aggregation` say")
GRAD_NORM = Metric("train/grad_norm", "", "before clipping")
LEARNING_RATE = Metric("train/lr", "", "learning rate of the update")
SKIPPED_UPDATES = Metric("train/skipped_updates", "updates", "without a finite gradient, of the run so far")
PADDING = Metric("train/padding", "0-1", "share of the forwards' tokens that belong to no sequence")
EPSILON = Metric("rollout/epsilon", "nats", "the budget ε_k per token", "ε, nats", "eps", ".4f")
TEMPERATURE = Metric("rollout/temperature", "", "of the rollouts")
MEAN_BETA = Metric("rollout/mean_beta", "0-1", "the teacher's exponent, mean over tokens", "mean β", "beta", ".3f")
MEAN_KL = Metric("rollout/mean_kl", "nats", "KL(μ‖student), mean over tokens")
SUM_KL = Metric("rollout/sum_kl", "nats", "KL(μ‖student) summed over a rollout, mean over rollouts")
LOG_RATIO_KL = Metric(
    "rollout/log_ratio_kl", "nats", "sum of log μ - log p of the drawn tokens, mean over rollouts; estimates sum_kl too"
)
REWARD = Metric(
    "rollout/reward", "0-1", "share of verified answers, of those that could be graded", "reward", "reward", ".3f"
)
REVERSE_KL = Metric(
    "rollout/reverse_kl", "nats", "KL(student‖teacher) over the support, mean over tokens",
    "reverse KL", "reverse_kl", ".4f",
)  # fmt: skip
STUDENT_ENTROPY = Metric("rollout/student_entropy", "nats", "mean over tokens")
TEACHER_ENTROPY = Metric("rollout/teacher_entropy", "nats", "mean over tokens")
TEACHER_ENTROPY_SPREAD = Metric(
    "rollout/teacher_entropy_spread", "nats", "standard deviation over tokens; near 0 the teacher is broken"
)
TEACHER_LOGPROB = Metric("rollout/teacher_logprob", "nats", "the teacher's log-probability of the drawn tokens, mean")
SEPARATION = Metric(
    "rollout/teacher_support_auroc", "0-1",
    "AUROC of a rollout's mean log q - log p for telling right answers from wrong ones (Fig. 7)",
)  # fmt: skip
SUPPORT_MASS_STUDENT = Metric(
    "rollout/support_mass_student", "0-1", "probability on the student's top 16, mean over tokens"
)
SUPPORT_MASS_TEACHER = Metric("rollout/support_mass_teacher", "0-1", "the teacher's probability there")
FLOORED = Metric("rollout/floored", "0-1", "log-probabilities that count as the loss's floor, a token")
RESPONSE_LENGTH = Metric("rollout/response_length", "tokens", "mean over rollouts", "length", "length", ".0f")
FINISHED_SHARE = Metric("rollout/finished_share", "0-1", "rollouts that ended with a stop token")
GRADER_FAULTS = Metric("rollout/grader_faults", "rollouts", "that the grader failed on; they count in no reward")
REFUSED = Metric("rollout/refused", "rollouts", "that could not be had; the step was trained without them")
PROMPTS_LEFT_OUT = Metric("rollout/prompts_left_out", "prompts", "of the data that are not used: empty or too long")
STALENESS = Metric("rollout/staleness", "updates", "between the student that drew and the one that trains, mean")
ROLLOUT_SECONDS = Metric("rollout/seconds", "s", "that drawing took; beside the training where it was drawn ahead")
TOKENS_PER_S = Metric("rollout/tokens_per_s", "1/s", "generated, by the wall clock", "tokens/s", "tokens/s", ".0f")
DRIFT_MEAN = Metric("drift/mean_abs", "nats", "|trainer - server| student log-probability of drawn tokens, mean")
DRIFT_MAX = Metric("drift/max_abs", "nats", "the largest")
TIME = Family("time/<phase>_s", "s", "rollout, train, push, eval, checkpoint; by the wall clock")
PASS_AT_1 = Family(
    "eval/<benchmark>/pass_at_1", "0-1", "of the student after the update; NaN where no answer could be graded"
)
PASS_AT_1_LOW = Family("eval/<benchmark>/pass_at_1_low", "0-1", "lower end of its interval")
PASS_AT_1_HIGH = Family("eval/<benchmark>/pass_at_1_high", "0-1", "upper end of its interval")
FAULTS = Family("eval/<benchmark>/faults", "responses", "that could not be had or graded")
EVALUATION_SECONDS = Metric("eval/seconds", "s", "that an evaluation beside the training took")

METRICS: dict[str, Metric] = {str(metric): metric for metric in list(vars().values()) if isinstance(metric, Metric)}
"""All of them by name, in the order of their declaration."""

_FAMILIES = [metric for metric in METRICS.values() if isinstance(metric, Family)]


def of_loss(name: str) -> Metric:
    """The metric that a mean of `trainer.losses.compute_loss` is recorded as."""
    return METRICS[f"rollout/{name}"]


def undeclared(names: Iterable[str]) -> list[str]:
    """Names of values that no metric stands for; ``step`` needs none."""
    return [
        name
        for name in names
        if name != "step" and name not in METRICS and all("/" in (f.member(name) or "/") for f in _FAMILIES)
    ]
