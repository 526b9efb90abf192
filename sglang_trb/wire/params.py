"""The per-request blending parameters and their wire form (flat ``trb_*`` keys of ``custom_params``).

Loads without torch and without sglang: trainers and plain HTTP clients use it too.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar

from sglang_trb.errors import InvalidParameter
from sglang_trb.wire.rules import (
    MAX_SKD_TOP_K,
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    PARAMETERS,
    PREFIX,
    Rule,
    owners,
)

__all__ = ["MAX_SKD_TOP_K", "MAX_TEMPERATURE", "MIN_TEMPERATURE", "PREFIX", "BlendParams", "Return", "Rule"]


class Return(StrEnum):
    """How much comes back with a response; each level contains the ones before it."""

    NONE = "none"
    SUMMARY = "summary"
    TOKENS = "tokens"
    SUPPORT = "support"
    SUPPORT_BOTH = "support_both"

    def includes(self, level: Return) -> bool:
        """Whether this level carries what ``level`` carries."""
        return _LEVELS[self] >= _LEVELS[level]


_LEVELS = {level: place for place, level in enumerate(Return)}
_RULE_KEY, _RETURN_KEY = PREFIX + "rule", PREFIX + "return"
_KEYS = (_RULE_KEY, *(parameter.key for parameter in PARAMETERS.values()), _RETURN_KEY)


@dataclasses.dataclass(frozen=True, slots=True, init=False)
class BlendParams:
    """How one request's tokens are drawn and what is reported about them.

    ``BlendParams(Rule.TRUST_REGION, 0.01)``, ``BlendParams(Rule.SKD, skd_top_k=15, skd_temperature=0.6)``: the rule's
    parameters follow it, in its order or by name. Each is an attribute too, of every rule: ``params.epsilon`` (nats) is
    the parameter's neutral value, 0, where the rule has no budget.

    Attributes:
        rule: the behaviour policy of the next token.
        settings: the values of ``rule.parameters``, in their order.
        returned: how much of the statistics the response carries.

    Raises:
        InvalidParameter: a value out of its range, one that the rule does not read, or a required one missing.
    """

    rule: Rule
    settings: tuple[float, ...]
    returned: Return

    def __init__(
        self,
        rule: Rule = Rule.TRUST_REGION,
        *values: float,
        returned: Return = Return.SUMMARY,
        settings: tuple[float, ...] = (),
        **named: float,
    ) -> None:
        values = values + settings
        names = [parameter.name for parameter in rule.parameters]
        if len(values) > len(names) or not named.keys() <= {*names[len(values) :]}:
            received = ", ".join([*map(str, values), *named])
            raise InvalidParameter("settings", received, f"of rule {rule.value!r} once each: {names}")
        given = dict(zip(names, values, strict=False)) | named
        object.__setattr__(self, "rule", rule)
        object.__setattr__(self, "settings", _settings(rule, given))
        object.__setattr__(self, "returned", returned)

    def __getattr__(self, name: str) -> Any:
        if name not in PARAMETERS:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self.values().get(name, PARAMETERS[name].neutral)

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher has a part in the response: in the draws, or in the statistics that come with them."""
        return self.rule is not Rule.STUDENT or self.returned is not Return.NONE

    def values(self) -> dict[str, float]:
        """The rule's parameters by name."""
        return {parameter.name: value for parameter, value in zip(self.rule.parameters, self.settings, strict=True)}

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
        given = _ours(custom_params)
        values = {x.name: x.parse(given[x.key]) for x in PARAMETERS.values() if x.key in given}
        rule = _choice(Rule, _RULE_KEY, given[_RULE_KEY]) if _RULE_KEY in given else _named_by(values) or default.rule
        returned = _choice(Return, _RETURN_KEY, given[_RETURN_KEY]) if _RETURN_KEY in given else default.returned
        for parameter in (PARAMETERS[name] for name in values):
            if rule not in (having := owners(parameter)):
                names = " or ".join(repr(owner.value) for owner in having)
                allowed = f"only with trb_rule {names} (this request: {rule.value!r})"
                raise InvalidParameter(parameter.key, given[parameter.key], allowed)
        inherited = default.values() if default.rule is rule else {}
        return cls(rule, returned=returned, settings=_settings(rule, inherited | values))

    def to_wire(self) -> dict[str, str | float | int]:
        """The ``custom_params`` entries that parse back to these parameters, whatever the server's defaults."""
        settings = {PARAMETERS[name].key: value for name, value in self.values().items()}
        return {_RULE_KEY: self.rule.value, _RETURN_KEY: self.returned.value, **settings}


def _ours(custom_params: Mapping[str, Any] | None) -> dict[str, Any]:
    """The entries with our prefix, all of them known."""
    if custom_params is not None and not isinstance(custom_params, Mapping):
        raise InvalidParameter("custom_params", custom_params, "an object with flat keys")
    given = {k: v for k, v in (custom_params or {}).items() if isinstance(k, str) and k.startswith(PREFIX)}
    for key in sorted(given.keys() - {*_KEYS}):
        close = difflib.get_close_matches(key, _KEYS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise InvalidParameter(key, given[key], "the keys " + ", ".join(_KEYS) + hint)
    return given


def _named_by(values: Mapping[str, float]) -> Rule | None:
    """The rule that a request means by its parameters alone: an epsilon says ``trust_region``."""
    naming = [PARAMETERS[name] for name in PARAMETERS if name in values and PARAMETERS[name].names_rule]
    return owners(naming[0])[0] if naming else None


def _settings(rule: Rule, given: Mapping[str, float]) -> tuple[float, ...]:
    """The rule's parameters, checked and complete, in its order."""
    settings = []
    for parameter in rule.parameters:
        value = given.get(parameter.name, parameter.default)
        if value is None:
            raise InvalidParameter(parameter.key, None, f"a value is required when trb_rule is {rule.value!r}")
        settings.append(parameter.parse(value))
    return tuple(settings)


_Choice = TypeVar("_Choice", bound=StrEnum)


def _choice(enum: type[_Choice], key: str, value: Any) -> _Choice:
    if not isinstance(value, str) or value not in list(enum):
        raise InvalidParameter(key, value, "one of " + ", ".join(member.value for member in enum))
    return enum(value)
