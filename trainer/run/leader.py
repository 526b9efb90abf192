"""What one process does for all: servers, prompts, journals, grading, evaluation.

The leader's methods are synchronous; inside, requests run on an event loop of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import uvloop
from transformers import AutoTokenizer

from sglang_trb.launch.local_server import ADMIN_KEY_VARIABLE, LocalServer
from sglang_trb.pair.pair import Pair
from trainer.config.run import Benchmark, RunConfig
from trainer.data.limits import Limits
from trainer.data.problems import BadProblems, read_problems
from trainer.data.prompts import Renderer
from trainer.errors import TrainerError
from trainer.evaluation.benchmarks import RenderedBenchmark
from trainer.grading.grader import Grade, Grader, Verdict
from trainer.push import make_pusher
from trainer.records import EVALUATIONS
from trainer.rollouts.client import TrbClient, session
from trainer.rollouts.collector import Collector
from trainer.rollouts.journal import StepJournal, set_aside, step_path
from trainer.rollouts.launch import WatchedServer
from trainer.rollouts.rollout import Order, Refusal, Rollout, RolloutKey
from trainer.rollouts.server_check import ServerCheck
from trainer.rollouts.servers import ServerPool
from trainer.run.data_plan import lay_out_prompts
from trainer.statistics import PassAt1, pass_at_1

Result = TypeVar("Result")
Progress = Callable[[int, int, int], None]


class NoAdminKey(TrainerError, ValueError):
    """The tensor route unpickles what it gets, so servers want a key for it."""


class Leader(contextlib.AbstractContextManager):
    """Use as a context manager; entering starts or reaches the servers, and lays out the run's prompts.

    Args:
        config: the run.
        pair: as this process read it from the checkpoints.
        note: called with a line for people.
        on_rollout: called with (finished, wanted, tokens) as rollouts come.
        trains: false: for evaluations only, without the training problems.

    Attributes:
        refused: of the step that was collected last.

    Raises:
        NoAdminKey: the configuration's push needs one.
    """

    def __init__(
        self,
        config: RunConfig,
        pair: Pair,
        note: Callable[[str], None],
        on_rollout: Progress,
        *,
        trains: bool = True,
    ) -> None:
        self.config, self._note, self._on_rollout = config, note, on_rollout
        self._check = ServerCheck(config, pair, note)
        self.tokenizer = AutoTokenizer.from_pretrained(config.models.student)
        data = config.data
        self._render = Renderer(self.tokenizer, data.template, data.system_prompt, data.enable_thinking)
        # Now, so that a file that is missing does not end the run after hours.
        self.problems = read_problems(data, note) if trains else []
        self._benchmarks = {b.name: self._read_benchmark(b) for b in config.evaluation.benchmarks}
        self.refused: list[Refusal] = []
        self._token = secrets.token_hex(4)
        self.pusher = make_pusher(config.push, config.run_folder, config.models.student)
        self._admin_key = config.server.admin_key()
        if self._admin_key is None and config.server.launch is not None:
            self._admin_key = secrets.token_urlsafe()
        if self._admin_key is None and config.push.route == "tensor":
            raise NoAdminKey(
                f"push.route: got 'tensor' without an admin key; allowed: with the servers' --admin-api-key in the "
                f"environment variable {config.server.admin_key_variable}"
            )
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Leader:
        config = self.config
        with self._stack as stack:
            self._grader = stack.enter_context(Grader(config.evaluation.grader_workers))
            urls, revive = self._start_servers(stack)
            # Ctrl-C cancels what runs on the loop, and is raised here once that has ended.
            self._runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
            http = self._run(_async(session))
            stack.callback(lambda: self._run(http.close()))
            clients = [TrbClient(url, http, self._admin_key) for url in urls]
            self.pool = ServerPool(clients, config.server.unreachable_s, self._note, revive, self._check)
            self._collector = Collector(
                self.pool,
                max_in_flight=config.server.max_in_flight,
                request_timeout_s=config.rollouts.request_timeout_s,
                max_attempts=config.rollouts.max_attempts,
                on_progress=self._on_rollout,
                note=self._note,
            )
            if self.problems:
                self.prompts = lay_out_prompts(
                    config, self.problems, self._render, self._benchmarks, self._ask_limits, self._note
                )
                self._check.longest_prompt = self.prompts.longest
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)

    def serve(self, weights: Mapping[str, torch.Tensor], step: int) -> None:
        """Bring every server to the student after ``step`` updates; checks that they host the right pair."""
        self.pusher.hold(weights, self.weight_version(step))
        self._expect(step)

    def serve_folder(self, folder: str | Path, step: int) -> None:
        """The same with a checkpoint that is on disk already."""
        self.pusher.hold_folder(folder, self.weight_version(step))
        self._expect(step)

    def _expect(self, step: int) -> None:
        self.pool.expect(self.weight_version(step), self.pusher.resync)
        self._run(self.pool.all_ready())

    def weight_version(self, step: int) -> str:
        """Unlike any that another process gave out: a name alone could be of other weights."""
        return f"{self.config.name}/step-{step}@{self._token}"

    def journal(self, step: int) -> StepJournal:
        return StepJournal(step_path(self.config.run_folder / "journal", step))

    def is_collected(self, step: int) -> bool:
        """Whether the journal has every rollout of step k already."""
        with self.journal(step) as journal:
            return len(journal.entries) == len(self._orders(step))

    def set_aside(self, step: int) -> Path:
        """Put the step's rollouts where nobody takes them for it; returns where that is."""
        return set_aside(self.journal(step).path)

    def collect(self, step: int) -> list[Rollout]:
        """The rollouts of step k in the order of their keys; from the journal where it has them."""
        with self.journal(step) as journal:
            orders = self._orders(step)
            if len(journal.entries) < len(orders):
                self._run(self._collector.collect(orders, journal, self.config.rollouts.max_refused_share))
            self.refused = journal.refusals()
            if self.refused:
                self._note(f"step {step}: {_told(self.refused, len(orders))}")
            return journal.rollouts()

    def grade(self, rollouts: Sequence[Rollout]) -> list[Grade | None]:
        """Each rollout against its problem's gold answer; None where the problem has none."""
        steps = {rollout.key.step for rollout in rollouts}
        by_position = {p.position: p.problem for step in steps for p in self.prompts.step(step)}
        golds = [self.problems[by_position[rollout.key.prompt]].answer for rollout in rollouts]
        return self._graded(rollouts, golds)

    def evaluate(self, benchmark: Benchmark, step: int) -> tuple[PassAt1, int]:
        """pass@1 of the served student after ``step`` updates, and how many responses could not be had (no room in the
        servers' context, refused) or graded: they count in no mean.

        Responses that are there already, to the same problems with the same settings, are not drawn again.
        """
        rendered = self._benchmarks[benchmark.name]
        room = self._check.limits().room(self.config.evaluation.max_new_tokens)
        rendered.say_too_long(room, self._note)
        orders = rendered.orders(self.config, step, self.weight_version(step), room)
        folder = self.config.run_folder / EVALUATIONS / f"step-{step:06d}"
        with StepJournal(folder / rendered.file_name(self.config)) as journal:
            journal.forget_refusals()
            self._run(self._collector.collect(orders, journal, max_refused_share=1.0))
            wanted = {order.key for order in orders}
            responses = [rollout for rollout in journal.rollouts() if rollout.key in wanted]
            refused = [refusal for refusal in journal.refusals() if refusal.key in wanted]
        if refused:
            self._note(f"{benchmark.name}: {_told(refused, len(orders))}")
        grades = self._graded(responses, [rendered.problems[r.key.prompt].answer for r in responses])
        right: dict[int, list[bool]] = {}
        faults = rendered.wanted - len(responses)
        for response, grade in zip(responses, grades, strict=True):
            if grade is None or grade.verdict is Verdict.FAULT:
                faults += 1
            else:
                right.setdefault(response.key.prompt, []).append(grade.verdict is Verdict.RIGHT)
        return pass_at_1([sum(verdicts) / len(verdicts) for verdicts in right.values()]), faults

    def _ask_limits(self) -> Limits:
        self._run(self.pool.all_ready())
        return self._check.limits()

    def _orders(self, step: int) -> list[Order]:
        blend, temperature = self.config.sampling(step)
        rollouts = self.config.rollouts
        orders = []
        for prompt in self.prompts.step(step):
            for sample in range(rollouts.samples_per_prompt):
                key = RolloutKey(step, prompt.position, sample)
                seed, version = key.seed(self.config.seed), self.weight_version(step)
                limit = rollouts.max_new_tokens
                orders.append(Order(key, prompt.token_ids, blend, temperature, limit, seed, version))
        return orders

    def _graded(self, rollouts: Sequence[Rollout], golds: Sequence[str | None]) -> list[Grade | None]:
        texts = [self.tokenizer.decode(r.token_ids_T, skip_special_tokens=True) for r in rollouts]
        known = [(text, gold) for text, gold in zip(texts, golds, strict=True) if gold is not None]
        grades = self._grader.grade(known)
        faults = [grade.reason for grade in grades if grade.verdict is Verdict.FAULT]
        if faults:
            self._note(f"the grader has no verdict on {len(faults)} of {len(known)} responses, one for: {faults[0]}")
        verdicts = iter(grades)
        return [None if gold is None else next(verdicts) for gold in golds]

    def _start_servers(self, stack: contextlib.ExitStack) -> tuple[Sequence[str], Callable[[], None]]:
        server = self.config.server
        if server.launch is None:
            return server.urls, lambda: None
        options = ["--model-path", self.config.models.student]
        options += ["--speculative-draft-model-path", self.config.models.teacher, *server.launch_options]
        assert self._admin_key is not None
        log = self.config.run_folder / "server.log"
        local = LocalServer(server.launch, options, log=log, environment={ADMIN_KEY_VARIABLE: self._admin_key})
        watched = WatchedServer(local, self._note)
        stack.callback(watched.stop)
        watched.start()
        return [local.address], watched.revive

    def _read_benchmark(self, benchmark: Benchmark) -> RenderedBenchmark:
        try:
            return RenderedBenchmark.of(benchmark, read_problems(benchmark, self._note), self._render)
        except BadProblems as error:
            raise BadProblems(f"evaluation.benchmarks, {benchmark.name}: {error}") from None

    def _run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        return self._runner.run(coroutine)


def _told(refused: Sequence[Refusal], wanted: int) -> str:
    first = refused[0]
    return f"{len(refused)} of {wanted} responses could not be had and are left out; {first.key}: {first.reason}"


async def _async(make: Callable[[], Result]) -> Result:
    return make()


def timed(seconds: dict[str, float], name: str) -> contextlib.AbstractContextManager[None]:
    """Add the block's wall-clock time to ``seconds[name]``."""

    @contextlib.contextmanager
    def measure():
        started = time.monotonic()
        try:
            yield
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.monotonic() - started

    return measure()
