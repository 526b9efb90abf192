"""What a run's server took of a GPU's memory, beside what was expected: a JSON file in the run's folder."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer.atomic import write_file
from trainer.records.metrics import RecordsBroken

MEMORY_FILE = "memory.json"


class PairMemory(BaseModel):
    """Both models on one tensor-parallel rank; with n tokens of context, Eq. 4 is the student's weights + n times its
    cache of a token, Eq. 6 the teacher's, Eq. 5 their sum (App. C)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    student_weights: int = Field(ge=1, description="bytes")
    teacher_weights: int = Field(ge=1, description="bytes")
    student_kv: int = Field(ge=1, description="bytes of a token's keys and values")
    teacher_kv: int = Field(ge=1, description="bytes of a token's keys and values")

    def student_bytes(self, tokens: int) -> int:
        """Eq. 4: generation by the student alone."""
        return self.student_weights + tokens * self.student_kv

    def teacher_bytes(self, tokens: int) -> int:
        """Eq. 6: what the teacher adds."""
        return self.teacher_weights + tokens * self.teacher_kv

    def blended_bytes(self, tokens: int) -> int:
        """Eq. 5: generation by the blend."""
        return self.student_bytes(tokens) + self.teacher_bytes(tokens)


class ServerMemory(BaseModel):
    """One server's account when the run was started, and what the two ``config.json`` let expect."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    predicted: PairMemory | None = Field(description="from the two configurations; null: they could not be counted")
    allocated: PairMemory = Field(description="as the server says: its loaded parameters, and its pools' cells")
    pool_tokens: int = Field(ge=1, description="that the server's KV pools hold")
    ranks: int = Field(ge=1, description="that a model is divided among")


def write_memory(run_folder: Path, memory: ServerMemory) -> None:
    """Keep it, instead of what a start before had.

    Raises:
        OSError: the disk is full or gone.
    """
    write_file(run_folder / MEMORY_FILE, memory.model_dump_json(indent=1) + "\n")


def read_memory(run_folder: Path) -> ServerMemory | None:
    """What a run's folder has of it.

    Raises:
        RecordsBroken: the file is damaged.
    """
    path = run_folder / MEMORY_FILE
    try:
        return ServerMemory.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise RecordsBroken(f"{path}: {error.errors()[0]['msg']}; remove it to go on without it") from None
