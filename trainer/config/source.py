"""Where problems come from, and which columns and rows of it: a part of the configuration."""

from __future__ import annotations

import math
import re
import string
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainValidator, field_validator, model_validator

from trainer.config.section import Section


def _json_value(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError(f"got {value!r}; allowed: text, a number, true, false or null")


JsonValue = Annotated[str | float | bool | int | None, PlainValidator(_json_value)]
"""Kept as it is: true is no 1, and 5 no "5"."""


class Source(Section):
    """Problems in a local file, or in a data set on the Hugging Face hub, of which the chosen rows are kept locally."""

    path: str | None = Field(
        None, description="local file of JSON lines (.gz too) or parquet; or a folder or a pattern of such files"
    )
    repo: str | None = Field(None, description="or a data set on the hub")
    subset: str | None = Field(None, description="of the data set: its configuration")
    split: str = Field("test", description="of the data set")
    question_field: str = Field(
        "question",
        description="column with the problem; a.0.b reaches into a nested one, '{body} {question}' is made of several",
    )
    answer_field: str | None = Field("answer", description="column with the gold answer; null: none is known")
    answer_form: Literal["plain", "boxed"] = Field(
        "plain",
        description="plain: the column is the answer, or its last line is after ####; boxed: its last box, if any",
    )
    answer_pattern: str | None = Field(
        None, max_length=500, description="or a regular expression (re.search) whose one group is the answer"
    )
    where: dict[str, JsonValue] = Field({}, description="keep rows with these values only, e.g. {source: aime2024}")
    unique: bool = Field(False, description="leave out questions that came already")
    limit: int | None = Field(None, ge=1, description="keep the first so many only")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.repo is None):
            raise ValueError("give either path (a local file) or repo (a data set on the hub)")
        return self

    @field_validator("question_field")
    @classmethod
    def _fills_columns(cls, field: str) -> str:
        if "{" not in field:
            return field
        try:
            parts = [part for part in string.Formatter().parse(field) if part[1] is not None]
        except ValueError as error:
            raise ValueError(f"got {field!r}; allowed: a column, or a template such as {{a}} {{b}} ({error})") from None
        if not parts or any(not column or form or conversion for _, column, form, conversion in parts):
            raise ValueError(f"got {field!r}; allowed: a column, or a template with names of columns in its braces")
        return field

    @model_validator(mode="after")
    def _one_group(self) -> Self:
        if self.answer_pattern is None:
            return self
        try:
            groups = re.compile(self.answer_pattern).groups
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(
                f"answer_pattern: got {self.answer_pattern!r}; allowed: a regular expression ({error})"
            ) from None
        if groups != 1 or self.answer_form != "plain":
            raise ValueError(
                f"answer_pattern: got {groups} groups and answer_form {self.answer_form!r}; allowed: 1 and 'plain'"
            )
        return self
