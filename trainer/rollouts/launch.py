"""A server that the trainer starts for itself, and starts again when it dies."""

from __future__ import annotations

import time
from collections.abc import Callable

from sglang_trb.launch.local_server import LocalServer
from trainer.rollouts.servers import ServersGone

MAX_RESTARTS = 5
"""In a row; a server that dies at once will not be helped by a sixth."""

HEALTHY_SECONDS = 900.0
"""One that has lived longer starts a new row."""


class WatchedServer:
    """`LocalServer` with restarts.

    Args:
        server: not started yet.
        note: called with a line for people.
    """

    def __init__(self, server: LocalServer, note: Callable[[str], None]) -> None:
        self._server, self._note = server, note
        self._restarts, self._started = 0, 0.0

    def start(self) -> None:
        """Start it and return once it answers.

        Raises:
            ServerDidNotStart: with the end of its log.
        """
        self._note(f"starting the server (log: {self._server.log})")
        self._start()
        self._server.wait_until_healthy(self._note)

    def revive(self) -> None:
        """Start the process again if it has ended; returns at once.

        Raises:
            ServersGone: it was started MAX_RESTARTS times already.
        """
        status = self._server.ended()
        if status is None:
            return
        if time.monotonic() - self._started > HEALTHY_SECONDS:
            self._restarts = 0
        if self._restarts == MAX_RESTARTS:
            raise ServersGone(f"the server ended {MAX_RESTARTS + 1} times; its log: {self._server.log}")
        self._restarts += 1
        self._note(f"the server ended with status {status}; starting it again (log: {self._server.log})")
        self._start()

    def _start(self) -> None:
        self._started = time.monotonic()
        self._server.start()

    def stop(self) -> None:
        """End the server, if it runs."""
        self._server.stop()
