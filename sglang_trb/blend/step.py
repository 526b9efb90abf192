"""One step of the sampler: from raw logits of both models to a drawn token and its statistics.

The order of processing of a row (METHODS section 1):
  1. raw logits in float64; ids beyond the tokenizer and masked ids are forbidden in both models;
  2. the student's penalties and biases (``adjusted_student_logits_BV``), then both divided by the temperature;
  3. log-softmax, stop-id alignment;
  4. the filter, on the student's law (rule ``teacher``: on the teacher's), renormalised;
  5. the rule's law, then one draw (greedy rows: its argmax).
The statistics are those of the rows of step 1 at temperature 1, aligned, without masks.

The rows go through in groups (`row_groups`).

Legend: _B rows, _V vocabulary, _K the 16 ids of a support.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from sglang_trb.blend.align import aligned
from sglang_trb.blend.distribution import Distribution, needed, row_groups
from sglang_trb.blend.draw import MAIN, TEACHER_REPLACEMENT, draw, uniform
from sglang_trb.blend.filters import filtered, in_top_k
from sglang_trb.blend.solver import solve
from sglang_trb.blend.types import (
    EMPTY_SUPPORT,
    OK,
    RULE_CODES,
    STUDENT_NOT_FINITE,
    SUPPORT_SIZE,
    TEACHER_NOT_FINITE,
    TOP_K_OFF,
    RowControls,
    StepOutput,
    Support,
)
from sglang_trb.pair.alignment import StopAlignment
from sglang_trb.wire.params import Rule


def blend_step(
    student_logits_BV: torch.Tensor,
    teacher_logits_BV: torch.Tensor,
    controls: RowControls,
    alignment: StopAlignment,
    *,
    adjusted_student_logits_BV: torch.Tensor | None = None,
    mask_BV: torch.Tensor | None = None,
    valid_vocab_size: int | None = None,
    need_log_mu: bool = False,
) -> StepOutput:
    """Draw one token per row by the row's rule.

    Args:
        student_logits_BV, teacher_logits_BV: raw logits, any float dtype; widths may differ beyond the tokenizer.
        controls: how each row is drawn.
        alignment: the pair's stop ids.
        adjusted_student_logits_BV: the student's logits after penalties and finite biases; None: unchanged.
        mask_BV: bool, True forbids the token in both models; None: nothing is forbidden.
        valid_vocab_size: ids from here on are padding, masked in both; None: the narrower width.
        need_log_mu: return the whole law.

    Returns:
        Tokens and statistics. A row that cannot be drawn is marked in ``error_B``; it changes no other row. No host
        synchronisation and no data-dependent shape.
    """
    size = valid_vocab_size or min(student_logits_BV.shape[1], teacher_logits_BV.shape[1])

    def part(matrix_BV: torch.Tensor | None, rows: slice) -> torch.Tensor | None:
        return None if matrix_BV is None else matrix_BV[rows, :size]

    outputs = [
        _group_step(
            student_logits_BV[rows, :size],
            teacher_logits_BV[rows, :size],
            controls.rows(rows.start, rows.stop),
            alignment,
            part(adjusted_student_logits_BV, rows),
            part(mask_BV, rows),
            student_logits_BV.shape[1] if need_log_mu else None,
        )
        for rows in row_groups(student_logits_BV.shape[0], size, student_logits_BV.device)
    ]
    return outputs[0] if len(outputs) == 1 else _joined(outputs)


def _group_step(
    student_logits_BV: torch.Tensor,
    teacher_logits_BV: torch.Tensor,
    controls: RowControls,
    alignment: StopAlignment,
    adjusted_logits_BV: torch.Tensor | None,
    mask_BV: torch.Tensor | None,
    log_mu_width: int | None,
) -> StepOutput:
    laws = _laws(student_logits_BV, teacher_logits_BV, adjusted_logits_BV, mask_BV, controls, alignment)
    student, teacher = laws.student, laws.teacher
    drawn = _drawn_by_rule(laws.p, laws.q, controls)
    error_B = torch.where(drawn.empty_B, EMPTY_SUPPORT, OK)
    error_B = torch.where(laws.teacher_bad_B, TEACHER_NOT_FINITE, error_B)
    error_B = torch.where(laws.student_bad_B, STUDENT_NOT_FINITE, error_B)
    ids_B = torch.where(error_B == OK, drawn.ids_B, alignment.canonical_id)

    def of_token(distribution: Distribution) -> torch.Tensor:
        return distribution.log_prob(ids_B[:, None]).squeeze(1).float()

    return StepOutput(
        token_ids_B=ids_B,
        behavior_logprob_B=of_token(drawn.mu),
        student_logprob_B=of_token(student),
        teacher_logprob_B=of_token(teacher),
        beta_B=drawn.beta_B.float(),
        kl_B=drawn.kl_B.float(),
        student_entropy_B=student.entropy().float(),
        teacher_entropy_B=teacher.entropy().float(),
        dropped_mass_student_B=laws.student_dropped_B.float(),
        dropped_mass_teacher_B=laws.teacher_dropped_B.float(),
        error_B=error_B.to(torch.int8),
        student_support=_support(student, student, teacher) if controls.need_support else None,
        teacher_support=_support(teacher, student, teacher) if controls.need_teacher_support else None,
        log_mu_BV=None if log_mu_width is None else _padded(drawn.mu.log_probs().float(), log_mu_width),
    )


@dataclasses.dataclass(frozen=True)
class _Laws:
    """Both models' laws, at temperature 1 and without masks (student, teacher) and as they are blended (p, q)."""

    student: Distribution
    teacher: Distribution
    p: Distribution
    q: Distribution
    student_dropped_B: torch.Tensor  # the probability that alignment masked away
    teacher_dropped_B: torch.Tensor
    student_bad_B: torch.Tensor  # rows that cannot be used; their laws are of zeros
    teacher_bad_B: torch.Tensor


