"""App. F on a study's own rollouts: what a small budget buys at the prefixes that were visited.

With p the student, q the teacher, r = log q - log p and s2 its variance under p, the appendix says of the blend mu:

- KL(mu || p) is the budget eps wherever beta < 1 (the active constraint). Recorded for every token; checked on all.
- beta = sqrt(2 eps / s2) + O(eps) (Eq. 22).
- KL(p || q) - KL(mu || q) = sqrt(2 eps s2) + O(eps) (Eq. 23): the first-order gain, for a second-order cost.

The last two need both laws. A rollout has them on the student's 16 most likely ids; all other ids are one more event
here. That is nearly the whole law where those 16 hold `LEAST_MASS` of p, and the recorded KL(mu || p) comes out of it
again; only such tokens are used, and how many are not is said.

Both laws are of a small beta, and the error is of its order. So a ratio of measured to predicted is shown by budget,
and its limit is estimated: the intercept of the ratio against beta, over the tokens with beta up to `SMALL_BETA`.

Intervals are 95%, over rollouts: the tokens of one are not independent.

Legend: _T tokens of a rollout, _K the 16 ids of a support and the event of all others.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from sglang_trb.wire.params import Rule
from sglang_trb.wire.record import Support, TokenStatistics
from trainer.rollouts.journal import read_step, rollout_keys, steps_kept
from trainer.rollouts.rollout import Rollout
from trainer.run.rollout_source import journal_path
from trainer.statistics import CONFIDENCE
from trainer.study.results import RunResult, StudyResult
from trainer.study.student_t import quantile

STEPS, ROLLOUTS = 8, 16
"""At most so many steps of a run, and first rollouts to different prompts of a step, are read."""

LEAST_MASS, NEAR = 0.999, 0.01
"""The student's probability on its 16 ids, and how near KL(mu || p) on them must be to the recorded one, in budgets."""

ROUNDING = 1e-6
"""What the 16 lack to 1 through their float32 alone."""

SMALL_BETA = 0.2
CONSTRAINT = 1e-3
"""|KL / eps - 1| that the solver's margin and float32 leave."""

LIMIT = 0.05
"""How far from 1 a limit may be to count as 1: what is of second order up to `SMALL_BETA` is in it."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval over rollouts; NaN where there is nothing, or one rollout."""

    mean: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Prefixes:
    """The tokens of one rollout under a budget; arrays have one value for each that is used.

    Attributes:
        epsilon: nats a token.
        tokens, at_one, active: all; with beta = 1; with 0 < beta < 1.
        constraint: the largest abs(KL / epsilon - 1) of the active ones; 0 without any.
        beta, variance: recorded, and s2 in nats squared.
        gain: KL(p || q) - KL(mu || q), nats.
    """

    epsilon: float
    tokens: int
    at_one: int
    active: int
    constraint: float
    beta: np.ndarray
    variance: np.ndarray
    gain: np.ndarray

    @property
    def first_order_beta(self) -> np.ndarray:
        """Eq. 22."""
        return np.sqrt(2 * self.epsilon / self.variance)

    @property
    def first_order_gain(self) -> np.ndarray:
        """Eq. 23, nats."""
        return np.sqrt(2 * self.epsilon * self.variance)


@dataclasses.dataclass(frozen=True)
class Band:
    """The rollouts under budgets near each other.

    Attributes:
        epsilon: mean over tokens, nats.
        tokens, used: all, and those that the last four are of.
        at_one: share of all with beta = 1.
        constraint: the largest abs(KL / epsilon - 1) where 0 < beta < 1.
        beta_ratio: of beta to Eq. 22, mean over tokens.
        gain, predicted: nats a token, and by Eq. 23.
        gain_ratio: of the two, mean over tokens.
    """

    epsilon: float
    tokens: int
    used: int
    at_one: float
    constraint: float
    beta_ratio: Estimate
    gain: Estimate
    predicted: Estimate
    gain_ratio: Estimate


