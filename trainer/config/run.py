"""The configuration of a training run: one YAML file, every field documented, nothing else accepted.

The defaults are the paper's Table 2 where it states a value ("Table 2" below).
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from sglang_trb.wire.params import BlendParams, Return
from trainer.config.behaviour import Behaviour, Steps, TrustRegion
from trainer.config.section import Section
from trainer.config.source import Source
from trainer.losses import LossSettings

TABLE_3: dict[str, dict[str, Any]] = {
    "gsm8k": {"samples": 32, "repo": "openai/gsm8k", "subset": "main"},
    "math500": {"samples": 64, "repo": "HuggingFaceH4/MATH-500", "question_field": "problem"},
    "olympiad": {
        "samples": 64,
        "repo": "Hothan/OlympiadBench",
        "subset": "OE_TO_maths_en_COMP",
        "split": "train",
        "answer_field": "final_answer",
    },
    "amc": {"samples": 512, "repo": "math-ai/amc23"},
    "aime24": {"samples": 512, "repo": "HuggingFaceH4/aime_2024", "split": "train", "question_field": "problem"},
    "aime25": {"samples": 512, "repo": "math-ai/aime25", "question_field": "problem"},
}
"""The problem sets of the paper's evaluation: n, where they are, and their columns."""


class Models(Section):
    """The pair. The teacher is served, never trained."""

    student: str = Field(description="checkpoint folder or Hugging Face id")
    teacher: str = Field(description="checkpoint folder or Hugging Face id, as the server hosts it")
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="of the student's weights while training")


class Data(Source):
    """The training prompts, in an order that depends on ``seed`` alone; the paper has 25,600 of OpenThoughts3-1.2M."""

    shuffle: bool = Field(True, description="permute the prompts by the run's seed; false: the file's order")
    system_prompt: str | None = Field(None, description="system message of every prompt (Table 2's text, App. A)")
    template: Literal["chat", "raw"] = Field(
        "chat", description="the student's chat template, or the question as it is"
    )
    enable_thinking: bool | None = Field(None, description="passed to the chat template; null: the template's default")
    max_prompt_tokens: int = Field(1024, ge=1, description="longer prompts are left out and counted (Table 2)")
    first_prompt: int = Field(
        0, ge=0, description="of that order, for step 0: what SFT warmup has trained on comes before it (Table 4)"
    )


class Rollouts(Section):
    """What is drawn at each step."""

    behaviour: Behaviour = Field(default_factory=TrustRegion, description="who picks the tokens")
    prompts_per_step: int = Field(64, ge=1, description="global batch (Table 2)")
    samples_per_prompt: int = Field(4, ge=1, description="rollouts per prompt (Table 2)")
    max_new_tokens: int = Field(7168, ge=1, description="response length (Table 2)")
    max_staleness: int = Field(
        0,
        ge=0,
        le=16,
        description="updates that the student which draws may be behind the one that trains; 0: draw, then train (the "
        "paper's loop), 1 and more: both at a time",
    )
    request_timeout_s: float = Field(3600, gt=0, description="a straggler is cancelled after this and drawn anew")
    max_attempts: int = Field(5, ge=1, description="of one rollout, before it counts as refused")
    max_refused_share: float = Field(
        0.02,
        ge=0,
        le=1,
        description="of a step's rollouts that may be refused (NaN row) before the run stops; one prompt's always may",
    )


