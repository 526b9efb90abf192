"""What one process does for all: servers, prompts, journals, grading, evaluation.

The leader's methods are synchronous; inside, requests run on an event loop of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import uvloop
from transformers import AutoTokenizer

from sglang_trb.local_server import ADMIN_KEY_VARIABLE, LocalServer
from sglang_trb.params import BlendParams, Return, Rule
from trainer.client import TrbClient, session
from trainer.collector import Collector
from trainer.config import Benchmark, RunConfig
from trainer.errors import TrainerError
from trainer.grading import Grade, Grader, Verdict
from trainer.journal import StepJournal, step_path
from trainer.launch import WatchedServer
from trainer.log_probs import Vocabulary
from trainer.problems import BadProblems, Problem, read_problems
from trainer.prompts import PromptStream, Renderer
from trainer.push import make_pusher
from trainer.rollouts import Order, Rollout, RolloutKey
from trainer.servers import ServerPool
from trainer.statistics import PassAt1, pass_at_1

Result = TypeVar("Result")
Progress = Callable[[int, int, int], None]

EVALUATIONS = "evaluations"
"""Of a run's folder: the responses of its evaluations."""


class OtherPair(TrainerError, ValueError):
    """A server hosts another pair than the one that is trained."""


class NoAdminKey(TrainerError, ValueError):
    """The tensor route unpickles what it gets, so servers want a key for it."""


