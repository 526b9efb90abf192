"""The batch's blending parameters, kept beside SGLang's own sampling parameters.

The scheduler filters, merges and copies a `SamplingBatchInfo` as requests come and go; this subclass moves our columns
with it, so that the sampler finds one row of them for each row of logits.

Legend: _B requests of the batch, _V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

from sglang_trb.blend import RowControls
from sglang_trb.blend.rules import FUSED_WORK, columns, work_of
from sglang_trb.blend.types import TOP_K_OFF
from sglang_trb.engine.backend import blends
from sglang_trb.engine.worker.blend_backend import blend_backend
from sglang_trb.errors import NotInForce
from sglang_trb.wire.params import BlendParams, Return
from sglang_trb.wire.trace import Trace

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch


def trace_of(req: Req) -> Trace:
    """The trace of a request, opened when its first batch is made.

    Raises:
        NotInForce: the request did not come through `TrbTokenizerManager`, which checks it and gives it its seed.
    """
    trace = getattr(req, "trb_trace", None)
    if trace is None:
        if req.sampling_params.sampling_seed is None:
            raise NotInForce(f"request {req.rid} reached the scheduler unchecked: the request hooks are not in force")
        wire = {k: v for k, v in (req.sampling_params.custom_params or {}).items() if k != "__req__"}
        trace = req.trb_trace = Trace(BlendParams.from_wire(wire))
    return trace


@dataclasses.dataclass(frozen=True, slots=True)
class HostRow:
    """What one request asks of a step, known without a look at the device.

    Attributes:
        params: its blending parameters.
        work: what its rule asks for beyond the student's own draw.
        filters, tempers, biased: whether it filters its distribution, divides by a temperature, has a logit bias.
    """

    params: BlendParams
    work: frozenset[str]
    filters: bool
    tempers: bool
    biased: bool

    @property
    def unfused(self) -> bool:
        """Whether a fused step must leave it to torch."""
        return self.filters or not self.work <= FUSED_WORK

    @classmethod
    def of(cls, req: Req) -> HostRow:
        """What a request asks for."""
        asked = req.sampling_params
        cuts = 1 < asked.top_k < TOP_K_OFF  # 1 is how SGLang writes greedy, which filters nothing
        params = trace_of(req).params
        return cls(
            params,
            work_of(params),
            filters=cuts or asked.top_p < 1.0 or asked.min_p > 0.0,
            tempers=asked.temperature != 1.0,
            biased=asked.logit_bias is not None,
        )


@dataclasses.dataclass(frozen=True)
class BlendColumns:
    """One row per request: what it asks for on the host, and the parameters' device copies."""

    rows: tuple[HostRow, ...]
    rule_B: torch.Tensor  # int8, the rules' codes
    alone_B: torch.Tensor  # bool, rows in which the teacher has no part
    settings: Mapping[str, torch.Tensor]  # the rules' parameters by name
    seed_B: torch.Tensor  # int64

    @classmethod
    def from_requests(cls, reqs: list[Req], device: str) -> BlendColumns:
        """The columns of new requests, copied to the device without a wait."""
        rows = tuple(HostRow.of(req) for req in reqs)
        params = [row.params for row in rows]
        seeds = [req.sampling_params.sampling_seed for req in reqs]

        def column(values: list, dtype: torch.dtype) -> torch.Tensor:
            host = torch.tensor(values, dtype=dtype, pin_memory=torch.device(device).type == "cuda")
            return host.to(device, non_blocking=True)

        return cls(
            rows,
            column([p.rule.code for p in params], torch.int8),
            column([not p.needs_teacher for p in params], torch.bool),
            {name: column(*spelled) for name, spelled in columns(params).items()},
            column(seeds, torch.int64),
        )

    def filtered(self, keep: list[int], keep_device: torch.Tensor) -> BlendColumns:
        """The rows that stay, in the order of ``keep``."""
        rows = tuple(self.rows[i] for i in keep)
        settings = {name: column_B[keep_device] for name, column_B in self.settings.items()}
        rule_B, alone_B, seed_B = (column_B[keep_device] for column_B in (self.rule_B, self.alone_B, self.seed_B))
        return BlendColumns(rows, rule_B, alone_B, settings, seed_B)

    def merged(self, other: BlendColumns) -> BlendColumns:
        """These rows, then the others."""
        settings = {name: torch.cat((column_B, other.settings[name])) for name, column_B in self.settings.items()}
        rule_B, alone_B = torch.cat((self.rule_B, other.rule_B)), torch.cat((self.alone_B, other.alone_B))
        seed_B = torch.cat((self.seed_B, other.seed_B))
        return BlendColumns(self.rows + other.rows, rule_B, alone_B, settings, seed_B)

    def any(self, asks: Callable[[HostRow], bool]) -> bool:
        """Whether some row asks for it."""
        return any(map(asks, self.rows))

    def work(self) -> frozenset[str]:
        """What some row asks of a step beyond the student's own draw."""
        return frozenset().union(*(row.work for row in self.rows))

    def needs_teacher(self) -> bool:
        """Whether the teacher has a part in some row."""
        return self.any(lambda row: row.params.needs_teacher)

    def any_returns(self, level: Return) -> bool:
        """Whether some row wants statistics of this level."""
        return self.any(lambda row: row.params.returned.includes(level))


