"""The trainer's commands of ``trb``."""

from __future__ import annotations

import signal
from typing import Any

COMMANDS = {
    "train": "distil the teacher into the student: collect, train, push, evaluate; resumes by itself",
    "evaluate": "pass@1 of a run's checkpoint, with its interval",
    "study": "every method, setting and seed of a comparison, resumed where it was stopped",
    "probe": "whether a behaviour policy writes better prefixes than the student (Fig. 4)",
    "report": "curves and a page of finished or running trainings",
}
"""Each name is a module of this package with ``run(argv) -> exit status``."""


def stop_on_sigterm() -> None:
    """SIGTERM does what Ctrl-C does: servers end, state is in order."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(*_: Any) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so shells start what a script puts into the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)
