"""The training prompts in the run's order: a function of the problems and the seed, shared by all methods."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from trainer.errors import TrainerError


class UnusablePrompts(TrainerError, ValueError):
    """No prompt is left, or the tokenizer cannot render them."""


class ProblemLike(Protocol):
    """What is read of a problem (`trainer.data.problems.Problem`)."""

    @property
    def id(self) -> str:
        """Names it in messages."""

    @property
    def question(self) -> str:
        """The text of the prompt."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt of the stream.

    Attributes:
        position: in the stream; names its rollouts.
        problem: index into the list of problems.
        token_ids: as the server gets them.
    """

    position: int
    problem: int
    token_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Renderer:
    """Turns a question into token ids with the student's tokenizer.

    Attributes:
        tokenizer: a transformers tokenizer.
        template: ``chat``, the tokenizer's chat template with a generation prompt, or ``raw``, the question with what
            the tokenizer adds to any text, such as a BOS: the ids that the server would make of it.
        system_prompt: first message of the chat, or None.
        enable_thinking: handed to the template where it is not None.
    """

    tokenizer: Any
    template: str = "chat"
    system_prompt: str | None = None
    enable_thinking: bool | None = None

    def __post_init__(self) -> None:
        if self.template == "chat" and not self.tokenizer.chat_template:
            raise UnusablePrompts(
                "data.template: got 'chat', but the student's tokenizer has no chat template; use 'raw'"
            )
        if self.template == "raw" and self.system_prompt is not None:
            raise UnusablePrompts("data.system_prompt: got a text; allowed: null with data.template 'raw'")

    def __call__(self, question: str) -> tuple[int, ...]:
        if self.template == "raw":
            return tuple(self.tokenizer(question)["input_ids"])
        system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        options = {} if self.enable_thinking is None else {"enable_thinking": self.enable_thinking}
        return tuple(
            self.tokenizer.apply_chat_template(
                [*system, {"role": "user", "content": question}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
                **options,
            )
        )


class PromptStream:
    """An endless stream of prompts, one epoch after the other.

    Args:
        problems: in their file's order.
        render: question to token ids.
        max_prompt_tokens: longer ones are left out.
        per_step: prompts of one step.
        first: position of step 0's first prompt; those before it are another stage's.
        seed: of the permutation of each epoch; None keeps the problems' order.
        room: tokens that the servers leave for a prompt beside its response; longer ones are left out. None: any.

    Attributes:
        left_out: how many problems are not used, by reason.
        usable: index of a problem and its token ids, of those that are used, in the problems' order.

    Raises:
        UnusablePrompts: none is left, or fewer than one step needs.
    """

    def __init__(
        self,
        problems: Sequence[ProblemLike],
        render: Renderer,
        *,
        max_prompt_tokens: int,
        per_step: int,
        seed: int | None,
        room: int | None = None,
        first: int = 0,
    ) -> None:
        self.left_out: Counter[str] = Counter()
        self._per_step, self._seed, self._first = per_step, seed, first
        self.usable: list[tuple[int, tuple[int, ...]]] = []
        for index, problem in enumerate(problems):
            token_ids = render(problem.question)
            if not token_ids:
                self.left_out["empty"] += 1
            elif len(token_ids) > max_prompt_tokens:
                self.left_out[f"longer than {max_prompt_tokens} tokens"] += 1
            elif room is not None and len(token_ids) > room:
                self.left_out[f"longer than the {room} tokens that the servers' context leaves beside a response"] += 1
            else:
                self.usable.append((index, token_ids))
        if len(self.usable) < per_step:
            raise UnusablePrompts(
                f"data: got {len(self.usable)} usable prompts of {len(problems)} "
                f"(left out: {dict(self.left_out)}); allowed: at least rollouts.prompts_per_step = {per_step}"
            )
        self._orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        """Prompts of one epoch."""
        return len(self.usable)

    @property
    def longest(self) -> int:
        """Tokens of the longest usable prompt."""
        return max(len(token_ids) for _, token_ids in self.usable)

    def step(self, k: int) -> list[Prompt]:
        """The prompts of step k: positions first + k * per_step and following."""
        start = self._first + k * self._per_step
        return [self._at(position) for position in range(start, start + self._per_step)]

    def _at(self, position: int) -> Prompt:
        epoch, index = divmod(position, len(self))
        problem, token_ids = self.usable[self._order(epoch)[index]]
        return Prompt(position, problem, token_ids)

    def _order(self, epoch: int) -> np.ndarray:
        if self._seed is None:
            return np.arange(len(self))
        if epoch not in self._orders:
            self._orders = {epoch: np.random.default_rng([self._seed, epoch]).permutation(len(self))}
        return self._orders[epoch]
