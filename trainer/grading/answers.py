r"""What a text gives as its answer, and that answer in a form that math-verify reads as people mean it.

docs/grading.md has a table of cases with the reason for each convention.
"""

from __future__ import annotations

import re
from decimal import Decimal

_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)"
_FRACTION = r"\\[dtc]?frac(?:\d\d|\{[^{}]*\}\{[^{}]*\})"
_BARE = rf"[-+−]?(?:\d+(?:,\d+)*(?:\.\d+)?(?:/\d+)?(?:\\?%)?|{_FRACTION}|\\sqrt(?:\d|\{{[^{{}}]*\}}))"
_TOKEN = re.compile(
    rf"\\(?:boxed|fbox)(?![A-Za-z])\s*(?:(?P<open>\{{)|(?P<bare>{_BARE}))?"
    r"|(?<!\\)\\[{}]"  # a brace that is shown, as in \left\{: it opens and closes nothing
    r"|[{}]"
)

_SPACE = r"\\[,;:!\s]|\\q?quad(?![A-Za-z])|[\s~]"
_LEADING = re.compile(rf"\A(?:{_SPACE})+")
_TRAILING = re.compile(rf"(?:{_SPACE}|(?<!\\right)\.|[,;:]|\\{{1,2}}\Z)+\Z")
_WRAPPED = (
    r"\$\$?([^$]*)\$\$?",
    r"\\\(((?:(?!\\[()]).)*)\\\)",
    r"\\\[((?:(?!\\[\[\]]).)*)\\\]",
    r"\*\*([^*]*)\*\*",
    r"\\(?:text|textbf|textit|mathrm|mathbf)\{([-+−]?[\d.][^{}]*)\}",
)
_WRAPPINGS = re.compile("|".join(_WRAPPED), re.DOTALL)

_CURRENCY = re.compile(r"\A([-+−]?)\s*(?:\\?[$£€¥₹]|\\pounds|\\euro|\\textdollar)\s*(?=[\d.])")
_GROUPED = re.compile(r"([-+−]?\d{1,3})((?:(?:,|\{,\}|\\,|\\ |\\!|~| )\d{3})+)(\.\d+)?")
_EXPONENT = re.compile(rf"([-+−]?{_NUMBER})[eE]([-+]?\d{{1,3}})")
_REPEATING = re.compile(r"([-+−]?)(\d*)\.(\d*)\\overline\{?(\d+)\}?")
_MIXED = re.compile(r"([-+−]?\d+)\s+(\d+)\s*/\s*(\d+)")
_TENS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_COUNTED = re.compile(rf"([-+−]?{_NUMBER})\s*(?:\\text\{{\s*)?({'|'.join(_TENS)})s?(?: [A-Za-z ]*)?\}}?")
_TIMES = re.compile(r"(?<=\d)\s*x\s*(?=10\s*\^)")

_VALUE = re.compile(rf"[-+]?(?:{_NUMBER}(?:/\d+)?|{_FRACTION})")
_NO_UNIT = (
    rf"(?:{'|'.join(_TENS)}|third|fifth|tenth|hundredth|thousandth)s?|half|halves|dozen|squared|cubed|factorial|"
    r"and|plus|minus|times|over"
)
_WORDS = rf"[A-Za-z]+/[A-Za-z]+|(?!(?:{_NO_UNIT})\b)[A-Za-z]{{3,}}(?: +[A-Za-z]+)*|\([A-Za-z][A-Za-z ]{{2,}}\)"
_WITH_UNIT = re.compile(rf"((?:[^A-Za-z\\]|\\(?:[dtc]?frac|[,;:!\s$%]))*[\d}}])\s*(?:{_WORDS})")


def last_boxed(text: str) -> str | None:
    r"""What the last balanced ``\boxed{…}`` of a text holds, or None; in one pass.

    ``\boxed {5}`` and ``\fbox{5}`` are boxes too, and so is a bare number, fraction or root, as in ``\boxed 5``.
    """
    best, found = -1, None
    opened: list[tuple[int, int]] = []  # of every open brace: where its box begins, or -1, and where its content does
    for token in _TOKEN.finditer(text):
        if token["bare"] is not None:
            best, found = token.start(), token["bare"]
        elif token["open"] is not None:
            opened.append((token.start(), token.end()))
        elif token[0] == "{":
            opened.append((-1, token.end()))
        elif token[0] == "}" and opened:
            start, inside = opened.pop()
            if start > best:
                best, found = start, text[inside : token.start()]
    return found


def tidy(answer: str) -> str:
    r"""An answer without what stands around it: ``5.``, ``$5$`` and ``5\ `` are 5.

    Quadratic in runs of points and spaces, so for answers of bounded length.
    """
    before = None
    while before != answer:
        before = answer
        answer = _TRAILING.sub("", _LEADING.sub("", answer))
        wrapped = _WRAPPINGS.fullmatch(answer)
        if wrapped is not None:
            answer = next(part for part in wrapped.groups() if part is not None)
    return answer


def is_number(answer: str) -> bool:
    """Whether a tidy answer in the usual form is a number or a fraction, without a unit."""
    return _VALUE.fullmatch(answer) is not None


def without_unit(answer: str) -> str:
    """A tidy answer without the plain words after its number: 5 dollars, 5 km/h, 5 (apples)."""
    found = _WITH_UNIT.fullmatch(answer)
    return answer if found is None else found[1]


def usual(answer: str) -> str:
    r"""A tidy answer as math-verify reads it right, where it is a number of another form; else as it is.

    Such as ``€5``, ``1\,234``, ``1e-7``, ``3 1/2``, ``5 million``, ``0.\overline{3}``.
    """
    text = _TIMES.sub(r"\\times ", _CURRENCY.sub(r"\1", answer).replace("−", "-"))
    if found := _GROUPED.fullmatch(text):
        return found[1] + re.sub(r"\D", "", found[2]) + (found[3] or "")
    if found := _EXPONENT.fullmatch(text):
        return format(Decimal(f"{found[1]}e{found[2]}"), "f")
    if found := _COUNTED.fullmatch(text):
        return format(Decimal(f"{found[1]}e{_TENS[found[2]]}"), "f")
    if found := _MIXED.fullmatch(text):
        return rf"{found[1]}\frac{{{found[2]}}}{{{found[3]}}}"
    if found := _REPEATING.fullmatch(text):
        sign, whole, first, again = found.groups()
        ending_once, ending_never = int(f"0{whole}{first}"), int(f"0{whole}{first}{again}")
        below = 10 ** len(first + again) - 10 ** len(first)
        return rf"{sign}\frac{{{ending_never - ending_once}}}{{{below}}}"
    return text
