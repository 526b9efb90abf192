"""The servers of a run: which of them answer, and which student they hold.

A server takes rollouts only while it is known to answer and to hold the weight version that is wanted. One that fails
is watched, brought to that version again, and only then used.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from trainer.client import Faulty, TookTooLong, TrbClient, Unreachable
from trainer.errors import TrainerError

POLL_SECONDS = 1.0
NOTE_EVERY_SECONDS = 30.0

Resync = Callable[[TrbClient], Awaitable[None]]
"""Brings one server to the wanted weights, or raises Unreachable or Refused."""

Note = Callable[[str], None]

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
    """

    def __init__(
        self, clients: Sequence[TrbClient], unreachable_s: float, note: Note, revive: Revive = lambda: None
    ) -> None:
        self.clients = list(clients)
        self.weight_version: str | None = None
        self._unreachable_s, self._note, self._revive = unreachable_s, note, revive
        self._resync: Resync | None = None
        self._ready = {client.url: False for client in clients}
        self._locks = {client.url: asyncio.Lock() for client in clients}

    def expect(self, weight_version: str, resync: Resync) -> None:
        """From now on a server must hold this version; ``resync`` brings one to it."""
        self.weight_version, self._resync = weight_version, resync
        self._ready = dict.fromkeys(self._ready, False)

    def lost(self, client: TrbClient, reason: str) -> None:
        """Take a server out until it has proved itself again."""
        if self._ready[client.url]:
            self._ready[client.url] = False
            self._note(f"{reason}; it gets no rollouts until it is back")

    def is_ready(self, client: TrbClient) -> bool:
        return self._ready[client.url]

    async def ready(self, client: TrbClient) -> None:
        """Return once the server answers and holds the wanted version; at once when that is known.

        Raises:
            ServersGone: it did not within ``unreachable_s``.
        """
        if self._ready[client.url]:
            return
        async with self._locks[client.url]:
            if not self._ready[client.url]:
                await self._wait(client)
                self._ready[client.url] = True

    async def all_ready(self) -> None:
        """`ready` for every server; those that stay away do not hinder as long as one is there.

        Raises:
            ServersGone: none is.
        """
        results = await asyncio.gather(*(self.ready(client) for client in self.clients), return_exceptions=True)
        failures = [result for result in results if result is not None]
        unexpected = [failure for failure in failures if not isinstance(failure, ServersGone)]
        if unexpected:
            raise unexpected[0]
        if len(failures) == len(self.clients):
            raise failures[0]

    async def _wait(self, client: TrbClient) -> None:
        started = noted = time.monotonic()
        waited = False
        while True:
            try:
                await self._bring_to_version(client)
            except (Unreachable, TookTooLong, Faulty) as error:
                reason = str(error)
            else:
                if waited:
                    self._note(f"{client.url} is back with weights {self.weight_version}")
                return
            now = time.monotonic()
            if now - started > self._unreachable_s:
                raise ServersGone(f"{client.url} is gone since {now - started:.0f} s: {reason}")
            if not waited or now - noted > NOTE_EVERY_SECONDS:
                self._note(f"waiting for {client.url}: {reason}")
                noted, waited = now, True
            self._revive()
            await asyncio.sleep(POLL_SECONDS)

    async def _bring_to_version(self, client: TrbClient) -> None:
        assert self._resync is not None, "expect() says which weights"
        if not await self._holds_version(client):
            await self._resync(client)
            if not await self._holds_version(client):
                raise Faulty(f"{client.url} took an update to {self.weight_version!r} and does not serve it")

    async def _holds_version(self, client: TrbClient) -> bool:
        info = await client.info()
        try:
            return info["student_weight_version"] == self.weight_version and info["refusing"] is None
        except (KeyError, TypeError):
            raise Faulty(f"{client.url}/trb/info gave {info!r}, which is no blended server's account") from None
