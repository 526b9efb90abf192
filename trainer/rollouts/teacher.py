"""Is the teacher that a server hosts the one that the configuration names?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sglang_trb.checkpoints.digest import ModelDigest
from trainer.errors import TrainerError


class OtherTeacher(TrainerError, ValueError):
    """A server hosts another teacher than ``models.teacher``."""


class ExpectedTeacher:
    """The teacher of a run, by content: a copy elsewhere is the same teacher.

    Args:
        model: ``models.teacher``; its weights need not be on this machine, then its configuration alone is compared.
        note: called with a line for people where that is so.
    """

    def __init__(self, model: str, note: Callable[[str], None]) -> None:
        self._model, self._digest = model, ModelDigest.of(model)
        if self._digest.weights is None:
            note(f"no safetensors files of {model} are here: servers' teachers are compared by their config.json alone")

    def check(self, url: str, info: Mapping[str, Any]) -> None:
        """Compare with a server's ``/trb/info``.

        Raises:
            OtherTeacher: it hosts another one.
        """
        part = self._digest.difference(ModelDigest.from_wire(info["teacher_digest"]))
        if part is not None:
            raise OtherTeacher(
                f"{url}: teacher: got {info['teacher']!r}, which differs from models.teacher in its {part}; allowed: "
                f"{self._model!r} or a copy of it"
            )
