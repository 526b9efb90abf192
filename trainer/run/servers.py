"""The servers of a run for code that waits: what is asked of them runs on an event loop of its own.

One thread at a time may ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import uvloop

from sglang_trb.launch.local_server import ADMIN_KEY_VARIABLE, LocalServer
from sglang_trb.pair.pair import Pair
from trainer.config.run import RunConfig
from trainer.data.limits import Limits
from trainer.errors import TrainerError
from trainer.push import make_pusher
from trainer.rollouts.client import TrbClient, session
from trainer.rollouts.collector import Collector
from trainer.rollouts.journal import StepJournal
from trainer.rollouts.launch import WatchedServer
from trainer.rollouts.rollout import RolloutRequest
from trainer.rollouts.server_check import ServerCheck
from trainer.rollouts.servers import ServerPool

Result = TypeVar("Result")
OnRollout = Callable[[int, int, int], None]


class NoAdminKey(TrainerError, ValueError):
    """The tensor route unpickles what it gets, so servers want a key for it."""


class Servers(contextlib.AbstractContextManager):
    """All servers of a run; entering starts or reaches them.

    Args:
        config: the run.
        pair: as this process read it from the checkpoints; a server that hosts another is refused.
        note: called with a line for people.
        on_rollout: called with (finished, wanted, tokens) as rollouts come.
        apart: as in `make_pusher`.

    Raises:
        NoAdminKey: the configuration's push needs one.
    """

    def __init__(
        self,
        config: RunConfig,
        pair: Pair,
        note: Callable[[str], None],
        on_rollout: OnRollout,
        *,
        apart: bool = False,
    ) -> None:
        self._config, self._note, self._on_rollout = config, note, on_rollout
        self._check = ServerCheck(config, pair, note)
        self._pusher = make_pusher(config.push, config.run_folder, config.models.student, apart=apart)
        self._admin_key = config.server.admin_key()
        if self._admin_key is None and config.server.launch is not None:
            self._admin_key = secrets.token_urlsafe()
        if self._admin_key is None and config.push.route == "tensor":
            raise NoAdminKey(
                f"push.route: got 'tensor' without an admin key; allowed: with the servers' --admin-api-key in the "
                f"environment variable {config.server.admin_key_variable}"
            )
        self._stack = contextlib.ExitStack()
        self._task: asyncio.Task[Any] | None = None

    def __enter__(self) -> Servers:
        config = self._config
        with self._stack as stack:
            urls, revive = self._start_servers(stack)
            # Ctrl-C cancels what runs on the loop, and is raised here once that has ended.
            self._runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
            http = self._run(_async(session))
            stack.callback(lambda: self._run(http.close()))
            clients = [TrbClient(url, http, self._admin_key) for url in urls]
            self._pool = ServerPool(clients, config.server.unreachable_s, self._note, revive, self._check)
            self._collector = Collector(
                self._pool,
                max_in_flight=config.server.max_in_flight,
                request_timeout_s=config.rollouts.request_timeout_s,
                max_attempts=config.rollouts.max_attempts,
                on_progress=self._on_rollout,
                note=self._note,
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)

    def publish(self, weights: Mapping[str, torch.Tensor], weight_version: str) -> None:
        """Bring every server to a student; checks that they host the right pair."""
        self._pusher.publish(weights, weight_version)
        self._bring_to(weight_version)

    def publish_folder(self, folder: str | Path, weight_version: str) -> None:
        """The same with a checkpoint that is on disk already."""
        self._pusher.publish_folder(folder, weight_version)
        self._bring_to(weight_version)

    def collect(self, requests: Sequence[RolloutRequest], journal: StepJournal, max_refused_share: float) -> None:
        """`Collector.collect`: draw what an open journal lacks of the requests, into it."""
        self._run(self._collector.collect(requests, journal, max_refused_share))

    def ask_limits(self) -> Limits:
        """What every server takes, once all that are there were looked at."""
        self._run(self._pool.all_ready())
        return self._check.limits()

    def limits(self) -> Limits:
        """What the servers that were looked at take."""
        return self._check.limits()

    def account(self) -> Mapping[str, Any]:
        """``/trb/info`` of the first server that was looked at; empty before."""
        return next(iter(self._check.accounts.values()), {})

    def require_room_for(self, longest_prompt: int) -> None:
        """From now on a server without room for a prompt of so many tokens beside a response is refused."""
        self._check.longest_prompt = longest_prompt

    def _bring_to(self, weight_version: str) -> None:
        self._pool.publish(weight_version, self._pusher.resync)
        self._run(self._pool.all_ready())

    def _start_servers(self, stack: contextlib.ExitStack) -> tuple[Sequence[str], Callable[[], None]]:
        server, models = self._config.server, self._config.models
        if server.launch is None:
            return server.urls, lambda: None
        options = ["--model-path", models.student]
        options += ["--speculative-draft-model-path", models.teacher, *server.launch_options]
        assert self._admin_key is not None
        log = self._config.run_folder / "server.log"
        local = LocalServer(server.launch, options, log=log, environment={ADMIN_KEY_VARIABLE: self._admin_key})
        watched = WatchedServer(local, self._note)
        stack.callback(watched.stop)
        watched.start()
        return [local.address], watched.revive

    def cancel(self) -> None:
        """End what another thread waits for here, if anything; that thread gets a CancelledError."""
        task = self._task
        if task is not None:
            self._runner.get_loop().call_soon_threadsafe(task.cancel)

    def _run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        async def noted() -> Result:
            self._task = asyncio.current_task()
            try:
                return await coroutine
            finally:
                self._task = None

        return self._runner.run(noted())


async def _async(make: Callable[[], Result]) -> Result:
    return make()
