"""The exceptions users meet. Each also inherits the standard type a caller would expect to catch."""

import reprlib

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 300
_SHORT.maxlong = 500
_SHORT.maxlist = _SHORT.maxdict = _SHORT.maxset = 16


class TrbError(Exception):
    """Base class of every error raised by sglang-trb."""


class InvalidParameter(TrbError, ValueError):
    """A request or configuration value is wrong; the message names the field, what came and what is allowed."""

    def __init__(self, field: str, received: object, allowed: str) -> None:
        super().__init__(f"{field}: got {_SHORT.repr(received)}; allowed: {allowed}")
        self.field = field


class PairMismatch(TrbError, ValueError):
    """Student and teacher cannot be blended; the message says what differs."""


class NotInForce(TrbError, RuntimeError):
    """Something that blending depends on is not active, so the server refuses to serve."""


class UpdateConflict(TrbError, RuntimeError):
    """A weight update cannot start now; nothing was written (HTTP 409)."""


class ServerFailed(TrbError, RuntimeError):
    """A process of SGLang ended, or the program that wanted the server; the log says why."""