def _laws(
    student_logits_BV: torch.Tensor,
    teacher_logits_BV: torch.Tensor,
    adjusted_logits_BV: torch.Tensor | None,
    mask_BV: torch.Tensor | None,
    controls: RowControls,
    alignment: StopAlignment,
) -> _Laws:
    """Steps 1 to 3 of a row."""
    student_BV, teacher_BV = (x.to(torch.float64, copy=True) for x in (student_logits_BV, teacher_logits_BV))
    adjusted_BV = None if adjusted_logits_BV is None else adjusted_logits_BV.to(torch.float64, copy=True)
    student_bad_B, teacher_bad_B = _unusable(student_BV), _unusable(teacher_BV)
    if adjusted_BV is not None:
        largest_B = adjusted_BV.amax(1)  # NaN if there is one; -inf where everything is forbidden, an empty support
        student_bad_B |= largest_B.isnan() | largest_B.isposinf()
    bad_B1 = (student_bad_B | teacher_bad_B)[:, None]
    student_BV.masked_fill_(bad_B1, 0.0)
    teacher_BV.masked_fill_(bad_B1, 0.0)

    student, student_dropped_B = _aligned(student_BV, alignment.student_ids, alignment)
    teacher, teacher_dropped_B = _aligned(teacher_BV, alignment.teacher_ids, alignment)
    p, q = student, teacher
    if adjusted_BV is not None or mask_BV is not None or controls.any_temperature:
        changed_BV = student_BV if adjusted_BV is None else adjusted_BV.masked_fill_(bad_B1, 0.0)
        p, _ = _aligned(_masked(changed_BV, mask_BV), alignment.student_ids, alignment, controls.temperature_B)
        q, _ = _aligned(_masked(teacher_BV, mask_BV), alignment.teacher_ids, alignment, controls.temperature_B)
    return _Laws(student, teacher, p, q, student_dropped_B, teacher_dropped_B, student_bad_B, teacher_bad_B)


@dataclasses.dataclass
class _Law:
    """The law of each row and the token drawn from it; float64."""

    mu: Distribution
    beta_B: torch.Tensor
    kl_B: torch.Tensor
    ids_B: torch.Tensor
    empty_B: torch.Tensor


def _drawn_by_rule(p: Distribution, q: Distribution, controls: RowControls) -> _Law:
    """Steps 4 and 5 of a row."""
    teacher_B, skd_B = (controls.rule_B == RULE_CODES[rule] for rule in (Rule.TEACHER, Rule.SKD))
    any_teacher = controls.any_teacher and needed(teacher_B)
    filtered_q = q
    if controls.any_filter:
        settings = _top_k(controls), controls.top_p_B, controls.min_p_B
        if any_teacher:
            filtered_q = filtered(q, *settings, teacher_B)
        p = filtered(p, *settings, ~teacher_B)

    zeros_B = torch.zeros_like(p.log_total_B)
    law = _Law(p, zeros_B, zeros_B, zeros_B, p.empty())
    epsilon_B = torch.where(controls.rule_B == RULE_CODES[Rule.TRUST_REGION], controls.epsilon_B, 0.0)
    if controls.any_trust_region and needed(epsilon_B > 0):
        blend = solve(p, q, epsilon_B, any_small=controls.any_small_budget)
        law.mu, law.beta_B, law.kl_B = blend.mu, blend.beta_B, blend.kl_B
    if any_teacher:
        _choose(law, teacher_B, filtered_q, torch.ones_like(law.beta_B), p)
        law.empty_B = torch.where(teacher_B, filtered_q.empty(), law.empty_B)
    law.ids_B = _drawn(law.mu, controls)
    if controls.any_skd and needed(skd_B):
        _choose_skd(law, skd_B, p, q, controls)
    return law


