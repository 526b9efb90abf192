"""How numbers are written for people."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 3:02:01."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
