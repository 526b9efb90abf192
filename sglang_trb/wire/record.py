"""What is said of a drawn token: the kernel fills these fields, the server sends them, the trainer reads them.

Each class is generic in its columns, one a field: tensors [B] of one step on the device, arrays [T] of a response.
The order of the fields is that of the columns of a server's table and of the arrays in a journal.

Loads without torch and without sglang.

Legend: _B rows of a step, _T tokens of a response, _K the ids of a support.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, Self, TypeVar

SUPPORT_SIZE = 16
"""K: how many of a model's most likely ids a support holds (docs/methods.md, "Losses")."""

Column = TypeVar("Column")


class Columns(Generic[Column]):
    """A frozen dataclass with a column a field."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The fields, in their order."""
        return tuple(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]

    @classmethod
    def of(cls, columns: Iterable[Column]) -> Self:
        """From a column for each field, in their order."""
        return cls(**dict(zip(cls.names(), columns, strict=True)))

    @classmethod
    def joined(cls, parts: Sequence[Self], join: Callable[[list[Column]], Any]) -> Self:
        """From the parts' columns, joined field by field."""
        return cls.of(join(list(columns)) for columns in zip(*(part.columns() for part in parts), strict=True))

    def columns(self) -> tuple[Column, ...]:
        """The columns, in the order of the fields."""
        return tuple(getattr(self, name) for name in self.names())

    def named(self) -> dict[str, Column]:
        """The columns by name."""
        return dict(zip(self.names(), self.columns(), strict=True))

    def map(self, change: Callable[[Column], Any]) -> Self:
        """With every column changed."""
        return self.of(map(change, self.columns()))


def _says(unit: str, meaning: str) -> dict[str, str]:
    return {"unit": unit, "meaning": meaning}


@dataclasses.dataclass(frozen=True)
class TokenStatistics(Columns[Column]):
    """What ``trb_return: tokens`` brings; float32.

    ``behavior_logprob``, ``beta`` and ``kl`` describe the distribution that was drawn from, at the request's
    temperature and after filters. The others are at temperature 1, full-vocabulary and aligned, before penalties,
    biases and filters.
    """

    behavior_logprob: Column = dataclasses.field(
        metadata=_says("nats", "log mu of the token; of rule skd the exact marginal probability")
    )
    student_logprob: Column = dataclasses.field(metadata=_says("nats", "the student's log-probability of the token"))
    teacher_logprob: Column = dataclasses.field(metadata=_says("nats", "the teacher's"))
    beta: Column = dataclasses.field(
        metadata=_says("0 to 1", "the teacher's exponent; of skd 1 where it replaced the token, of mixture alpha")
    )
    kl: Column = dataclasses.field(
        metadata=_says("nats", "KL(mu || p); infinite where mu leaves the student's support")
    )
    student_entropy: Column = dataclasses.field(metadata=_says("nats", "of the student's distribution"))
    teacher_entropy: Column = dataclasses.field(metadata=_says("nats", "of the teacher's distribution"))


@dataclasses.dataclass(frozen=True)
class TokenRecord(TokenStatistics[Column]):
    """All that is known of a token; the further fields leave the server as one number a response."""

    student_masked_mass: Column = dataclasses.field(
        metadata=_says("0 to 1", "the student's probability that stop-id alignment masks (App. D)")
    )
    teacher_masked_mass: Column = dataclasses.field(metadata=_says("0 to 1", "the teacher's"))


@dataclasses.dataclass(frozen=True)
class Support(Columns[Column]):
    """The 16 most likely ids of one model and what both say of them; most likely first."""

    ids: Column = dataclasses.field(metadata=_says("token ids", "int32"))
    student_logprob: Column = dataclasses.field(
        metadata=_says("nats", "float32, the student's log-probability of the id")
    )
    teacher_logprob: Column = dataclasses.field(metadata=_says("nats", "float32, the teacher's"))


MASSES = tuple(name for name in TokenRecord.names() if name not in TokenStatistics.names())
"""The fields that a response carries as a maximum only."""

RECORD_COLUMNS = len(TokenRecord.names())
"""Columns of a record in a server's table."""

SUPPORT_COLUMNS = len(Support.names()) * SUPPORT_SIZE
"""Columns of a support there, behind the record."""