@dataclasses.dataclass(frozen=True)
class Theory:
    """App. F as measured.

    Attributes:
        bands: by budget.
        beta_limit, gain_limit: the two ratios towards beta = 0; 1 by Eq. 22 and 23.
        constraint: the largest abs(KL / epsilon - 1) of all.
        left_out: share of the tokens with 0 < beta < 1 that are not used.
    """

    bands: Sequence[Band]
    beta_limit: Estimate
    gain_limit: Estimate
    constraint: float
    left_out: float

    def verdicts(self) -> Iterator[tuple[str, bool | None, str]]:
        """(what the appendix says, whether it holds, the figure); None where there is too little to say."""
        yield "KL(μ‖p) = ε while β < 1", self.constraint <= CONSTRAINT, f"|KL / ε − 1| at most {self.constraint:.2g}"
        for name, limit in (("β → √(2ε/σ²)", self.beta_limit), ("gain → √(2εσ²)", self.gain_limit)):
            there = math.isfinite(limit.low)
            holds = limit.low <= 1 + LIMIT and limit.high >= 1 - LIMIT if there else None
            text = f"ratio towards β = 0: {limit.mean:.3f} [{limit.low:.3f}, {limit.high:.3f}]"
            yield name, holds, text if there else f"too few tokens that can be used have a β up to {SMALL_BETA:g}"


def theory(study: StudyResult) -> Theory | None:
    """App. F on the rollouts that are on the disk; None where no token has 0 < beta < 1.

    Raises:
        JournalBroken: a journal is damaged.
        SettingsBroken: a run's settings are.
    """
    runs = {run.name: run for member in study.members for run in member.runs}
    return summarise([found for run in runs.values() for found in _of_run(run)])


def summarise(found: Sequence[Prefixes]) -> Theory | None:
    """Put the rollouts together; None where no token has 0 < beta < 1."""
    active = sum(f.active for f in found)
    if not active:
        return None
    bands: dict[float, list[Prefixes]] = {}
    for one in sorted(found, key=lambda f: f.epsilon):
        bands.setdefault(_band(one.epsilon), []).append(one)
    return Theory(
        bands=[_summary(band) for band in bands.values()],
        beta_limit=_limit(found, [f.beta / f.first_order_beta for f in found]),
        gain_limit=_limit(found, [f.gain / f.first_order_gain for f in found]),
        constraint=max(f.constraint for f in found),
        left_out=1 - sum(len(f.beta) for f in found) / active,
    )


def prefixes(rollout: Rollout, epsilon: float) -> Prefixes | None:
    """The tokens of a rollout that was drawn under ``epsilon`` nats a token; None without its statistics."""
    tokens, support = rollout.tokens, rollout.support
    if tokens is None or support is None:
        return None
    beta_T, kl_T = tokens.beta.astype(np.float64), tokens.kl.astype(np.float64)
    active_T = (beta_T > 0) & (beta_T < 1)
    apart_T = np.abs(kl_T[active_T] / epsilon - 1)
    return Prefixes(
        epsilon=epsilon,
        tokens=len(beta_T),
        at_one=int((beta_T == 1).sum()),
        active=int(active_T.sum()),
        constraint=float(apart_T.max(initial=0.0)),
        **_first_order(tokens, support, active_T, epsilon),
    )


def _first_order(
    tokens: TokenStatistics[np.ndarray], support: Support[np.ndarray], active_T: np.ndarray, epsilon: float
) -> Mapping[str, np.ndarray]:
    """Of the active tokens whose laws the support tells."""
    p_TK, q_TK = (_with_others(log_TK[active_T]) for log_TK in (support.student_logprob, support.teacher_logprob))
    beta_T, kl_T = (column[active_T].astype(np.float64) for column in (tokens.beta, tokens.kl))
    with np.errstate(divide="ignore", invalid="ignore"):
        log_p_TK, log_q_TK = np.log(p_TK), np.log(q_TK)
        r_TK = np.where(p_TK > 0, log_q_TK - log_p_TK, 0.0)
        tilted_TK = p_TK * np.exp(beta_T[:, None] * (r_TK - r_TK.max(axis=1, keepdims=True)))  # Eq. 15
        mu_TK = tilted_TK / tilted_TK.sum(axis=1, keepdims=True)
        change_TK = np.where(mu_TK > 0, np.log(mu_TK) - log_p_TK, 0.0)
        mean_T = (p_TK * r_TK).sum(axis=1)
        variance_T = (p_TK * (r_TK - mean_T[:, None]) ** 2).sum(axis=1)
        cost_T = (mu_TK * change_TK).sum(axis=1)  # KL(mu || p)
        gain_T = (mu_TK * r_TK).sum(axis=1) - mean_T - cost_T  # Eq. 19, 20
    told_T = (p_TK[:, :-1].sum(axis=1) >= LEAST_MASS) & np.isfinite(r_TK).all(axis=1) & (variance_T > 0)
    used_T = told_T & (np.abs(cost_T - kl_T) <= NEAR * epsilon)
    return {"beta": beta_T[used_T], "variance": variance_T[used_T], "gain": gain_T[used_T]}


