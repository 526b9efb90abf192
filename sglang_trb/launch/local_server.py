"""A blending server of one's own on this machine: started with `trb serve`, watched, and stopped with the block.

Loads without torch and without sglang.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from sglang_trb.errors import TrbError

START_SECONDS = 600
STOP_SECONDS = 30
HURRIED_STOP_SECONDS = 2
"""After an error or Ctrl-C nobody waits for the requests that are still running."""
LOG_TAIL = 15

SERVER_PORTS = range(20_000, 30_000)
"""Linux takes the ends of outgoing connections from 32,768 on, others from 49,152."""

PARENT_VARIABLE = "TRB_PARENT_PID"
"""Environment variable of `trb serve`: end when the process with this id, the parent, is gone."""

ADMIN_KEY_VARIABLE = "TRB_ADMIN_KEY"
"""Environment variable of `trb serve`: the admin key, which on the command line every user of the machine could see."""

LAUNCHER_VARIABLES = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE",
    "ROLE_WORLD_SIZE", "CROSS_RANK", "CROSS_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
"""Of torchrun and the deepspeed launcher. With them SGLang would wait for processes that are not its own."""

MILESTONES = {
    "address ": "options checked",
    "Init parallel begin": "scheduler process is up",
    "Load weight begin": "reading weights",
    "KV Cache is allocated": "KV cache allocated",
    "Application startup complete": "warming up",
}
"""What SGLang logs while it starts → what to tell a person. A line that no longer appears is not reported."""


class ServerDidNotStart(TrbError, RuntimeError):
    """The server ended, or did not become healthy in time; the message ends with the last lines of its log."""


class LocalServer:
    """A server process of this one: it ends when this one does, even by SIGKILL.

    Args:
        config: server configuration (YAML).
        options: SGLang options that override it; host and port are chosen here (127.0.0.1, a free one).
        log: file that gets all the server prints.
        environment: added to this process's own.

    Attributes:
        address: ``http://127.0.0.1:PORT``, the same after a restart.
    """

    def __init__(
        self,
        config: str | Path,
        options: Sequence[str] = (),
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        self.log = log
        self._command = [sys.executable, "-m", "sglang_trb.cli.main", "serve", "--config", str(config), *options]
        self._command += ["--host", "127.0.0.1", "--port", str(port)]
        self._environment = dict(environment or {})
        self._process: subprocess.Popen | None = None
        self._log_start = 0

    def start(self) -> None:
        """Start the process; `wait_until_healthy` says when it serves. The log is appended to."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as stream:
            self._log_start = stream.tell()
            # Its own session: Ctrl-C reaches us alone, and we stop it in order.
            self._process = subprocess.Popen(
                self._command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=_without_launcher(os.environ) | self._environment | {PARENT_VARIABLE: str(os.getpid())},
            )

    def ended(self) -> int | None:
        """The exit status, or None while the process runs."""
        assert self._process is not None, "start() comes first"
        return self._process.poll()

    def wait_until_healthy(self, report: Callable[[str], None] = print) -> None:
        """Return once the server answers; ``report`` gets a line for each step of the start.

        Raises:
            ServerDidNotStart: with the end of the log.
        """
        started = time.monotonic()
        waiting_for = dict(MILESTONES)
        while (seconds := time.monotonic() - started) < START_SECONDS:
            text = self._log_text()
            for line in [line for line in waiting_for if line in text]:
                report(f"{seconds:5.0f} s  {waiting_for.pop(line)}")
            if self.ended() is not None:
                raise ServerDidNotStart(f"the server ended with status {self.ended()} (log: {self.log})\n{_tail(text)}")
            if _healthy(self.address):
                report(f"{seconds:5.0f} s  ready at {self.address}")
                return
            time.sleep(0.5)
        raise ServerDidNotStart(f"no answer from {self.address} within {START_SECONDS} s\n{_tail(text)}")

    def stop(self, patience: float = STOP_SECONDS) -> None:
        """SIGTERM to the server, which ends its own processes; SIGKILL to all of them if it does not."""
        if self._process is None:
            return
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def _log_text(self) -> str:
        with self.log.open("rb") as stream:
            stream.seek(self._log_start)
            return stream.read().decode("utf-8", errors="replace")


@contextlib.contextmanager
def serving(
    config: str | Path, options: Sequence[str] = (), *, log: Path, report: Callable[[str], None] = print
) -> Iterator[str]:
    """Run ``trb serve`` while the block runs.

    Args:
        config, options, log: as in `LocalServer`; an older log is replaced.
        report: called with a line for each step of the start.

    Yields:
        The server's address, once it is healthy.

    Raises:
        ServerDidNotStart: with the end of the log.
    """
    log.unlink(missing_ok=True)
    server = LocalServer(config, options, log=log)
    report(f"starting the server (log: {log})")
    server.start()
    try:
        server.wait_until_healthy(report)
        yield server.address
    except BaseException:
        server.stop(HURRIED_STOP_SECONDS)
        raise
    server.stop()


def _without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """What torchrun or another launcher told this process about its place among others is not the server's."""
    return {
        name: value
        for name, value in environment.items()
        if name not in LAUNCHER_VARIABLES and not name.startswith("TORCHELASTIC_")
    }


def free_port() -> int:
    """A TCP port that nothing on this machine uses now, and that the kernel gives to no outgoing connection.

    One that it does give would be lost while its server starts: even a look whether the server is up can be given that
    very port as its own end, and then talks to itself.
    """
    for _ in range(1000):
        port = secrets.choice(SERVER_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise ServerDidNotStart(f"a port: got none; allowed: a free one from {SERVER_PORTS[0]} to {SERVER_PORTS[-1]}")


def _healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=10) as response:
            return response.status == 200
    except (OSError, urllib.error.URLError):
        return False


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-LOG_TAIL:])
