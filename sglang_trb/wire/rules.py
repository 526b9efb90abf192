"""The rules a request can ask for: one table of who picks the next token, and by which parameters.

A rule is a member of `Rule`; what it does to the models' distributions stands in `sglang_trb.blend.rules`, under the
same name, and its definition in `sglang_trb.blend.reference`. Loads without torch and without sglang.
"""

from __future__ import annotations

import dataclasses
import math
from enum import StrEnum
from typing import Any

from sglang_trb.errors import InvalidParameter

PREFIX = "trb_"
"""Of every key that is ours in a request's ``custom_params``."""

MAX_SKD_TOP_K = 1 << 20
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e3
"""Of sampling, apart from greedy, and of the teacher's draw in ``skd``: logits divided by these stay in range."""


@dataclasses.dataclass(frozen=True, slots=True)
class Parameter:
    """One number that a rule reads.

    Attributes:
        name: of the attribute of `BlendParams` and of the column of a batch; the wire key is ``trb_`` + name.
        type: int or float. An int stays an int and is a column of int32, a float one of float64.
        low, high: the allowed range, both ends included; +inf as ``high`` still means a finite number.
        neutral: what rows of other rules hold; allowed, and harmless where it is computed with.
        unit: for texts, empty if there is none.
        default: where neither the request nor the server's default gives it; None: the rule requires it.
        names_rule: a request that gives this key and no ``trb_rule`` asks for this parameter's rule.
    """

    name: str
    type: type[int] | type[float]
    low: float
    high: float
    neutral: float
    unit: str = ""
    default: float | None = None
    names_rule: bool = False

    @property
    def key(self) -> str:
        """The key of ``custom_params``."""
        return PREFIX + self.name

    @property
    def allowed(self) -> str:
        """The allowed values in words."""
        if self.type is int:
            return f"an integer from {self.low} to {self.high}"
        if math.isinf(self.high):
            return f"a finite number >= {self.low:g}" + (f" ({self.unit})" if self.unit else "")
        return f"a number from {self.low} to {self.high}"

    def parse(self, value: Any) -> float:
        """The checked value, of the declared type.

        Raises:
            InvalidParameter: another type (a bool is no number), not finite, or out of range.
        """
        kinds = (int,) if self.type is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise InvalidParameter(self.key, value, self.allowed)
        try:
            number = self.type(value)
        except OverflowError:
            raise InvalidParameter(self.key, value, self.allowed) from None
        if not math.isfinite(number) or not self.low <= number <= self.high:
            raise InvalidParameter(self.key, value, self.allowed)
        return number


EPSILON = Parameter("epsilon", float, 0, math.inf, neutral=0.0, unit="nats", default=0.0, names_rule=True)
SKD_TOP_K = Parameter("skd_top_k", int, 1, MAX_SKD_TOP_K, neutral=1)
SKD_TEMPERATURE = Parameter("skd_temperature", float, MIN_TEMPERATURE, MAX_TEMPERATURE, neutral=1.0)
MIXTURE_ALPHA = Parameter("mixture_alpha", float, 0, 1, neutral=0.0)


class Rule(StrEnum):
    """Who picks the next token: the behaviour policy of one row. Each with its parameters.

    Attributes:
        parameters: the numbers that the rule reads, in the order of `BlendParams`' values.
        code: the rule's number in the int8 columns of a batch.
    """

    parameters: tuple[Parameter, ...]
    code: int

    def __new__(cls, name: str, *parameters: Parameter) -> Rule:
        rule = str.__new__(cls, name)
        rule._value_ = name
        rule.parameters, rule.code = parameters, len(cls.__members__)
        return rule

    TRUST_REGION = "trust_region", EPSILON
    STUDENT = ("student",)
    TEACHER = ("teacher",)
    SKD = "skd", SKD_TOP_K, SKD_TEMPERATURE
    MIXTURE = "mixture", MIXTURE_ALPHA


PARAMETERS: dict[str, Parameter] = {parameter.name: parameter for rule in Rule for parameter in rule.parameters}
"""Every rule's parameters by name."""


def owners(parameter: Parameter) -> list[Rule]:
    """The rules that read a parameter; never empty."""
    return [rule for rule in Rule if parameter in rule.parameters]
