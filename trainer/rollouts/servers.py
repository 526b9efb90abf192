"""The servers of a run: which of them answer, and which student they hold.

A server takes rollouts only while it is known to answer and to hold the weight version that is wanted. One that fails
is watched, brought to that version again, and only then used.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from trainer.errors import TrainerError
from trainer.rollouts.client import Faulty, TookTooLong, TrbClient, Unreachable

POLL_SECONDS = 1.0
NOTE_EVERY_SECONDS = 30.0
LOOK_AGAIN_SECONDS = 10.0
"""A server that was given up is not asked again before."""

Resync = Callable[[TrbClient], Awaitable[None]]
"""Brings one server to the wanted weights, or raises Unreachable or Refused."""

Note = Callable[[str], None]

Check = Callable[[TrbClient, dict[str, Any]], None]
"""Looks at a server's ``/trb/info``."""

Revive = Callable[[], None]
"""Starts a server anew if its process is one of ours and has ended."""


class ServersGone(TrainerError, ConnectionError):
    """No server has answered for too long; the run can go on from where it is once one does."""


class ServerPool:
    """All servers of a run.

    Args:
        clients: one per address.
        unreachable_s: how long a server may be gone before waiting for it is given up.
        note: called with a line for people when a server is lost, waited for, or back.
        revive: called while one is waited for.
        check: raises if a server, by its account of itself, is not one to use at all.
    """

    def __init__(
        self,
        clients: Sequence[TrbClient],
        unreachable_s: float,
        note: Note,
        revive: Revive = lambda: None,
        check: Check = lambda client, info: None,
    ) -> None:
        self.clients = list(clients)
        self.weight_version: str | None = None
        self._unreachable_s, self._note, self._revive, self._check = unreachable_s, note, revive, check
        self._resync: Resync | None = None
        self._states = {client.url: _State() for client in clients}

    def publish(self, weight_version: str, resync: Resync) -> None:
        """From now on a server must hold this version; ``resync`` brings one to it."""
        self.weight_version, self._resync = weight_version, resync
        for state in self._states.values():
            state.ready = False

    def lost(self, client: TrbClient, reason: str) -> None:
        """Take a server out until it has proved itself again."""
        state = self._states[client.url]
        if state.ready:
            state.ready = False
            self._note(f"{reason}; it gets no rollouts until it is back")

    def is_ready(self, client: TrbClient) -> bool:
        """Whether the server is known to answer and to hold the wanted version."""
        return self._states[client.url].ready

    async def ready(self, client: TrbClient) -> None:
        """Return once the server answers and holds the wanted version; at once when that is known.

        Before `publish` was called any version is wanted.

        Raises:
            ServersGone: it has been gone for ``unreachable_s``; one that is asked for again is looked at once more.
        """
        state = self._states[client.url]
        if state.ready:
            return
        async with state.lock:
            if not state.ready:
                await self._wait(client, state)

    async def all_ready(self) -> None:
        """`ready` for every server; those that are away do not hinder as long as one is there.

        Raises:
            ServersGone: none is.
        """
        tasks = {asyncio.create_task(self.ready(client)): client for client in self.clients}
        try:
            while True:
                done, pending = await asyncio.wait(tasks, timeout=POLL_SECONDS)
                failures = [failure for task in done if (failure := task.exception()) is not None]
                for failure in failures:
                    if not isinstance(failure, ServersGone) or len(failures) == len(tasks):
                        raise failure
                away = all(self._states[tasks[task].url].gone_since is not None for task in pending)
                if len(done) > len(failures) and away:
                    return
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _wait(self, client: TrbClient, state: _State) -> None:
        now = time.monotonic()
        if state.gave_up is not None and now - state.gave_up[0] < LOOK_AGAIN_SECONDS:
            raise state.gave_up[1]
        noted: float | None = None
        while True:
            try:
                await self._bring_to_version(client)
            except (Unreachable, TookTooLong, Faulty) as error:
                reason = str(error)
            else:
                if state.gone_since is not None:
                    weights = f" with weights {self.weight_version}" if self.weight_version else ""
                    self._note(f"{client.url} is back{weights}")
                state.ready, state.gone_since, state.gave_up = True, None, None
                return
            now = time.monotonic()
            if state.gone_since is None:
                state.gone_since = now
            if now - state.gone_since > self._unreachable_s:
                gone = ServersGone(f"{client.url} is gone since {now - state.gone_since:.0f} s: {reason}")
                state.gave_up = now, gone
                raise gone
            if noted is None or now - noted > NOTE_EVERY_SECONDS:
                self._note(f"waiting for {client.url}: {reason}")
                noted = now
            self._revive()
            await asyncio.sleep(POLL_SECONDS)

    async def _bring_to_version(self, client: TrbClient) -> None:
        if self._resync is None:
            await self._holds_version(client)
        elif not await self._holds_version(client):
            await self._resync(client)
            if not await self._holds_version(client):
                raise Faulty(f"{client.url} took an update to {self.weight_version!r} and does not serve it")

    async def _holds_version(self, client: TrbClient) -> bool:
        info = await client.info()
        try:
            holds = info["student_weight_version"] == self.weight_version and info["refusing"] is None
            self._check(client, info)
        except (KeyError, TypeError):
            raise Faulty(f"{client.url}/trb/info gave {info!r}, which is no blended server's account") from None
        return holds


@dataclasses.dataclass
class _State:
    """What is known of a server; times are of the monotonic clock."""

    lock: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)
    ready: bool = False
    gone_since: float | None = None
    gave_up: tuple[float, ServersGone] | None = None
