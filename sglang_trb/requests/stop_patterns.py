"""How long, and in how many ways, a regular expression can match: the bounds of ``stop_regex``.

The scheduler searches each stop pattern in the end of the text at every token, for all requests in one thread. A
pattern that can match in millions of ways would stop the server, so its cost is bounded before it gets there.
"""

from __future__ import annotations

import re
import re._constants as ops  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]

from sglang_trb.errors import InvalidParameter

MAX_BYTES = 256
MAX_LENGTH = 1024
MAX_WAYS = 4096
ALLOWED = (
    f"a Python regular expression of at most {MAX_BYTES} bytes that matches at most {MAX_LENGTH} characters (so no *, "
    f"+ or {{n,}}: write {{0,64}}), in at most {MAX_WAYS} ways, without look-around or references to groups"
)

_REPEATS = (ops.MAX_REPEAT, ops.MIN_REPEAT, ops.POSSESSIVE_REPEAT)
_CHARACTERS = (ops.LITERAL, ops.NOT_LITERAL, ops.IN, ops.ANY)


def check(name: str, pattern: str) -> None:
    """Raise `InvalidParameter` unless the pattern compiles and is within the bounds."""
    try:
        tree = parser.parse(pattern) if 0 < len(pattern.encode()) <= MAX_BYTES else None
        bounds = _bounds(tree) if tree is not None else None
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError, UnicodeEncodeError) as error:
        raise InvalidParameter(name, pattern, f"{ALLOWED} ({error})") from None
    if bounds is None or bounds[0] > MAX_LENGTH or bounds[1] > MAX_WAYS:
        raise InvalidParameter(name, pattern, ALLOWED)


def _bounds(tree: parser.SubPattern) -> tuple[float, float]:
    """The longest match in characters, and the number of ways to match; infinite where unbounded or not understood."""
    length, ways = 0.0, 1.0
    for op, value in tree:
        if op in _CHARACTERS:
            length += 1
        elif op is ops.BRANCH:
            branches = [_bounds(branch) for branch in value[1]]
            length += max(inner_length for inner_length, _ in branches)
            ways *= sum(inner_ways for _, inner_ways in branches)
        elif op in (ops.SUBPATTERN, ops.ATOMIC_GROUP):
            inner_length, inner_ways = _bounds(value[-1] if op is ops.SUBPATTERN else value)
            length += inner_length
            ways *= inner_ways
        elif op in _REPEATS and value[1] <= MAX_LENGTH:
            low, high, inner = value
            inner_length, inner_ways = _bounds(inner)
            length += high * inner_length
            ways *= sum(min(inner_ways, MAX_WAYS + 1.0) ** min(count, 64) for count in range(low, high + 1))
        elif op is not ops.AT:
            return float("inf"), float("inf")
    return length, ways
