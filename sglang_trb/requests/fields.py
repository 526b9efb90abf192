"""How a request's fields are described: strict pydantic models whose errors name the field and what is allowed.

A description is a subclass of `Fields`. Each field has a strict type, checks, and `Allowed` words that end its error
message. Nothing is coerced: true is no number, 1.0 no integer, "1" neither. Unknown fields are refused, with the place
where they belong if there is one. Loads without torch and without sglang.
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import Annotated, Any, ClassVar, Self, TypeVar, Union, get_args

from pydantic import BaseModel, ConfigDict, FailFast, ValidationError, model_validator
from pydantic_core import ErrorDetails

from sglang_trb.errors import InvalidParameter
from sglang_trb.wire.params import PREFIX, BlendParams


class Allowed(str):
    """What a field may hold, in words; stands in the field's ``Annotated`` type."""


@dataclasses.dataclass(frozen=True)
class ServerFacts:
    """What a check must know of the server: the validation context of every `Fields`.

    Attributes:
        vocab_size: ids from 0 up to it can be drawn; `Pair.vocab_size`.
        context_length: longest prompt plus response, in tokens.
        masked_ids, canonical_id: stop ids that alignment maps to another, and that other.
        grammar_backend: SGLang's option; None or ``none`` for none.
        metric_labels: names that a request's ``custom_labels`` may use.
        blend_default: what a request's ``trb_*`` keys leave out.
    """

    vocab_size: int
    context_length: int
    masked_ids: frozenset[int] = frozenset()
    canonical_id: int = 0
    grammar_backend: str | None = None
    metric_labels: frozenset[str] = frozenset()
    blend_default: BlendParams = dataclasses.field(default_factory=BlendParams)

    @property
    def has_grammar(self) -> bool:
        """Whether the server can follow a grammar."""
        return self.grammar_backend not in (None, "none")


class FirstError(FailFast):
    """A list is refused at its first wrong item, however long it is; hashable, as members of a union have to be."""

    __hash__ = object.__hash__


T = TypeVar("T")
Many = Annotated[list[T], FirstError()]
PerPrompt = Union[T, Many[T], None]  # noqa: UP007 - a generic alias
"""A value for all prompts, or a list with one for each prompt."""


class Fields(BaseModel):
    """Base of every description; see the module."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)

    BLEND_HOME: ClassVar[str] = "custom_params"
    """Where the ``trb_*`` keys belong in this body."""

    HOMES: ClassVar[dict[str, str]] = {}
    """Names that belong elsewhere, and where."""

    @model_validator(mode="before")
    @classmethod
    def _known(cls, body: object) -> object:
        """Refuse the first unknown field, before anything else is said: it may be what the request is about."""
        if isinstance(body, dict) and cls.model_config.get("extra") == "forbid":
            for name in body:
                if name not in cls.model_fields:
                    raise InvalidParameter(str(name), body[name], cls._place(str(name)))
        return body

    @classmethod
    def check(cls, body: object, server: ServerFacts) -> Self:
        """The checked fields of a body.

        Raises:
            InvalidParameter: names the first wrong field, what came and what is allowed.
        """
        try:
            return cls.model_validate(body, context=server)
        except ValidationError as error:
            errors = error.errors(include_url=False)
        causes = [cause for e in errors if isinstance(cause := e.get("ctx", {}).get("error"), InvalidParameter)]
        raise causes[0] if causes else cls._refusal(errors[0], body)

    @classmethod
    def _refusal(cls, error: ErrorDetails, body: object) -> InvalidParameter:
        if not isinstance(body, dict) or not error["loc"]:
            return InvalidParameter("body", body, "an object with named fields")
        name = str(error["loc"][0])
        if error["type"] == "missing":
            return InvalidParameter(name, None, f"{words(cls, name)}; it is required")
        return InvalidParameter(name, body.get(name), words(cls, name))

    @classmethod
    def _place(cls, name: str) -> str:
        """Where an unknown field belongs, or which known one may have been meant."""
        if name.startswith(PREFIX):
            return f"inside {cls.BLEND_HOME} only"
        if name == "extra_body":
            return "its content at the top level: only the openai client's extra_body argument does that by itself"
        if name in cls.HOMES:
            return f"inside {cls.HOMES[name]} only"
        known = {alias: alias for alias in cls.model_fields} | cls.HOMES
        close = difflib.get_close_matches(name, known, n=1)
        return "known fields only" + (f"; did you mean {_path(close[0], cls.HOMES)}?" if close else "")


def _path(name: str, homes: dict[str, str]) -> str:
    return f"{homes[name]}.{name}" if name in homes else name


def words(description: type[BaseModel], name: str) -> str:
    """What the field may hold, in words."""
    fields = description.model_fields
    field = fields[name] if name in fields else next(field for field in fields.values() if field.alias == name)
    found = next((meta for meta in field.metadata if isinstance(meta, Allowed)), None) or _words(field.annotation)
    return found or "another type"


def _words(annotation: Any) -> str | None:
    for meta in getattr(annotation, "__metadata__", ()):
        if isinstance(meta, Allowed):
            return meta
    return next((found for argument in get_args(annotation) if (found := _words(argument))), None)
