"""How two sets of stop ids become one event. Needs no torch."""

from __future__ import annotations

import dataclasses
from functools import cached_property

from sglang_trb.errors import InvalidParameter


@dataclasses.dataclass(frozen=True)
class StopAlignment:
    """How the stop ids of both models become one event e_*, at ``canonical_id`` (App. D, Eq. 7).

    Attributes:
        student_ids, teacher_ids: E_S and E_T, the ids that end a sequence for each model.
        canonical_id: the student's primary stop id; a member of ``student_ids``.
    """

    student_ids: tuple[int, ...]
    teacher_ids: tuple[int, ...]
    canonical_id: int

    def __post_init__(self) -> None:
        if not self.student_ids or not self.teacher_ids:
            raise InvalidParameter("stop ids", (self.student_ids, self.teacher_ids), "at least one id of each model")
        if self.canonical_id not in self.student_ids:
            raise InvalidParameter("canonical_id", self.canonical_id, f"one of the student's ids {self.student_ids}")

    @cached_property
    def masked_ids(self) -> tuple[int, ...]:
        """Stop ids other than the canonical one: masked in both models once their mass has moved."""
        return tuple(sorted({*self.student_ids, *self.teacher_ids} - {self.canonical_id}))

    @property
    def teacher_only_ids(self) -> tuple[int, ...]:
        """Stop ids of the teacher alone: the student may never draw them."""
        return tuple(sorted({*self.teacher_ids} - {*self.student_ids}))

    @property
    def is_identity(self) -> bool:
        """True exactly when E_S = E_T is one id."""
        return not self.masked_ids