class Leader(contextlib.AbstractContextManager):
    """Use as a context manager; entering starts or reaches the servers.

    Args:
        config: the run.
        vocabulary: of the pair, as this process read it from the checkpoints.
        note: called with a line for people.
        on_rollout: called with (finished, wanted, tokens) as rollouts come.

    Raises:
        NoAdminKey: the configuration's push needs one.
    """

    def __init__(
        self, config: RunConfig, vocabulary: Vocabulary, note: Callable[[str], None], on_rollout: Progress
    ) -> None:
        self.config, self._vocabulary, self._note, self._on_rollout = config, vocabulary, note, on_rollout
        self.tokenizer = AutoTokenizer.from_pretrained(config.models.student)
        data = config.data
        self._render = Renderer(self.tokenizer, data.template, data.system_prompt, data.enable_thinking)
        self.problems = read_problems(data, note)
        # Now, so that a file that is missing does not end the run after hours.
        self._benchmarks = {b.name: _read_benchmark(b, note) for b in config.evaluation.benchmarks}
        self.prompts = PromptStream(
            self.problems,
            self._render,
            max_prompt_tokens=data.max_prompt_tokens,
            per_step=config.rollouts.prompts_per_step,
            seed=config.seed if data.shuffle else None,
        )
        for reason, count in self.prompts.left_out.items():
            note(f"data: {count} of {len(self.problems)} prompts are left out: {reason}")
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
        with self._stack as stack:
            self._grader = stack.enter_context(Grader(self.config.evaluation.grader_workers))
            urls, revive = self._start_servers(stack)
            # Ctrl-C cancels what runs on the loop, and is raised here once that has ended.
            self._runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
            http = self._run(_async(session))
            stack.callback(lambda: self._run(http.close()))
            clients = [TrbClient(url, http, self._admin_key) for url in urls]
            self.pool = ServerPool(clients, self.config.server.unreachable_s, self._note, revive, self._check_pair)
            rollouts = self.config.rollouts
            self._collector = Collector(
                self.pool,
                max_in_flight=self.config.server.max_in_flight,
                request_timeout_s=rollouts.request_timeout_s,
                max_attempts=rollouts.max_attempts,
                max_refused_share=rollouts.max_refused_share,
                on_progress=self._on_rollout,
                note=self._note,
            )
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

    def collect(self, step: int) -> list[Rollout]:
        """The rollouts of step k in the order of their keys; from the journal where it has them."""
        with self.journal(step) as journal:
            orders = self._orders(step)
            if len(journal.entries) < len(orders):
                self._run(self._collector.collect(orders, journal))
            return journal.rollouts()

    def grade(self, rollouts: Sequence[Rollout]) -> list[Grade | None]:
        """Each rollout against its problem's gold answer; None where the problem has none."""
        per_step = self.config.rollouts.prompts_per_step
        by_position = {p.position: p.problem for r in rollouts for p in self.prompts.step(r.key.prompt // per_step)}
        golds = [self.problems[by_position[rollout.key.prompt]].answer for rollout in rollouts]
        return self._graded(rollouts, golds)

    def evaluate(self, benchmark: Benchmark, step: int) -> tuple[PassAt1, int]:
        """pass@1 of the served student after ``step`` updates, and how many responses the server refused or the grader
        failed on: they count in no mean.

        Responses that are there already, to the same problems with the same settings, are not drawn again.
        """
        problems = self._benchmarks[benchmark.name]
        orders = self._evaluation_orders(problems, benchmark.samples, step)
        folder = self.config.run_folder / EVALUATIONS / f"step-{step:06d}"
        with StepJournal(folder / f"{benchmark.name}-{_digest(problems, orders)}.rollouts") as journal:
            self._run(self._collector.collect(orders, journal))
            wanted = {order.key for order in orders}
            responses = [rollout for rollout in journal.rollouts() if rollout.key in wanted]
        grades = self._graded(responses, [problems[r.key.prompt].answer for r in responses])
        right: dict[int, list[bool]] = {}
        faults = len(orders) - len(responses)
        for response, grade in zip(responses, grades, strict=True):
            if grade is None or grade.verdict is Verdict.FAULT:
                faults += 1
            else:
                right.setdefault(response.key.prompt, []).append(grade.verdict is Verdict.RIGHT)
        return pass_at_1([sum(verdicts) / len(verdicts) for verdicts in right.values()]), faults

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

    def _evaluation_orders(self, problems: Sequence[Problem], samples: int, step: int) -> list[Order]:
        settings = self.config.evaluation
        blend = BlendParams(Rule.STUDENT, returned=Return.SUMMARY)
        orders = []
        for index, problem in enumerate(problems):
            prompt_ids = self._render(problem.question)
            for sample in range(samples):
                key = RolloutKey(step, index, sample)
                seed, version = key.seed(~self.config.seed), self.weight_version(step)
                limit = settings.max_new_tokens
                orders.append(Order(key, prompt_ids, blend, settings.temperature, limit, seed, version))
        return orders

    def _graded(self, rollouts: Sequence[Rollout], golds: Sequence[str | None]) -> list[Grade | None]:
        texts = [self.tokenizer.decode(r.token_ids_T, skip_special_tokens=True) for r in rollouts]
        known = [(text, gold) for text, gold in zip(texts, golds, strict=True) if gold is not None]
        grades = iter(self._grader.grade(known))
        return [None if gold is None else next(grades) for gold in golds]

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

    def _check_pair(self, client: TrbClient, info: Mapping[str, Any]) -> None:
        alignment = self._vocabulary.alignment
        ours = {"student": [*alignment.student_ids], "teacher": [*alignment.teacher_ids]}
        theirs = {side: info["stop_ids"][side] for side in ours}
        if theirs != ours or info["vocab_size"] != self._vocabulary.size:
            raise OtherPair(
                f"{client.url}: got stop ids {theirs} and {info['vocab_size']} ids; "
                f"allowed: {ours} and {self._vocabulary.size}, as models.student and models.teacher have them"
            )

    def _run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        return self._runner.run(coroutine)


def _read_benchmark(benchmark: Benchmark, note: Callable[[str], None]) -> list[Problem]:
    try:
        return read_problems(benchmark, note)
    except BadProblems as error:
        raise BadProblems(f"evaluation.benchmarks, {benchmark.name}: {error}") from None


def _digest(problems: Sequence[Problem], orders: Sequence[Order]) -> str:
    """Of all that decides about a response and its grade, but not of how many samples there are."""
    first = orders[0]
    prompts = {order.key.prompt: order.prompt_ids for order in orders}
    texts = [(problem.question, problem.answer, prompts[i]) for i, problem in enumerate(problems)]
    about = (texts, first.temperature, first.max_new_tokens, first.seed)
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]


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
