"""The exceptions of the trainer. Each also inherits the standard type a caller would expect to catch."""

from sglang_trb.errors import TrbError


class TrainerError(TrbError):
    """Base class of the trainer's own errors."""
