"""Student and teacher as every process of server and trainer knows them."""

from __future__ import annotations

import dataclasses
import os

from sglang_trb.errors import InvalidParameter
from sglang_trb.pair.alignment import StopAlignment
from sglang_trb.pair.stops import stop_alignment
from sglang_trb.pair.vocab import check_same_vocabulary

STOP_ID_VARIABLES = ("TRB_STUDENT_STOP_IDS", "TRB_TEACHER_STOP_IDS")
"""Environment variables that override a checkpoint's stop ids, for example ``TRB_STUDENT_STOP_IDS=2``.

A server and the trainings that use it need the same ones.
"""


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two checkpoints that can be blended.

    Attributes:
        student, teacher: checkpoint folders or Hugging Face ids.
        vocab_size: ids that the tokenizer defines; ids beyond it are padding of the embedding matrices.
        alignment: how the two sets of stop ids become one event (App. D).
    """

    student: str
    teacher: str
    vocab_size: int
    alignment: StopAlignment

    @classmethod
    def load(cls, student: str, teacher: str) -> Pair:
        """Compare the checkpoints' tokenizers and read their stop ids, or those that the environment names instead.

        Raises:
            PairMismatch, InvalidParameter: the vocabularies differ, or a model has no usable stop id; says what.
        """
        size = check_same_vocabulary(student, teacher).size
        ours, theirs = (_from_environment(name) for name in STOP_ID_VARIABLES)
        alignment = stop_alignment(student, teacher, size, student_override=ours, teacher_override=theirs)
        return cls(student, teacher, size, alignment)


def _from_environment(name: str) -> tuple[int, ...] | None:
    text = os.environ.get(name)
    if not text:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InvalidParameter(name, text, "token ids separated by commas, for example 151643,151645") from None
