"""How the student after so many updates is called, on the servers and in the journals."""

from __future__ import annotations

import re

_FORM = re.compile(r"/step-(\d+)@[^/@]*\Z")


def weight_version(run: str, updates: int, token: str) -> str:
    """The name; ``token`` tells this process's weights from those of another, which could be others."""
    return f"{run}/step-{updates}@{token}"


def updates_of(version: str) -> int:
    """How many updates the student of that name has had.

    Raises:
        ValueError: no run gave this name.
    """
    found = _FORM.search(version)
    if found is None:
        raise ValueError(f"weight version: got {version!r}; allowed: RUN/step-UPDATES@TOKEN")
    return int(found[1])
