"""The pair's valid ids and stop ids."""

from __future__ import annotations

from sglang_trb.stops import stop_alignment
from sglang_trb.vocab import check_same_vocabulary
from trainer.config import RunConfig
from trainer.log_probs import Vocabulary


def shared_vocabulary(config: RunConfig) -> Vocabulary:
    """As its checkpoints say; the servers must say the same."""
    size = check_same_vocabulary(config.models.student, config.models.teacher).size
    return Vocabulary(size, stop_alignment(config.models.student, config.models.teacher, size))
