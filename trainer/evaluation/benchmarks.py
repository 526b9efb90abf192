"""A benchmark as it is drawn: its problems, rendered, and the requests of its responses."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence

from sglang_trb.wire.params import BlendParams, Return, Rule
from trainer.config.run import Benchmark, RunConfig
from trainer.data.problems import Problem
from trainer.data.prompts import Renderer
from trainer.data.record import BenchmarkData, digest
from trainer.errors import TrainerError
from trainer.rollouts.rollout import RolloutKey, RolloutRequest


class TooLong(TrainerError, ValueError):
    """No problem of a benchmark has room in the servers' context."""


@dataclasses.dataclass(frozen=True)
class RenderedBenchmark:
    """One benchmark.

    Attributes:
        settings: of the configuration.
        problems, prompts: in order, and each as token ids.
    """

    settings: Benchmark
    problems: tuple[Problem, ...]
    prompts: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, settings: Benchmark, problems: Sequence[Problem], render: Renderer) -> RenderedBenchmark:
        """Render the problems of a benchmark."""
        return cls(settings, tuple(problems), tuple(render(problem.question) for problem in problems))

    @property
    def wanted(self) -> int:
        """Responses."""
        return len(self.problems) * self.settings.samples

    def too_long(self, room: int) -> list[int]:
        """Indices of the problems that are longer than ``room`` tokens.

        Raises:
            TooLong: all are.
        """
        found = [index for index, prompt in enumerate(self.prompts) if len(prompt) > room]
        if len(found) == len(self.problems):
            raise TooLong(
                f"evaluation.benchmarks, {self.settings.name}: got no problem of at most {room} tokens, what the "
                "servers' context leaves beside a response; allowed: at least one (a longer --context-length, or a "
                "smaller evaluation.max_new_tokens)"
            )
        return found

    def say_too_long(self, room: int, note: Callable[[str], None]) -> None:
        """Tell people how many problems get no response, if any. Raises: TooLong: none gets one."""
        too_long = self.too_long(room)
        if too_long:
            count = f"{len(too_long)} of {len(self.problems)} problems"
            note(f"{self.settings.name}: {count} are longer than the {room} tokens that the servers' context leaves")

    def requests(self, config: RunConfig, step: int, weight_version: str, room: int) -> list[RolloutRequest]:
        """The student's own responses; one of them brings the numbers that show what they were drawn from.

        The others come without: their servers leave the teacher out.
        """
        settings, too_long = config.evaluation, set(self.too_long(room))
        requests: list[RolloutRequest] = []
        for index, prompt in enumerate(self.prompts):
            for sample in range(self.settings.samples if index not in too_long else 0):
                key = RolloutKey(step, index, sample)
                blend = BlendParams(Rule.STUDENT, returned=Return.NONE if requests else Return.TOKENS)
                seed, limit = key.seed(~config.seed), settings.max_new_tokens
                requests.append(RolloutRequest(key, prompt, blend, settings.temperature, limit, seed, weight_version))
        return requests

    def file_name(self, config: RunConfig) -> str:
        """Of the journal: other for all that decides about a response and its grade, but not for how many there are."""
        texts = [(problem.question, problem.answer, prompt) for problem, prompt in self._pairs()]
        settings, first = config.evaluation, RolloutKey(0, 0, 0)
        # Step 0 is whatever student the configuration names.
        about = (texts, config.models.student, settings.temperature, settings.max_new_tokens, first.seed(~config.seed))
        return f"{self.settings.name}-{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]}.rollouts"

    def problems_digest(self) -> str:
        """Of the questions and answers in their order, however they are rendered."""
        texts = [(problem.question, problem.answer) for problem in self.problems]
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]

    def data(self) -> BenchmarkData:
        """What the run's record of its data says of it."""
        source = self.settings.model_dump(mode="json", exclude={"samples"})
        return BenchmarkData(source, tuple(digest(p.question, p.answer, prompt) for p, prompt in self._pairs()))

    def _pairs(self) -> list[tuple[Problem, tuple[int, ...]]]:
        return list(zip(self.problems, self.prompts, strict=True))
