"""The data types of the blend.

Legend: _B rows (one request or prefix each), _V vocabulary, _K the 16 ids of a support.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch

from sglang_trb.errors import InvalidParameter
from sglang_trb.wire.record import Support, TokenRecord
from sglang_trb.wire.rules import PARAMETERS

COLUMN_DTYPES = {int: torch.int32, float: torch.float64}
"""Of a parameter's column, by its type."""

TOP_K_OFF = 1 << 30
"""SGLang's value of ``top_k`` for the whole vocabulary."""

OK, STUDENT_NOT_FINITE, TEACHER_NOT_FINITE, EMPTY_SUPPORT = range(4)
"""Values of ``StepOutput.error_B``."""


@dataclasses.dataclass(frozen=True)
class BlendOutput:
    """What `trust_region_blend` returns.

    Attributes:
        log_mu_BV: float32 log-probabilities of the behaviour policy, -inf off its support.
        beta_B: float32 interpolation coefficient in [0, 1].
        kl_B: float32 KL(mu || p) in nats, at most epsilon.
    """

    log_mu_BV: torch.Tensor
    beta_B: torch.Tensor
    kl_B: torch.Tensor


@dataclasses.dataclass(frozen=True)
class RowControls:
    """How each row of a step is drawn; tensors [B] on the device of the logits.

    Attributes:
        rule_B: int8, the rules' codes.
        settings: the rules' parameters by name, a column each: int32 for int, float64 for float, within the range that
            `sglang_trb.wire.rules` declares; read in the rows of their rule only.
        temperature_B: float32 > 0, finite.
        top_p_B, top_k_B, min_p_B: the filters; 1, TOP_K_OFF and 0 are off.
        greedy_B: bool, take the most likely token of the behaviour policy; top_k does not filter such a row, top_p and
            min_p do.
        seed_B, position_B: int64, the key of the row's draw.
        work: host side, what some row may ask for beyond the student's own draw (`rules.work_of`); None: anything. A
            name that is missing promises that no row needs the work.
        any_filter, any_temperature: host flags; False promises the same of filters and of temperatures other than 1.
        any_teacher: host flag; False promises that no row's rule or statistics look at the teacher, whose logits are
            not read then: its statistics repeat the student's.
        need_support, need_teacher_support: host flags, whether to return the top-16 of each model.
        unfused: host side, the rows that a fused step must leave to torch: those that filter, or ask for work beyond
            `rules.FUSED_WORK`; None: all.
        backend: a name of `solvers.BACKENDS`, or ``auto``.

    Raises:
        InvalidParameter: a column that could not hold what a request may ask for: 0.1 is more than 0.1 in float32, and
            1e-50 is 0.
    """

    rule_B: torch.Tensor
    settings: Mapping[str, torch.Tensor]
    temperature_B: torch.Tensor
    top_p_B: torch.Tensor
    top_k_B: torch.Tensor
    min_p_B: torch.Tensor
    greedy_B: torch.Tensor
    seed_B: torch.Tensor
    position_B: torch.Tensor
    work: frozenset[str] | None = None
    any_filter: bool = True
    any_temperature: bool = True
    any_teacher: bool = True
    need_support: bool = False
    need_teacher_support: bool = False
    unfused: tuple[int, ...] | None = None
    backend: str = "auto"

    def __post_init__(self) -> None:
        for name, parameter in PARAMETERS.items():
            wanted = COLUMN_DTYPES[parameter.type]
            if self.settings[name].dtype != wanted:
                raise InvalidParameter(f"settings[{name!r}].dtype", self.settings[name].dtype, str(wanted))

    def may_ask(self, work: str) -> bool:
        """Whether some row may need a rule's work, known without a look at the device."""
        return self.work is None or work in self.work

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> RowControls:
        """The same with every column changed."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        tensors: dict[str, Any] = {k: change(v) for k, v in values.items() if isinstance(v, torch.Tensor)}
        settings = {name: change(column_B) for name, column_B in self.settings.items()}
        return dataclasses.replace(self, settings=settings, **tensors)

    def rows(self, start: int, stop: int) -> RowControls:
        """The controls of rows ``start`` to ``stop``."""
        return self.map(lambda column_B: column_B[start:stop])


@dataclasses.dataclass(frozen=True)
class StepLogits:
    """What a step reads of the models; rows of any float dtype, each matrix of a width of its own.

    Attributes:
        student_BV, teacher_BV: raw logits.
        adjusted_BV: the student's after penalties and finite biases; None: unchanged.
        mask_BV: bool, True forbids the token in both models; None: nothing is forbidden.
        size: ids from here on are padding, which is forbidden.
    """

    student_BV: torch.Tensor
    teacher_BV: torch.Tensor
    adjusted_BV: torch.Tensor | None
    mask_BV: torch.Tensor | None
    size: int

    @property
    def changed(self) -> bool:
        """Whether what is blended may differ from the raw logits, whatever the temperatures."""
        return self.adjusted_BV is not None or self.mask_BV is not None

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> StepLogits:
        """The same with every matrix changed."""
        adjusted_BV, mask_BV = (None if x is None else change(x) for x in (self.adjusted_BV, self.mask_BV))
        return StepLogits(change(self.student_BV), change(self.teacher_BV), adjusted_BV, mask_BV, self.size)


@dataclasses.dataclass(frozen=True)
class StepOutput:
    """One drawn token per row and what is known of it.

    Attributes:
        token_ids_B: int64.
        record: float32 [B] each; ``skd``: beta of a greedy row is 1 where the student's draw could not have given it.
        error_B: int8: OK, STUDENT_NOT_FINITE, TEACHER_NOT_FINITE or EMPTY_SUPPORT; other fields of such a row are
            meaningless.
        student_support, teacher_support: [B, K] each, where asked for, else None.
        log_mu_BV: float32 log of the behaviour policy over the width of the student's logits, where asked for, else
            None.
        passes_B: int32, how often the search of each row passed over the vocabulary, where the backend counts it.
    """

    token_ids_B: torch.Tensor
    record: TokenRecord[torch.Tensor]
    error_B: torch.Tensor
    student_support: Support[torch.Tensor] | None = None
    teacher_support: Support[torch.Tensor] | None = None
    log_mu_BV: torch.Tensor | None = None
    passes_B: torch.Tensor | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that is there, by name."""
        found = {"token_ids_B": self.token_ids_B, "error_B": self.error_B, **self.record.named()}
        if self.log_mu_BV is not None:
            found["log_mu_BV"] = self.log_mu_BV
        for model, support in (("student", self.student_support), ("teacher", self.teacher_support)):
            if support is not None:
                found |= {f"{model}'s support, {name}": column_BK for name, column_BK in support.named().items()}
        return found
