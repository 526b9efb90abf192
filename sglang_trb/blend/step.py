"""One step of the sampler: from raw logits of both models to a drawn token and its statistics.

The order of processing of a row (docs/methods.md):
  1. raw logits in float64; ids beyond the tokenizer and masked ids are forbidden in both models;
  2. the student's penalties and biases (``adjusted_student_logits_BV``), then both divided by the temperature;
  3. log-softmax, stop-id alignment;
  4. the filter, on the student's distribution (rule ``teacher``: on the teacher's), renormalised;
  5. the rule's behaviour policy, then one draw (greedy rows: its argmax).
The statistics are those of the rows of step 1 at temperature 1, aligned, without masks.

The rows go through in groups (`row_groups`).

Legend: _B rows, _V vocabulary, _K the 16 ids of a support.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from sglang_trb.blend import solvers
from sglang_trb.blend.align import aligned
from sglang_trb.blend.distribution import Distribution, needed, row_groups
from sglang_trb.blend.filters import filtered
from sglang_trb.blend.rules import BLENDED_RULES, BlendedRule, Outcome, drawn
from sglang_trb.blend.types import (
    EMPTY_SUPPORT,
    OK,
    STUDENT_NOT_FINITE,
    TEACHER_NOT_FINITE,
    TOP_K_OFF,
    RowControls,
    StepLogits,
    StepOutput,
)
from sglang_trb.pair.alignment import StopAlignment
from sglang_trb.wire.record import SUPPORT_SIZE, Columns, Support, TokenRecord


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
        student_logits_BV, teacher_logits_BV: raw logits, any float dtype; widths may differ beyond the tokenizer. Where
            ``controls.any_teacher`` is False, anything of the student's shape stands for the teacher's.
        controls: how each row is drawn.
        alignment: the pair's stop ids.
        adjusted_student_logits_BV: the student's logits after penalties and finite biases; None: unchanged.
        mask_BV: bool, True forbids the token in both models; None: nothing is forbidden.
        valid_vocab_size: ids from here on are padding, masked in both; None: the narrower width.
        need_log_mu: return the whole behaviour policy.

    Returns:
        Tokens and statistics. A row that cannot be drawn is marked in ``error_B``; it changes no other row. No host
        synchronisation and no data-dependent shape.
    """
    size = valid_vocab_size or min(student_logits_BV.shape[1], teacher_logits_BV.shape[1])
    logits = StepLogits(student_logits_BV, teacher_logits_BV, adjusted_student_logits_BV, mask_BV, size)
    fused, unfused = solvers.find(controls.backend, student_logits_BV.device).step, controls.unfused
    if fused is None or unfused is None or len(unfused) == student_logits_BV.shape[0]:
        return _step(logits, controls, alignment, need_log_mu)
    output = fused(logits, controls, alignment, need_log_mu=need_log_mu)
    if unfused:
        host = torch.tensor(unfused, pin_memory=student_logits_BV.is_cuda)
        rows = host.to(student_logits_BV.device, non_blocking=True)

        def chosen(matrix: torch.Tensor) -> torch.Tensor:
            return matrix.index_select(0, rows)

        others = _step(logits.map(chosen), controls.map(chosen), alignment, need_log_mu)
        for name, column in output.tensors().items():
            column.index_copy_(0, rows, others.tensors()[name])
    return output


def _step(logits: StepLogits, controls: RowControls, alignment: StopAlignment, need_log_mu: bool) -> StepOutput:
    """A step in torch, in groups of rows."""
    student_BV, size = logits.student_BV, logits.size
    outputs = [
        _group_step(
            logits.map(lambda matrix, rows=rows: matrix[rows, :size]),  # type: ignore[misc]
            controls.rows(rows.start, rows.stop),
            alignment,
            student_BV.shape[1] if need_log_mu else None,
        )
        for rows in row_groups(student_BV.shape[0], size, student_BV.device)
    ]
    return outputs[0] if len(outputs) == 1 else _joined(outputs)


