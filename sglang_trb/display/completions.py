"""One finished response with its per-token statistics, as the page, the demo and the command line read it.

Loads without torch and without sglang.

Legend: _T generated tokens.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from sglang_trb.errors import InvalidParameter
from sglang_trb.wire.record import TokenStatistics
from sglang_trb.wire.trace import tokens_of

REPLACEMENT = "\ufffd"


class Tokenizer(Protocol):
    """What is needed of a tokenizer."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """The text of the ids."""


@dataclasses.dataclass(frozen=True)
class TracedCompletion:
    """A response and how each of its tokens was drawn.

    Attributes:
        prompt: what was asked, for display.
        label: which policy drew it, for display ("ε = 0.01"); completions with the same label are compared.
        text: the whole response.
        pieces: the text of each token; "" for one whose bytes only complete a character with the next.
        summary: the ``trb`` summary of the response (rule, epsilon, …); ``correct`` (bool), if it was judged.
        tokens: how each was drawn, a value per token.
    """

    prompt: str
    label: str
    text: str
    pieces: list[str]
    summary: dict[str, Any]
    tokens: TokenStatistics[list[float]]

    def __post_init__(self) -> None:
        for name, values in self.tokens.named().items():
            if len(values) != len(self.pieces):
                raise InvalidParameter(name, f"{len(values)} values", f"one per token: {len(self.pieces)}")

    @classmethod
    def from_wire(
        cls, trb: Mapping[str, Any], *, prompt: str, label: str, text: str, pieces: list[str], **judged: Any
    ) -> TracedCompletion:
        """Read the ``trb`` object of a response that was asked for with ``trb_return: tokens``.

        Raises:
            InvalidParameter: an array is missing, malformed, or not one value per token.
        """
        for name in TokenStatistics.names():
            if name not in trb:
                raise InvalidParameter(f"trb.{name}", None, "required; ask for it with trb_return 'tokens'")
        columns: list[list[float]] = [values_T.ravel().tolist() for values_T in tokens_of(trb).columns()]
        summary = {key: value for key, value in trb.items() if not isinstance(value, dict)} | judged
        return cls(prompt, label, text, pieces, summary, TokenStatistics.of(columns))

    @property
    def budget(self) -> float | None:
        """The KL budget per token in nats, or None where the rule has none."""
        return self.summary.get("epsilon") if self.summary.get("rule") == "trust_region" else None

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready object (numbers that are not finite become null)."""
        about = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "tokens"}
        return about | self.tokens.map(lambda values: [_or_none(value) for value in values]).named()


@dataclasses.dataclass(frozen=True)
class Totals:
    """What a set of completions amounts to; None where nothing finite was measured.

    ``mean_beta``, ``saturated`` (share of tokens with beta = 1) and ``mean_teacher_logprob`` are means over tokens,
    ``sum_kl`` is the mean over completions of their summed KL, ``correct`` of ``judged`` answers were right.
    """

    completions: int
    tokens: int
    mean_beta: float | None
    saturated: float | None
    sum_kl: float | None
    mean_teacher_logprob: float | None
    correct: int
    judged: int


def totals(completions: Sequence[TracedCompletion]) -> Totals:
    """Add up completions that were drawn by one policy."""
    beta = [value for c in completions for value in c.tokens.beta]
    teacher = [value for c in completions for value in c.tokens.teacher_logprob]
    verdicts = [c.summary["correct"] for c in completions if c.summary.get("correct") is not None]
    return Totals(
        completions=len(completions),
        tokens=len(beta),
        mean_beta=_mean(beta),
        saturated=_mean([float(value == 1.0) for value in beta]),
        sum_kl=_mean([sum(c.tokens.kl) for c in completions]),
        mean_teacher_logprob=_mean(teacher),
        correct=sum(map(bool, verdicts)),
        judged=len(verdicts),
    )


def by_label(completions: Iterable[TracedCompletion]) -> dict[str, list[TracedCompletion]]:
    """Group by label, in order of first appearance."""
    groups: dict[str, list[TracedCompletion]] = {}
    for completion in completions:
        groups.setdefault(completion.label, []).append(completion)
    return groups


def token_pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text that each token adds; the pieces joined are the text of the whole, special tokens included.

    A byte-level token can hold part of a character. It then adds "", and the token that completes the character adds
    all of it. Bytes that never become a character show as U+FFFD.

    Args:
        tokenizer: anything with ``decode(ids, skip_special_tokens=…)`` (transformers or tokenizers).
        ids: the generated token ids.
    """

    def decode(start: int, end: int) -> str:
        return tokenizer.decode(list(ids[start:end]), skip_special_tokens=False)

    pieces: list[str] = []
    # Decoding begins one whole token early: some tokenizers treat the start of a text differently.
    context = whole = shown = 0
    for end in range(1, len(ids) + 1):
        text = decode(context, end)
        # Bytes that are not a character yet show as one U+FFFD at the end; everything before it is final.
        final = text[:-1] if text.endswith(REPLACEMENT) and end < len(ids) else text
        pieces.append(final[shown:])
        shown = len(final)
        if final == text:
            context, whole = whole, end
            shown = len(decode(context, whole))
    return pieces


def number(value: float | None, digits: int = 2) -> str:
    """For display, with a real minus sign; small values keep two significant digits; – for nothing finite."""
    if value is None or not math.isfinite(value):
        return "–"
    if 0 < abs(value) < 0.1 and digits:
        return f"{value:.2g}".replace("-", "−")
    return f"{value:.{digits}f}".replace("-", "−")


def visible(text: str) -> str:
    """Untrusted text, safe to display: control and direction-override characters become visible ones.

    Newlines and tabs stay. A terminal cannot be driven by the result; HTML must still be escaped.
    """
    return text.translate(_VISIBLE)


_PICTURES = 0x2400  # Unicode's "control pictures": ␛ for ESC and so on
_VISIBLE = {code: _PICTURES + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_VISIBLE |= dict.fromkeys(
    [*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000)], REPLACEMENT
)


def _mean(values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
