"""What one process has for all: the servers, the training prompts, the benchmarks, the grader."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from transformers import AutoTokenizer

from sglang_trb.pair.pair import Pair
from trainer.config.run import Benchmark, RunConfig
from trainer.data.problems import BadProblems, read_problems
from trainer.data.prompts import Renderer
from trainer.evaluation.benchmarks import RenderedBenchmark
from trainer.grading.grader import Grade, Grader, Verdict
from trainer.rollouts.rollout import Rollout
from trainer.rollouts.versions import weight_version
from trainer.run.beside import Beside
from trainer.run.data_plan import lay_out_prompts
from trainer.run.servers import OnRollout, Servers


class Leader(contextlib.AbstractContextManager):
    """Use as a context manager; entering starts or reaches the servers, and lays out the run's prompts.

    Args:
        config: the run.
        pair: as this process read it from the checkpoints.
        note: called with a line for people.
        on_rollout: called with (finished, wanted, tokens) as rollouts come.
        trains: false: for evaluations only, without the training problems.

    Attributes:
        servers: of the run.
        beside: where they are asked while the training goes on.
        problems, prompts: of the training; the prompts once the servers are reached.
        benchmarks: by name.

    Raises:
        NoAdminKey: the configuration's push needs one.
        BadProblems: data or a benchmark cannot be read.
    """

    def __init__(
        self,
        config: RunConfig,
        pair: Pair,
        note: Callable[[str], None],
        on_rollout: OnRollout = lambda done, wanted, tokens: None,
        *,
        trains: bool = True,
    ) -> None:
        self.config, self.pair, self.note = config, pair, note
        self.servers = Servers(config, pair, note, on_rollout, apart=not trains)
        self._tokenizer = AutoTokenizer.from_pretrained(config.models.student)
        data = config.data
        self._render = Renderer(self._tokenizer, data.template, data.system_prompt, data.enable_thinking)
        # Now, so that a file that is missing does not end the run after hours.
        self.problems = read_problems(data, note) if trains else []
        self.benchmarks = {b.name: self._read_benchmark(b) for b in config.evaluation.benchmarks}
        self._token = secrets.token_hex(4)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Leader:
        with self._stack as stack:
            self._grader = stack.enter_context(Grader(self.config.evaluation.grader_workers))
            servers = stack.enter_context(self.servers)
            self.beside = stack.enter_context(Beside(servers.cancel))
            if self.problems:
                self.prompts = lay_out_prompts(
                    self.config, self.problems, self._render, self.benchmarks, servers.ask_limits, self.note
                )
                servers.require_room_for(self.prompts.longest)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)

    def weight_version(self, step: int) -> str:
        """Of the student after ``step`` updates. Unlike any that another process gave out: a name alone could be of
        other weights."""
        return weight_version(self.config.name, step, self._token)

    def grade(self, rollouts: Sequence[Rollout], golds: Sequence[str | None]) -> list[Grade | None]:
        """Each response against its gold answer; None where there is none."""
        texts = [self._tokenizer.decode(r.token_ids_T, skip_special_tokens=True) for r in rollouts]
        known = [(text, gold) for text, gold in zip(texts, golds, strict=True) if gold is not None]
        grades = self._grader.grade(known)
        faults = [grade.reason for grade in grades if grade.verdict is Verdict.FAULT]
        if faults:
            self.note(f"the grader has no verdict on {len(faults)} of {len(known)} responses, one for: {faults[0]}")
        verdicts = iter(grades)
        return [None if gold is None else next(verdicts) for gold in golds]

    def _read_benchmark(self, benchmark: Benchmark) -> RenderedBenchmark:
        try:
            return RenderedBenchmark.of(benchmark, read_problems(benchmark, self.note), self._render)
        except BadProblems as error:
            raise BadProblems(f"evaluation.benchmarks, {benchmark.name}: {error}") from None