def _group_step(
    logits: StepLogits, controls: RowControls, alignment: StopAlignment, log_mu_width: int | None
) -> StepOutput:
    pair = _distributions(logits, controls, alignment)
    student, teacher = pair.student, pair.teacher
    result = _drawn_by_rule(pair.p, pair.q, controls)
    error_B = torch.where(result.empty_B, EMPTY_SUPPORT, OK)
    error_B = torch.where(pair.teacher_bad_B, TEACHER_NOT_FINITE, error_B)
    error_B = torch.where(pair.student_bad_B, STUDENT_NOT_FINITE, error_B)
    ids_B = torch.where(error_B == OK, result.ids_B, alignment.canonical_id)

    def of_token(distribution: Distribution) -> torch.Tensor:
        return distribution.log_prob(ids_B[:, None]).squeeze(1).float()

    record = TokenRecord(
        behavior_logprob=of_token(result.mu),
        student_logprob=of_token(student),
        teacher_logprob=of_token(teacher),
        beta=result.beta_B.float(),
        kl=result.kl_B.float(),
        student_entropy=student.entropy().float(),
        teacher_entropy=teacher.entropy().float(),
        student_masked_mass=pair.student_masked_mass_B.float(),
        teacher_masked_mass=pair.teacher_masked_mass_B.float(),
    )
    return StepOutput(
        token_ids_B=ids_B,
        record=record,
        error_B=error_B.to(torch.int8),
        student_support=_support(student, student, teacher) if controls.need_support else None,
        teacher_support=_support(teacher, student, teacher) if controls.need_teacher_support else None,
        log_mu_BV=None if log_mu_width is None else _padded(result.mu.log_probs().float(), log_mu_width),
    )


@dataclasses.dataclass(frozen=True)
class _PairRows:
    """Both models at temperature 1 without masks (student, teacher), and as they are blended (p, q)."""

    student: Distribution
    teacher: Distribution
    p: Distribution
    q: Distribution
    student_masked_mass_B: torch.Tensor  # the probability that alignment masked away
    teacher_masked_mass_B: torch.Tensor
    student_bad_B: torch.Tensor  # rows that cannot be used; their distributions are uniform
    teacher_bad_B: torch.Tensor


def _distributions(logits: StepLogits, controls: RowControls, alignment: StopAlignment) -> _PairRows:
    """Steps 1 to 3 of a row."""
    student_BV = logits.student_BV.to(torch.float64, copy=True)
    teacher_BV = logits.teacher_BV.to(torch.float64, copy=True) if controls.any_teacher else student_BV
    adjusted_BV = None if logits.adjusted_BV is None else logits.adjusted_BV.to(torch.float64, copy=True)
    student_bad_B, teacher_bad_B = _unusable(student_BV), _unusable(teacher_BV)
    if adjusted_BV is not None:
        largest_B = adjusted_BV.amax(1)  # NaN if there is one; -inf where everything is forbidden, an empty support
        student_bad_B |= largest_B.isnan() | largest_B.isposinf()
    bad_B1 = (student_bad_B | teacher_bad_B)[:, None]
    student_BV.masked_fill_(bad_B1, 0.0)
    teacher_BV.masked_fill_(bad_B1, 0.0)

    student, student_masked_mass_B = _aligned(student_BV, alignment.student_ids, alignment)
    teacher, teacher_masked_mass_B = student, student_masked_mass_B
    if controls.any_teacher:
        teacher, teacher_masked_mass_B = _aligned(teacher_BV, alignment.teacher_ids, alignment)
    p, q = student, teacher
    if logits.changed or controls.any_temperature:
        changed_BV = student_BV if adjusted_BV is None else adjusted_BV.masked_fill_(bad_B1, 0.0)
        p, _ = _aligned(_masked(changed_BV, logits.mask_BV), alignment.student_ids, alignment, controls.temperature_B)
        q = p
        if controls.any_teacher:
            own_BV = _masked(teacher_BV, logits.mask_BV)
            q, _ = _aligned(own_BV, alignment.teacher_ids, alignment, controls.temperature_B)
    return _PairRows(student, teacher, p, q, student_masked_mass_B, teacher_masked_mass_B, student_bad_B, teacher_bad_B)


