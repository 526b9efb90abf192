"""What a run will do and how much memory it will take, from the configuration alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from sglang_trb.checkpoints.folder import checkpoint_folder
from sglang_trb.checkpoints.memory import GIB, model_config, model_memory
from sglang_trb.checkpoints.weight_files import read_layout
from sglang_trb.wire.params import Return
from sglang_trb.wire.record import SUPPORT_COLUMNS, TokenStatistics
from trainer.config.run import RunConfig


@dataclasses.dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one process, without activations and DeepSpeed's buckets (some GiB on a GPU).

    Attributes:
        weights, gradients, optimiser: after ZeRO has divided them among the processes.
        head: logits of one chunk of positions with what its backward pass needs, and the head's float32 gradient.
    """

    weights: int
    gradients: int
    optimiser: int
    head: int

    @property
    def total(self) -> int:
        """Bytes."""
        return self.weights + self.gradients + self.optimiser + self.head


def training_memory(config: RunConfig, processes: int) -> TrainingMemory:
    """An estimate: AdamW has two float32 moments; bfloat16 weights have a float32 copy, and their gradients a float32
    sum. ZeRO stage 1 divides optimiser and copy, stage 2 the gradients, stage 3 the weights.

    Raises:
        InvalidParameter: the student's configuration cannot be found.
    """
    parameters = model_memory(config.models.student).parameters
    model = model_config(config.models.student)
    vocabulary, hidden = int(model["vocab_size"]), int(model["hidden_size"])
    stage, element = config.optimisation.zero_stage, 2 if config.models.dtype == "bfloat16" else 4

    def divided(size: int, from_stage: int) -> int:
        return size // processes if stage >= from_stage else size

    return TrainingMemory(
        weights=divided(parameters * element, 3),
        gradients=divided(parameters * (4 if element == 4 else 6), 2),
        optimiser=divided(parameters * (8 if element == 4 else 12), 1),
        head=4 * vocabulary * (3 * config.optimisation.logits_chunk + hidden),
    )


def forward_tokens(config: RunConfig) -> int:
    """Tokens that a micro-batch has at most, padding included."""
    settings = config.optimisation
    return settings.micro_batch_tokens or settings.micro_batch_size * config.longest_sequence


def journal_bytes(returned: Return) -> int:
    """Of a generated token and its statistics in the journal; on the wire base64 makes it a third more."""
    supports = returned.includes(Return.SUPPORT) + returned.includes(Return.SUPPORT_BOTH)
    return 4 + 4 * len(TokenStatistics.names()) * returned.includes(Return.TOKENS) + 4 * supports * SUPPORT_COLUMNS


def _student_line(student: str) -> str:
    """Refuses a student that could not be trained, as the run's start does, but downloads nothing."""
    from trainer.learner.student_folder import check_student

    try:
        if not Path(student).is_dir():
            read_layout(checkpoint_folder(student, download=False))
    except (OSError, ValueError):
        return f"student: {student} is not on this machine yet; whether it can be trained shows when the run starts"
    tensors = check_student(student, download=False).required
    return f"student: {student}, {len(tensors)} tensors, named by transformers as by its files"


def describe(config: RunConfig, processes: int) -> Iterator[str]:
    """The plan, line by line.

    Raises:
        InvalidParameter: the student cannot be trained.
    """
    rollouts, memory = config.rollouts, training_memory(config, processes)
    per_step = rollouts.prompts_per_step * rollouts.samples_per_prompt
    tokens = per_step * rollouts.max_new_tokens
    yield f"{config.steps} updates, each of {per_step} rollouts of at most {rollouts.max_new_tokens} tokens"
    first = config.data.first_prompt
    yield f"prompts {first} to {first + config.steps * rollouts.prompts_per_step - 1} of the seed's order"
    for step in sorted({0, 1, config.steps // 4, config.steps // 2, config.steps - 1}):
        blend, temperature = config.sampling(step)
        yield f"  step {step:4}: rule {blend.rule.value}, epsilon {blend.epsilon:g}, temperature {temperature:g}"
    yield f"loss: {config.loss.model_dump(mode='json')}"
    size = journal_bytes(config.sampling(0)[0].returned)
    yield f"journal: {size} bytes a token, at most {tokens * size / GIB:.2f} GiB a step"
    yield _student_line(config.models.student)
    evaluation = config.evaluation
    for benchmark in evaluation.benchmarks:
        yield f"evaluation every {evaluation.every}: {benchmark.name}, {benchmark.samples} samples a problem"
    if config.evaluates_beside:
        yield f"evaluations beside the training, on {config.server.urls[-1]}, which takes no rollouts"
    yield (
        f"memory of one of {processes} processes, ZeRO {config.optimisation.zero_stage}, without activations "
        f"and buckets: "
        f"{memory.total / GIB:.2f} GiB (weights {memory.weights / GIB:.2f}, gradients {memory.gradients / GIB:.2f}, "
        f"optimiser {memory.optimiser / GIB:.2f}, head {memory.head / GIB:.2f})"
    )
    yield f"activations grow with the tokens of a forward, with padding at most {forward_tokens(config):,}"
