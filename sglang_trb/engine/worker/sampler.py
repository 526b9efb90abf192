"""The sampling backend ``trb``: the batched blend at the place where SGLang draws its tokens.

Legend: _B requests of the batch, _V vocabulary, _C columns of a statistics row (`sglang_trb.wire.record`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from sglang.srt.layers.sampler import Sampler

from sglang_trb.blend import StepOutput, blend_step
from sglang_trb.engine import hooks, metrics
from sglang_trb.engine.containment import contained
from sglang_trb.engine.worker.batch import TrbSamplingBatchInfo, trace_of
from sglang_trb.pair.alignment import StopAlignment

if TYPE_CHECKING:
    from sglang.srt.layers.logits_processor import LogitsProcessorOutput
    from sglang.srt.managers.auxiliary_output import CommittedTokens
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

    from sglang_trb.pair.pair import Pair


class TrbSampler(Sampler):
    """Draws from the blend of student and teacher; made by SGLang in every model runner.

    The order of processing of a step:
      1. SGLang's penalties, grammar and logit bias on a copy of the student's logits; what they forbid is masked in
         both models.
      2. `blend_step`: temperature, alignment, filters, blend, draw, statistics (docs/methods.md, "Rollout rules").
      3. SGLang's returned log-probabilities, computed from log mu.
      4. The statistics leave as auxiliary output: copied to the host without a synchronisation of the step.
    """

    def __init__(self) -> None:
        super().__init__()
        hooks.require_in_force()
        self.pair: Pair | None = None  # set by PairedWorker on the student's runner

    def forward(
        self,
        logits_output: LogitsProcessorOutput,
        sampling_info: TrbSamplingBatchInfo,
        return_logprob: bool,
        top_logprobs_nums: list[int],
        token_ids_logprobs: list[list[int]],
        positions: torch.Tensor,
    ) -> torch.Tensor:
        """Draw a token for each row of a step; see the class."""
        assert self.pair is not None, "only the student's sampler draws"
        student_logits_BV = logits_output.next_token_logits
        adjusted_BV, mask_BV = _adjusted(student_logits_BV, sampling_info, self.pair.alignment)
        step = blend_step(
            student_logits_BV,
            sampling_info.take_teacher_logits(student_logits_BV),
            sampling_info.controls(positions),
            self.pair.alignment,
            adjusted_student_logits_BV=adjusted_BV,
            mask_BV=mask_BV,
            valid_vocab_size=self.pair.vocab_size,
            need_log_mu=return_logprob,
        )
        if return_logprob:
            self.output_logprob_processor.compute_logprobs(
                step.log_mu_BV, top_logprobs_nums, token_ids_logprobs, step.token_ids_B
            ).write_output_to(logits_output)
        self._sync_token_ids_across_tp(step.token_ids_B, sampling_info)
        logits_output.auxiliary_device_output = DeviceStatistics.from_step(step)
        return step.token_ids_B


def _adjusted(
    student_logits_BV: torch.Tensor, info: TrbSamplingBatchInfo, alignment: StopAlignment
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """SGLang's own transformations of the student's logits, and what they forbid (True = forbidden)."""
    if not info.changes_logits():
        return None, None
    ruled_out_BV = student_logits_BV.isneginf()  # by the model itself, which forbids the teacher nothing
    adjusted_BV = student_logits_BV.float().masked_fill(ruled_out_BV, 0.0)
    # Without overlap scheduling the penalties come unaccumulated, and SGLang applies them in no fixed order.
    accumulated = info if info.penalizer_orchestrator is None else info.copy_for_forward()
    accumulated.apply_logits_bias(adjusted_BV)
    info.grammar_mask = None  # as ModelRunner does: it must not outlive the step
    mask_BV = adjusted_BV.isneginf()
    adjusted_BV.masked_fill_(ruled_out_BV, float("-inf"))
    # All stop ids are one event: the teacher's own ids are forbidden where the student may not stop, and only there,
    # for a grammar knows the student's ids alone. Slices: a list of ids would stall a device.
    forbidden_B = mask_BV[:, alignment.canonical_id].clone()
    for stop_id in alignment.student_ids:
        mask_BV[:, stop_id] |= forbidden_B
    for stop_id in set(alignment.teacher_ids) - set(alignment.student_ids):
        mask_BV[:, stop_id] = forbidden_B
        if info.logit_bias is not None:
            mask_BV[:, stop_id] |= info.logit_bias[:, stop_id].isneginf()
    return adjusted_BV, mask_BV


@dataclasses.dataclass(frozen=True)
class DeviceStatistics:
    """A step's statistics on the device, one row a request; SGLang copies them with its own results."""

    table_BC: torch.Tensor  # float32; a TokenRecord, then the supports that any request wants
    error_B: torch.Tensor  # int8, 0 = drawn

    @classmethod
    def from_step(cls, step: StepOutput) -> DeviceStatistics:
        """The table of a step."""
        columns = [torch.stack(step.record.columns(), dim=1)]
        for support in (step.student_support, step.teacher_support):
            if support is not None:
                ids_BK, *logprobs = support.columns()
                columns += [ids_BK.to(torch.int32).view(torch.float32), *logprobs]
        return cls(torch.cat(columns, dim=1), step.error_B)

    def copy_to_host(self, copy_tensor: Callable[[torch.Tensor], torch.Tensor]) -> HostStatistics:
        """Begin the copy, with SGLang's own results."""
        return HostStatistics(copy_tensor(self.table_BC), copy_tensor(self.error_B))


@dataclasses.dataclass(frozen=True)
class HostStatistics:
    """The same on the host, once the copy is done."""

    table_BC: torch.Tensor
    error_B: torch.Tensor

    def consume(self, batch: ScheduleBatch, commits: Sequence[CommittedTokens | None]) -> None:
        """Append the row of each newly visible token to its request's trace (called by SGLang's scheduler)."""
        table_BC, failed = self.table_BC.numpy(), self.error_B.tolist()
        drawn = [i for i, commit in enumerate(commits) if commit is not None and not failed[i]]
        for i in drawn:
            _append_row(batch.reqs[i], table_BC[i])
        metrics.observe_tokens([trace_of(batch.reqs[i]).params.rule for i in drawn], table_BC[drawn])


@contained
def _append_row(req: Req, row_C: np.ndarray) -> None:
    trace_of(req).append(row_C)