def _top_k(controls: RowControls) -> torch.Tensor:
    """SGLang asks for a greedy row with top_k = 1, which says how to draw and filters nothing."""
    return torch.where(controls.greedy_B, TOP_K_OFF, controls.top_k_B)


def _choose(law: _Law, rows_B: torch.Tensor, mu: Distribution, beta_B: torch.Tensor, p: Distribution) -> None:
    """Give the chosen rows another law; its KL is taken against the student's."""
    law.mu = law.mu.where(rows_B, mu)
    law.beta_B = torch.where(rows_B, beta_B, law.beta_B)
    outside_B = (mu.weights_BV.gt(0) & ~p.support()).any(1)
    kl_B = mu.mean(mu.log_weights_BV - p.log_weights_BV) - (mu.log_total_B - p.log_total_B)
    law.kl_B = torch.where(rows_B, torch.where(outside_B, torch.inf, kl_B.clamp(min=0.0)), law.kl_B)


def _choose_skd(law: _Law, skd_B: torch.Tensor, p: Distribution, q: Distribution, controls: RowControls) -> None:
    """Rule ``skd`` (App. A.2): keep the student's draw if the teacher's top-K holds it, else the teacher's draw."""
    kept_BV = in_top_k(q, controls.skd_top_k_B)
    tempered_BV = q.log_weights_BV / controls.skd_temperature_B[:, None]
    replacement = Distribution.from_logits(tempered_BV.masked_fill_(~q.support(), float("-inf")))
    kept_p_BV = torch.where(kept_BV, p.weights_BV, 0.0)
    replaced_B1 = torch.where(kept_BV, 0.0, p.weights_BV).sum(1, keepdim=True)
    marginal = Distribution.from_logits((kept_p_BV + replaced_B1 * replacement.weights_BV).log())

    student_ids_B = _drawn(p, controls)
    keeps_B = kept_BV.gather(1, student_ids_B[:, None]).squeeze(1)
    key = controls.seed_B, controls.position_B
    ids_B = torch.where(keeps_B, student_ids_B, draw(replacement.weights_BV, uniform(*key, TEACHER_REPLACEMENT)))
    likeliest_B = marginal.log_weights_BV.argmax(1)
    ids_B = torch.where(controls.greedy_B, likeliest_B, ids_B)
    keeps_B = torch.where(controls.greedy_B, kept_p_BV.gather(1, likeliest_B[:, None]).squeeze(1) > 0, keeps_B)
    law.ids_B = torch.where(skd_B, ids_B, law.ids_B)
    law.empty_B = torch.where(skd_B, law.empty_B | q.empty(), law.empty_B)
    _choose(law, skd_B, marginal, (~keeps_B).double(), p)


def _drawn(mu: Distribution, controls: RowControls) -> torch.Tensor:
    """A draw of the main stream; greedy rows take the most likely token (ties: the lowest id)."""
    drawn_B = draw(mu.weights_BV, uniform(controls.seed_B, controls.position_B, MAIN))
    return torch.where(controls.greedy_B, mu.log_weights_BV.argmax(1), drawn_B)


def _unusable(logits_BV: torch.Tensor) -> torch.Tensor:
    """Rows with a NaN, a +inf or nothing finite."""
    return ~logits_BV.amax(1).isfinite()  # amax propagates NaN


def _masked(logits_BV: torch.Tensor, mask_BV: torch.Tensor | None) -> torch.Tensor:
    return logits_BV if mask_BV is None else logits_BV.masked_fill(mask_BV, float("-inf"))


def _aligned(
    logits_BV: torch.Tensor,
    own_ids: tuple[int, ...],
    alignment: StopAlignment,
    temperature_B: torch.Tensor | None = None,
) -> tuple[Distribution, torch.Tensor]:
    return aligned(logits_BV, own_ids, alignment.canonical_id, alignment.masked_ids, temperature_B)


def _support(own: Distribution, student: Distribution, teacher: Distribution) -> Support:
    ids_BK = own.log_weights_BV.topk(min(SUPPORT_SIZE, own.log_weights_BV.shape[1]), dim=1).indices
    return ids_BK.int(), student.log_prob(ids_BK).float(), teacher.log_prob(ids_BK).float()


def _padded(log_mu_BV: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(log_mu_BV, (0, width - log_mu_BV.shape[1]), value=float("-inf"))


def _joined(outputs: list[StepOutput]) -> StepOutput:
    joined: dict[str, Any] = {}
    for field in dataclasses.fields(StepOutput):
        parts = [getattr(output, field.name) for output in outputs]
        if isinstance(parts[0], tuple):
            joined[field.name] = tuple(torch.cat(column) for column in zip(*parts, strict=True))
        else:
            joined[field.name] = None if parts[0] is None else torch.cat(parts)
    return StepOutput(**joined)