@dataclasses.dataclass
class _Drawn:
    """The behaviour policy of each row and the token drawn from it; float64."""

    mu: Distribution
    beta_B: torch.Tensor
    kl_B: torch.Tensor
    empty_B: torch.Tensor
    ids_B: torch.Tensor

    def take(self, rows_B: torch.Tensor, outcome: Outcome) -> None:
        """Give the chosen rows a rule's outcome, bit for bit."""
        self.mu = self.mu.where(rows_B, outcome.mu)
        self.beta_B = torch.where(rows_B, outcome.beta_B, self.beta_B)
        self.kl_B = torch.where(rows_B, outcome.kl_B, self.kl_B)
        if outcome.empty_B is not None:
            self.empty_B = torch.where(rows_B, outcome.empty_B, self.empty_B)


def _drawn_by_rule(p: Distribution, q: Distribution, controls: RowControls) -> _Drawn:
    """Steps 4 and 5 of a row."""
    rows = {rule: rule.rows(controls) for rule in BLENDED_RULES.values() if controls.may_ask(rule.rule.value)}
    rows = {rule: rows_B for rule, rows_B in rows.items() if needed(rows_B)}
    p, filtered_q = _filtered(p, q, rows, controls)

    zeros_B = torch.zeros_like(p.log_total_B)
    result = _Drawn(p, zeros_B, zeros_B, p.empty(), zeros_B)
    own_ids = []
    for place, (rule, rows_B) in enumerate(rows.items()):
        outcome = rule.apply(p, filtered_q if rule.filters_teacher else q, rows_B, controls)
        if place == 0 and outcome.others_are_student:
            result.mu, result.beta_B, result.kl_B = outcome.mu, outcome.beta_B, outcome.kl_B
        else:
            result.take(rows_B, outcome)
        if outcome.ids_B is not None:
            own_ids.append((rows_B, outcome.ids_B))
    result.ids_B = drawn(result.mu, controls)
    for rows_B, ids_B in own_ids:
        result.ids_B = torch.where(rows_B, ids_B, result.ids_B)
    return result


def _filtered(
    p: Distribution, q: Distribution, rows: Mapping[BlendedRule, torch.Tensor], controls: RowControls
) -> tuple[Distribution, Distribution]:
    """Student and teacher after top-k, top-p and min-p: of each row one of them, as its rule says."""
    if not controls.any_filter:
        return p, q
    # SGLang asks for a greedy row with top_k = 1, which says how to draw and filters nothing.
    top_k_B = torch.where(controls.greedy_B, TOP_K_OFF, controls.top_k_B)
    settings = top_k_B, controls.top_p_B, controls.min_p_B
    teacher_B = torch.zeros_like(controls.greedy_B)
    for rule, rows_B in rows.items():
        if rule.filters_teacher:
            teacher_B = teacher_B | rows_B
    if any(rule.filters_teacher for rule in rows):
        q = filtered(q, *settings, teacher_B)
    return filtered(p, *settings, ~teacher_B), q


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


def _support(own: Distribution, student: Distribution, teacher: Distribution) -> Support[torch.Tensor]:
    ids_BK = own.log_weights_BV.topk(min(SUPPORT_SIZE, own.log_weights_BV.shape[1]), dim=1).indices
    return Support(ids_BK.int(), student.log_prob(ids_BK).float(), teacher.log_prob(ids_BK).float())


def _padded(log_mu_BV: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(log_mu_BV, (0, width - log_mu_BV.shape[1]), value=float("-inf"))


def _joined(outputs: list[StepOutput]) -> StepOutput:
    joined: dict[str, Any] = {}
    for field in dataclasses.fields(StepOutput):
        parts = [getattr(output, field.name) for output in outputs]
        if isinstance(parts[0], Columns):
            joined[field.name] = parts[0].joined(parts, torch.cat)
        else:
            joined[field.name] = None if parts[0] is None else torch.cat(parts)
    return StepOutput(**joined)