@dataclasses.dataclass
class TrbSamplingBatchInfo(SamplingBatchInfo):
    """SGLang's sampling parameters plus ours; ``blend`` is None on a server that does not blend.

    ``teacher_logits_BV`` is filled by `PairedWorker` before each forward of the student, unless no row has a part for
    the teacher, and taken by `TrbSampler`.
    SGLang's own flags (``need_top_p_sampling`` and the like) are not read: once raised they stay, whoever leaves.
    """

    blend: BlendColumns | None = None
    teacher_logits_BV: torch.Tensor | None = None

    def adjusted_from_schedule_batch(self, batch: ScheduleBatch, vocab_size: int) -> None:
        """SGLang's hook for a new batch: adds our columns."""
        if blends():
            self.blend = BlendColumns.from_requests(batch.reqs, batch.device)

    def adjusted_filter_batch(self, keep_indices: list[int], keep_indices_device: torch.Tensor) -> None:
        """SGLang's hook for requests that leave."""
        if self.blend is not None:
            self.blend = self.blend.filtered(keep_indices, keep_indices_device)
            if not self.blend.any(lambda row: row.biased):
                self.logit_bias: torch.Tensor | None = None

    def adjusted_merge_batch(self, other: TrbSamplingBatchInfo) -> None:
        """SGLang's hook for requests that join."""
        if self.blend is not None:
            assert other.blend is not None
            self.blend = self.blend.merged(other.blend)

    def take_teacher_logits(self, student_logits_BV: torch.Tensor) -> torch.Tensor:
        """Hand over the teacher's logits of this step, once: a second step must bring its own.

        Where the teacher has no part in a row, it has not seen the row's tokens either: its logits are replaced, by
        uniform ones, or by the student's where it did not run at all.
        """
        assert self.blend is not None
        logits, self.teacher_logits_BV = self.teacher_logits_BV, None
        if not self.blend.needs_teacher():
            return student_logits_BV
        if logits is None:
            raise NotInForce("the sampler was called without the teacher's logits: the paired worker is not in force")
        if self.blend.any(lambda row: not row.params.needs_teacher):
            logits = logits.masked_fill(self.blend.alone_B[:, None], 0.0)
        return logits

    def changes_logits(self) -> bool:
        """Whether penalties, biases or a grammar touch any row of this batch."""
        penalizer = self.penalizer_orchestrator
        return (
            self.acc_additive_penalties is not None
            or self.acc_scaling_penalties is not None
            or (penalizer is not None and penalizer.is_required)
            or self.logit_bias is not None
            or self.grammar_mask is not None
        )

    def controls(self, positions_B: torch.Tensor) -> RowControls:
        """What `blend_step` needs to know of each row; the host flags spare it work that no row asks for."""
        blend = self.blend
        assert blend is not None
        greedy_B = self.top_ks <= 1
        return RowControls(
            rule_B=blend.rule_B,
            settings=blend.settings,
            temperature_B=self.temperatures.view(-1),
            top_p_B=self.top_ps,
            top_k_B=self.top_ks,
            min_p_B=self.min_ps,
            greedy_B=greedy_B,
            seed_B=blend.seed_B,
            position_B=positions_B,
            work=blend.work(),
            any_filter=blend.any(lambda row: row.filters),
            any_temperature=blend.any(lambda row: row.tempers),
            any_teacher=blend.needs_teacher(),
            need_support=blend.any_returns(Return.SUPPORT),
            need_teacher_support=blend.any_returns(Return.SUPPORT_BOTH),
            unfused=tuple(i for i, row in enumerate(blend.rows) if row.unfused),
            backend=blend_backend(),
        )
