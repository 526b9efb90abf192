"""The per-request blending parameters and their wire form (flat ``trb_*`` keys of ``custom_params``).

Loads without torch and without sglang: trainers and plain HTTP clients use it too.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from sglang_trb.errors import InvalidParameter

PREFIX = "trb_"
MAX_SKD_TOP_K = 1 << 20
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e3
"""Of sampling, apart from greedy, and of the teacher's draw in ``skd``: logits divided by these stay in range."""


class Rule(StrEnum):
    """Who picks the next token (the law of one row)."""

    TRUST_REGION = "trust_region"
    STUDENT = "student"
    TEACHER = "teacher"
    SKD = "skd"


class Return(StrEnum):
    """How much comes back with a response; each level contains the ones before it."""

    NONE = "none"
    SUMMARY = "summary"
    TOKENS = "tokens"
    SUPPORT = "support"
    SUPPORT_BOTH = "support_both"

    def includes(self, level: Return) -> bool:
        order = list(Return)
        return order.index(self) >= order.index(level)


@dataclasses.dataclass(frozen=True, slots=True)
class BlendParams:
    """How one request's tokens are drawn and what is reported about them.

    Attributes:
        rule: the law of the next token.
        epsilon: KL(mu || student) budget per token in nats, finite and >= 0; used by ``trust_region`` only
            (0 for the others).
        skd_top_k: ``skd`` keeps a student draw that lies in the teacher's top-K; integer >= 1, None otherwise.
        skd_temperature: temperature of the teacher's replacement draw in ``skd``; MIN_TEMPERATURE to MAX_TEMPERATURE,
            None otherwise.
        returned: how much of the statistics the response carries.
    """

    rule: Rule = Rule.TRUST_REGION
    epsilon: float = 0.0
    skd_top_k: int | None = None
    skd_temperature: float | None = None
    returned: Return = Return.SUMMARY

    @classmethod
    def from_wire(cls, custom_params: Mapping[str, Any] | None, default: BlendParams | None = None) -> BlendParams:
        """Parse and check the ``trb_*`` keys of a request's ``custom_params``.

        Args:
            custom_params: the request's mapping, or None; keys without the ``trb_`` prefix are not ours.
            default: the server's defaults, for keys that are absent.

        Returns:
            The complete parameters of the request.

        Raises:
            InvalidParameter: unknown ``trb_`` key, wrong type, out of range, or keys that exclude each other.
        """
        default = default or cls()
        if custom_params is not None and not isinstance(custom_params, Mapping):
            raise InvalidParameter("custom_params", custom_params, "an object with flat keys")
        given = {k: v for k, v in (custom_params or {}).items() if isinstance(k, str) and k.startswith(PREFIX)}
        for key in sorted(given.keys() - _PARSERS.keys()):
            close = difflib.get_close_matches(key, _PARSERS, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise InvalidParameter(key, given[key], "the keys " + ", ".join(_PARSERS) + hint)
        values = {key: _PARSERS[key](key, value) for key, value in given.items()}

        rule = values.get("trb_rule") or (Rule.TRUST_REGION if "trb_epsilon" in values else default.rule)
        inherited = default if default.rule is rule else cls(rule=Rule.STUDENT)
        returned = values.get("trb_return", default.returned)
        _require_only_for(Rule.TRUST_REGION, rule, ("trb_epsilon",), given)
        _require_only_for(Rule.SKD, rule, ("trb_skd_top_k", "trb_skd_temperature"), given)
        if rule is Rule.TRUST_REGION:
            return cls(rule, values.get("trb_epsilon", inherited.epsilon), returned=returned)
        if rule is not Rule.SKD:
            return cls(rule, returned=returned)
        top_k = values.get("trb_skd_top_k", inherited.skd_top_k)
        temperature = values.get("trb_skd_temperature", inherited.skd_temperature)
        for key, value in (("trb_skd_top_k", top_k), ("trb_skd_temperature", temperature)):
            if value is None:
                raise InvalidParameter(key, None, f"a value is required when trb_rule is {Rule.SKD.value!r}")
        return cls(rule, 0.0, top_k, temperature, returned)

    def to_wire(self) -> dict[str, str | float | int]:
        """The ``custom_params`` entries that parse back to these parameters, whatever the server's defaults."""
        wire: dict[str, str | float | int] = {"trb_rule": self.rule.value, "trb_return": self.returned.value}
        if self.rule is Rule.TRUST_REGION:
            wire["trb_epsilon"] = self.epsilon
        if self.rule is Rule.SKD:
            assert self.skd_top_k is not None and self.skd_temperature is not None
            wire |= {"trb_skd_top_k": self.skd_top_k, "trb_skd_temperature": self.skd_temperature}
        return wire


def _require_only_for(owner: Rule, rule: Rule, keys: tuple[str, ...], given: Mapping[str, Any]) -> None:
    for key in keys:
        if key in given and rule is not owner:
            allowed = f"only with trb_rule {owner.value!r} (this request: {rule.value!r})"
            raise InvalidParameter(key, given[key], allowed)


_Parser = Callable[[str, Any], Any]


def _choice(enum: type[StrEnum]) -> _Parser:
    allowed = "one of " + ", ".join(member.value for member in enum)

    def parse(key: str, value: Any) -> StrEnum:
        if not isinstance(value, str) or value not in list(enum):
            raise InvalidParameter(key, value, allowed)
        return enum(value)

    return parse


def _number(allowed: str, accepts: Callable[[float], bool]) -> _Parser:
    def parse(key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidParameter(key, value, allowed)
        try:
            number = float(value)
        except OverflowError:
            raise InvalidParameter(key, value, allowed) from None
        if not math.isfinite(number) or not accepts(number):
            raise InvalidParameter(key, value, allowed)
        return number

    return parse


def _top_k(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SKD_TOP_K:
        raise InvalidParameter(key, value, f"an integer from 1 to {MAX_SKD_TOP_K}")
    return value


_PARSERS: dict[str, _Parser] = {
    "trb_rule": _choice(Rule),
    "trb_epsilon": _number("a finite number >= 0 (nats)", lambda number: number >= 0),
    "trb_skd_top_k": _top_k,
    "trb_skd_temperature": _number(
        f"a number from {MIN_TEMPERATURE} to {MAX_TEMPERATURE}",
        lambda number: MIN_TEMPERATURE <= number <= MAX_TEMPERATURE,
    ),
    "trb_return": _choice(Return),
}
