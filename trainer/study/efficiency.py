"""App. C: the memory that a sequence takes with and without the teacher, as predicted and as a server allocated it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sglang_trb.checkpoints.memory import GIB, KIB
from sglang_trb.display.completions import number
from trainer.records import PairMemory, ServerMemory, read_memory
from trainer.study.results import StudyResult

HEADS = ("quantity", "predicted_bytes", "allocated_bytes")


class Efficiency:
    """Predicted beside allocated, of the first run that recorded it.

    Args:
        tokens: of the longest sequence: prompt and response.
        memory: of the run's server.
    """

    def __init__(self, tokens: int, memory: ServerMemory) -> None:
        self.tokens, self.memory = tokens, memory

    def rows(self) -> list[tuple[str, int | None, int]]:
        """`HEADS` for each quantity, bytes on one rank."""
        before, now = self.memory.predicted, self.memory.allocated
        return [
            (name, None if before is None else of(before), of(now)) for name, of in _quantities(self.tokens).items()
        ]

    def shown(self) -> Iterator[dict[str, Any]]:
        """The rows as text, with how far the allocated bytes are from the predicted."""
        for name, predicted, allocated in self.rows():
            apart = None if predicted is None else allocated / predicted - 1
            text = "–" if apart is None else "equal" if apart == 0 else f"{100 * apart:+.2g}%".replace("-", "−")
            yield {
                "name": name,
                "predicted": "–" if predicted is None else _size(predicted),
                "allocated": _size(allocated),
                "apart": text,
            }


def efficiency(study: StudyResult) -> Efficiency | None:
    """None where no run of the study recorded its server's memory.

    Raises:
        RecordsBroken: a record is damaged.
        SettingsBroken: a run's settings are.
    """
    for member in study.members:
        for run in member.runs:
            if memory := read_memory(run.folder):
                return Efficiency(run.config().longest_sequence, memory)
    return None


def _quantities(tokens: int) -> dict[str, Callable[[PairMemory], int]]:
    return {
        "Student’s weights": lambda m: m.student_weights,
        "Teacher’s weights": lambda m: m.teacher_weights,
        "Student’s cache of a token": lambda m: m.student_kv,
        "Teacher’s cache of a token": lambda m: m.teacher_kv,
        "Student alone (Eq. 4)": lambda m: m.student_bytes(tokens),
        "Blended (Eq. 5)": lambda m: m.blended_bytes(tokens),
        "Added by the teacher (Eq. 6)": lambda m: m.teacher_bytes(tokens),
    }


def _size(size: int) -> str:
    for unit, name in ((GIB, "GiB"), (1 << 20, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{number(size / unit)} {name}"
    return f"{size} bytes"
