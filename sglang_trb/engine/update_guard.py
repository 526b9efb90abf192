"""Whether the server may answer requests, given what weight updates have done to the student.

A small state machine without SGLang in it. Single-call updates (disk) replace the whole checkpoint; sessions
(``begin_weight_update`` … ``end_weight_update``) write it in parts.
"""

from __future__ import annotations

UPDATING = "the student's weights are being updated; try again when the update has ended"
HALF_WRITTEN = (
    "a weight update failed after it had begun to write: the student's weights are neither the old nor the new ones. "
    "Requests are refused until an update succeeds"
)

TEACHER_CHANGED = "the teacher's weights have changed since they were loaded: requests are refused until a restart"
"""Starts the scheduler's answer when it finds that."""

BUSY = "requests are in flight"
"""Starts the scheduler's answer to an update that it did not begin; the same call may be tried again."""

UNTOUCHED = "nothing was changed: "
"""Starts the scheduler's answer to an update that failed before a byte was written."""


class UpdateGuard:
    """Tracks updates; `refusal` says why requests are refused at present, or None."""

    def __init__(self) -> None:
        self._half_written = False
        self._session_open = False
        self._session_whole = False
        """Its last part was written."""
        self._session_touched = False
        """It wrote something."""
        self._teacher: str | None = None
        """What was found about the teacher; nothing repairs it."""

    @property
    def updating(self) -> bool:
        """A session is open, on a student that was whole before."""
        return self._session_open and not self._half_written and self._teacher is None

    @property
    def teacher_is_whole(self) -> bool:
        """As far as is known."""
        return self._teacher is None

    @property
    def refusal(self) -> str | None:
        """Why requests are refused just now; None: they are not."""
        if self._teacher is not None:
            return self._teacher
        if self._half_written:
            return HALF_WRITTEN
        return UPDATING if self._session_open else None

    def looked_at_teacher(self, message: str) -> bool:
        """An answer of the scheduler, which may have compared the teacher; whether it found a change."""
        if message.startswith(TEACHER_CHANGED):
            self._teacher = message
        return message.startswith(TEACHER_CHANGED)

    def replaced(self, success: bool, message: str) -> None:
        """A single-call update of the whole checkpoint has ended."""
        if success:
            self._half_written = False
        else:
            self._note_failure(message)

    def begun(self) -> None:
        """A session was opened: from now on the weights are a mixture until it ends."""
        self._session_open, self._session_whole, self._session_touched = True, False, False

    def wrote(self, success: bool, message: str) -> None:
        """A part of a session has been written, or could not be."""
        self._session_whole = success
        if success:
            self._session_touched = True
        elif self._session_touched:
            self._half_written = True
        else:
            self._note_failure(message)

    def ended(self) -> None:
        """The session was closed; one that wrote without a failure at its end makes the weights whole again."""
        if self._session_whole:
            self._half_written = False
        self._session_open = False

    def abandoned(self) -> None:
        """The session was closed by someone else than its writer, who is gone: what it wrote is a part at best."""
        self._half_written |= self._session_touched
        self._session_open = False

    def _note_failure(self, message: str) -> None:
        if not (message.startswith((UNTOUCHED, BUSY)) and "|" not in message):
            self._half_written = True