class Server(Section):
    """Where the blended server is: running already, or started and watched by the trainer."""

    urls: tuple[str, ...] = Field((), description="addresses of running servers, each its own (no router in front)")
    launch: str | None = Field(None, description="server configuration (YAML) to start one server on this machine")
    launch_options: tuple[str, ...] = Field((), description="SGLang options that override it")
    admin_key_variable: str = Field("TRB_ADMIN_KEY", description="environment variable with the servers' admin key")
    max_in_flight: int = Field(64, ge=1, description="requests sent to one server at a time")
    unreachable_s: float = Field(900, gt=0, description="how long to wait for a dead server before the run stops")
    allow_broken_teacher: bool = Field(
        False,
        description="go on although the teacher's distributions are nearly uniform, or the same at every position",
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Server:
        if bool(self.urls) == (self.launch is not None):
            raise ValueError("give either urls (running servers) or launch (a server configuration to start)")
        return self

    @field_validator("launch_options")
    @classmethod
    def _without_keys(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        if any(option.partition("=")[0].endswith("api-key") for option in options):
            raise ValueError(
                "got a key, which a run's files would show; allowed: other options; the server gets the admin key from "
                "the environment variable that server.admin_key_variable names"
            )
        return options

    def admin_key(self) -> str | None:
        """The servers' admin key, None where the variable is not set."""
        return os.environ.get(self.admin_key_variable)


class Push(Section):
    """How new weights reach the servers."""

    route: Literal["disk", "tensor", "distributed"] = Field(
        "disk",
        description="disk: a folder that trainer and servers share; tensor: shared memory of one machine, with the "
        "admin key; distributed: NCCL (gloo on CPUs), the trainer's first GPU being none of a server's",
    )
    folder: str | None = Field(
        None, description="of the disk route: gets a folder of the run's name; null: the run's own folder"
    )
    bucket_mib: float = Field(1024, gt=0, description="of the other routes: weights that are sent at a time")


class Optimisation(Section):
    """The update (Table 2)."""

    learning_rate: float = Field(1e-5, gt=0, description="after the warm-up")
    warmup_steps: int = Field(15, ge=0, description="cosine warm-up, then constant")
    betas: tuple[float, float] = Field((0.9, 0.999), description="of AdamW")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    max_grad_norm: float = Field(1.0, gt=0, description="global norm to clip at")
    zero_stage: Literal[0, 1, 2, 3] = Field(1, description="DeepSpeed ZeRO")
    micro_batch_size: int = Field(4, ge=1, description="sequences of one forward on one process")
    micro_batch_tokens: int | None = Field(
        None,
        ge=1,
        description="tokens of one forward on one process, padding included; null: micro_batch_size sequences",
    )
    gradient_checkpointing: bool = Field(False, description="recompute layers in the backward pass to save memory")
    logits_chunk: int = Field(256, ge=1, description="positions whose logits exist at a time")
    max_drift_warn: float = Field(0.02, gt=0, description="mean |log p trainer - log p server|, nats: warn above")
    max_drift_stop: float = Field(0.2, gt=0, description="the same: stop above, the pair of engines disagrees")
    max_skipped_in_a_row: int = Field(2, ge=0, description="updates without a finite gradient, before the run stops")
    max_skipped: int = Field(10, ge=0, description="the same, of the whole run")


class Checkpoints(Section):
    """When the run is kept, and how much of it."""

    every: Steps = Field(20, description="updates between checkpoints")
    keep_last: int = Field(2, ge=1, description="besides the best one")
    keep_journals: bool = Field(False, description="keep all rollouts, not only those since the last checkpoint")


class Benchmark(Source):
    """One problem set and how it is sampled (Table 3).

    The paper's sets are known by name: ``gsm8k`` is one, ``{name: gsm8k, path: F}`` is its n on a local copy.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="as it appears in the records")
    answer_field: str = Field("answer", description="column with the gold answer")
    samples: int = Field(1, ge=1, description="n; of the paper's sets as in Table 3")

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        if isinstance(given, str):
            if given not in TABLE_3:
                raise ValueError(f"a name alone stands for one of {', '.join(TABLE_3)}")
            return {"name": given, **TABLE_3[given]}
        if not isinstance(given, dict) or given.get("name") not in TABLE_3:
            return given
        entry = TABLE_3[given["name"]]
        elsewhere = "path" in given or "repo" in given
        return ({"samples": entry["samples"]} if elsewhere else entry) | given


class Evaluation(Section):
    """pass@1 of the student, during the run (App. A.1)."""

    every: int = Field(20, ge=0, description="updates between evaluations (App. A.1); 0: never")
    at_start: bool = Field(True, description="evaluate before the first update too")
    beside_training: bool = Field(
        False, description="while the training goes on, on the last of server.urls, which then takes no rollouts"
    )
    benchmarks: tuple[Benchmark, ...] = Field((), description="problem sets")
    temperature: float = Field(1.0, ge=0, description="Table 3")
    max_new_tokens: int = Field(8192, ge=1, description="Table 3")
    grader_workers: int = Field(2, ge=1, description="processes of the pool that runs math-verify")

    def is_due(self, step: int, steps: int) -> bool:
        """Whether the student after ``step`` of the run's ``steps`` updates is to be evaluated."""
        if not self.every or not self.benchmarks:
            return False
        return self.at_start if step == 0 else step % self.every == 0 or step == steps

    @model_validator(mode="after")
    def _different_names(self) -> Self:
        names = [benchmark.name for benchmark in self.benchmarks]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"benchmarks: got {twice!r} twice; allowed: a name for each")
        return self


class Records(Section):
    """Where the curves go, besides ``metrics.jsonl``."""

    tensorboard: bool = Field(True, description="write event files to tensorboard/ in the run's folder")
    wandb_project: str | None = Field(None, description="null: wandb is not used")


class RunConfig(Section):
    """A whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the run's folder and its weights")
    folder: str = Field("runs", description="where the run's folder is made")
    seed: int = Field(0, ge=0, description="of the prompt order, the rollouts and the initialisation")
    steps: Steps = Field(400, description="optimiser updates; the paper's epoch has 400")
    models: Models
    data: Data
    rollouts: Rollouts = Rollouts()
    loss: LossSettings = Field(description="one of docs/methods.md#losses; every report names its form")
    server: Server
    push: Push = Push()
    optimisation: Optimisation = Optimisation()
    checkpoints: Checkpoints = Checkpoints()
    evaluation: Evaluation = Evaluation()
    records: Records = Records()

    @model_validator(mode="after")
    def _float32_sums(self) -> Self:
        if self.models.dtype == "bfloat16" and self.optimisation.zero_stage == 0:
            raise ValueError(
                "optimisation.zero_stage: got 0 with models.dtype bfloat16, where gradients are summed in bfloat16; "
                "allowed: 1 to 3 (on one process 1 is the same), or float32"
            )
        return self

    @model_validator(mode="after")
    def _holds_a_sequence(self) -> Self:
        tokens = self.optimisation.micro_batch_tokens
        if tokens is not None and tokens < self.longest_sequence:
            raise ValueError(
                f"optimisation.micro_batch_tokens: got {tokens}; allowed: at least {self.longest_sequence}, the longest"
                " sequence (data.max_prompt_tokens + rollouts.max_new_tokens), or null"
            )
        return self

    @model_validator(mode="after")
    def _can_evaluate_beside(self) -> Self:
        if not self.evaluation.beside_training:
            return self
        *others, last = [url.rstrip("/") for url in self.server.urls] or [""]
        if not others or last in others:
            raise ValueError(
                f"evaluation.beside_training: got true with server.urls {list(self.server.urls)}; allowed: false, or "
                "true with two servers and more, the last of which is for evaluations alone"
            )
        if self.evaluation.every % self.checkpoints.every != 0:
            raise ValueError(
                f"evaluation.every: got {self.evaluation.every} with checkpoints.every {self.checkpoints.every}; "
                "allowed with evaluation.beside_training: a multiple of checkpoints.every, since the checkpoint of its "
                "step is evaluated"
            )
        return self

    @field_validator("folder")
    @classmethod
    def _is_a_path(cls, folder: str) -> str:
        try:
            Path(folder).expanduser()
        except RuntimeError as error:
            raise ValueError(f"got {folder!r}; allowed: a path ({error})") from None
        if "\0" in folder:
            raise ValueError(f"got {folder!r}; allowed: a path")
        return folder

    @property
    def run_folder(self) -> Path:
        """The run's own folder."""
        return Path(self.folder).expanduser() / self.name

    @property
    def evaluates_beside(self) -> bool:
        """Whether a server is kept for evaluations."""
        return self.evaluation.beside_training and self.evaluation.every > 0 and bool(self.evaluation.benchmarks)

    @property
    def longest_sequence(self) -> int:
        """Tokens that a prompt and its response may have together."""
        return self.data.max_prompt_tokens + self.rollouts.max_new_tokens

    def sampling(self, step: int) -> tuple[BlendParams, float]:
        """The rule of the rollouts of step k, and their temperature; the statistics that the loss needs come along."""
        blend, temperature = self.rollouts.behaviour.at(step)
        if self.loss.needs_teacher_support:
            blend = dataclasses.replace(blend, returned=Return.SUPPORT_BOTH)
        return blend, temperature
