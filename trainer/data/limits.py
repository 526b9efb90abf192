"""How long a request the servers take, as their ``/trb/info`` says."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Limits:
    """In tokens; what is longer is refused, or its response cut off without a word.

    Attributes:
        prompt_tokens: of a prompt.
        total_tokens: of a prompt and the longest response to it that was asked for.
    """

    prompt_tokens: int
    total_tokens: int

    @classmethod
    def of_info(cls, info: Mapping[str, Any]) -> Limits:
        """Raises: KeyError, TypeError: no account of a blended server."""
        return cls(info["limits"]["prompt_tokens"], info["limits"]["total_tokens"])

    @classmethod
    def least(cls, limits: Iterable[Limits]) -> Limits:
        """What each of several servers takes; at least one."""
        known = list(limits)
        return cls(min(one.prompt_tokens for one in known), min(one.total_tokens for one in known))

    def room(self, new_tokens: int) -> int:
        """The longest prompt beside a response of this length; below 1 where none has room."""
        return min(self.prompt_tokens, self.total_tokens - new_tokens)