def _with_others(log_TK: np.ndarray) -> np.ndarray:
    """Probabilities of the ids of a support, and of all others together."""
    p_TK = np.exp(log_TK.astype(np.float64))
    others_T = np.clip(1 - p_TK.sum(axis=1), 0, 1)
    others_T[others_T < ROUNDING] = 0
    return np.concatenate([p_TK, others_T[:, None]], axis=1)


def _of_run(run: RunResult) -> Iterator[Prefixes]:
    """At most `ROLLOUTS` of at most `STEPS` steps that had a budget."""
    steps = steps_kept(journal_path(run.folder, 0).parent)
    blends = {step: run.config().sampling(step)[0] for step in steps}
    budgets = {step: blend.epsilon for step, blend in blends.items() if blend.rule is Rule.TRUST_REGION}
    for step in _spread(list(budgets)):
        path = journal_path(run.folder, step)
        first = set([key for key in rollout_keys(path) if key.sample == 0][:ROLLOUTS])
        for rollout in read_step(path, first.__contains__):
            if found := prefixes(rollout, budgets[step]):
                yield found


def _spread(steps: list[int]) -> list[int]:
    """At most `STEPS` of them, the first and the last included."""
    if len(steps) <= STEPS:
        return steps
    return [steps[round(i * (len(steps) - 1) / (STEPS - 1))] for i in range(STEPS)]


def _band(epsilon: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is not above it."""
    power = 10.0 ** math.floor(math.log10(epsilon) + 1e-9)
    return power * max(step for step in (1, 2, 5) if step <= epsilon / power * (1 + 1e-9))


def _summary(band: Sequence[Prefixes]) -> Band:
    tokens = sum(f.tokens for f in band)
    return Band(
        epsilon=sum(f.epsilon * f.tokens for f in band) / tokens,
        tokens=tokens,
        used=sum(len(f.beta) for f in band),
        at_one=sum(f.at_one for f in band) / tokens,
        constraint=max(f.constraint for f in band),
        beta_ratio=_mean([f.beta / f.first_order_beta for f in band]),
        gain=_mean([f.gain for f in band]),
        predicted=_mean([f.first_order_gain for f in band]),
        gain_ratio=_mean([f.gain / f.first_order_gain for f in band]),
    )


def _mean(values: Sequence[np.ndarray]) -> Estimate:
    """Over tokens: the intercept without a slope."""
    return _intercept([np.ones((len(v), 1)) for v in values], values)


def _limit(found: Sequence[Prefixes], ratios: Sequence[np.ndarray]) -> Estimate:
    """Of a ratio towards beta = 0: the intercept of a line through the tokens with a small beta."""
    small = [f.beta <= SMALL_BETA for f in found]
    lines = [np.column_stack([np.ones(s.sum()), f.beta[s]]) for f, s in zip(found, small, strict=True)]
    return _intercept(lines, [r[s] for r, s in zip(ratios, small, strict=True)])


def _intercept(lines: Sequence[np.ndarray], values: Sequence[np.ndarray]) -> Estimate:
    """Least squares, with the error that tokens of one rollout make together (the sandwich, a cluster a rollout)."""
    pairs = [(x, y) for x, y in zip(lines, values, strict=True) if len(y)]
    nothing = Estimate(math.nan, math.nan, math.nan)
    if not pairs:
        return nothing
    square = sum(x.T @ x for x, _ in pairs)
    if np.linalg.matrix_rank(square) < len(square):
        return nothing
    bread = np.linalg.inv(square)
    fitted = bread @ sum(x.T @ y for x, y in pairs)
    mean, rollouts = float(fitted[0]), len(pairs)
    if rollouts < 2:
        return Estimate(mean, math.nan, math.nan)
    pulls = np.stack([x.T @ (y - x @ fitted) for x, y in pairs])
    variance = (bread @ (pulls.T @ pulls) @ bread)[0, 0] * rollouts / (rollouts - 1)
    half = quantile(CONFIDENCE, rollouts - 1) * math.sqrt(max(variance, 0.0))
    return Estimate(mean, mean - half, mean + half)
