"""A blending server of one's own on this machine: started with `trb serve`, watched, and stopped with the block.

Loads without torch and without sglang.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sglang_trb.errors import TrbError

START_SECONDS = 600
STOP_SECONDS = 30
HURRIED_STOP_SECONDS = 2
"""After an error or Ctrl-C nobody waits for the requests that are still running."""
LOG_TAIL = 15

MILESTONES = {
    "address ": "options checked",
    "Init parallel begin": "scheduler process is up",
    "Load weight begin": "reading weights",
    "KV Cache is allocated": "KV cache allocated",
    "Application startup complete": "warming up",
}
"""What SGLang 0.5.21 logs while it starts → what to tell a person. A line that no longer appears is not reported."""


class ServerDidNotStart(TrbError, RuntimeError):
    """The server ended, or did not become healthy in time; the message ends with the last lines of its log."""


@contextlib.contextmanager
def serving(
    config: str | Path, options: Sequence[str] = (), *, log: Path, report: Callable[[str], None] = print
) -> Iterator[str]:
    """Run ``trb serve`` while the block runs.

    Args:
        config: server configuration (YAML).
        options: SGLang options that override it; host and port are chosen here (127.0.0.1, a free one).
        log: file that gets all the server prints.
        report: called with a line for each step of the start.

    Yields:
        The server's address, ``http://127.0.0.1:PORT``, once it is healthy.

    Raises:
        ServerDidNotStart: with the end of the log.
    """
    port = free_port()
    command = [sys.executable, "-m", "sglang_trb.cli.main", "serve", "--config", str(config), *options]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    log.parent.mkdir(parents=True, exist_ok=True)
    report(f"starting the server (log: {log})")
    with log.open("w", encoding="utf-8") as stream:
        # Its own session: Ctrl-C reaches us alone, and we stop it in order.
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        _wait_until_healthy(process, f"http://127.0.0.1:{port}", log, report)
        yield f"http://127.0.0.1:{port}"
    except BaseException:
        _stop(process, HURRIED_STOP_SECONDS)
        raise
    _stop(process, STOP_SECONDS)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_healthy(process: subprocess.Popen, address: str, log: Path, report: Callable[[str], None]) -> None:
    started = time.monotonic()
    waiting_for = dict(MILESTONES)
    while (seconds := time.monotonic() - started) < START_SECONDS:
        text = log.read_text(encoding="utf-8", errors="replace")
        for line in [line for line in waiting_for if line in text]:
            report(f"{seconds:5.0f} s  {waiting_for.pop(line)}")
        if process.poll() is not None:
            raise ServerDidNotStart(f"the server ended with status {process.returncode}\n{_tail(text)}")
        if _healthy(address):
            report(f"{seconds:5.0f} s  ready at {address}")
            return
        time.sleep(0.5)
    raise ServerDidNotStart(f"no answer from {address} within {START_SECONDS} s\n{_tail(text)}")


def _healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=10) as response:
            return response.status == 200
    except (OSError, urllib.error.URLError):
        return False


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-LOG_TAIL:])


def _stop(process: subprocess.Popen, patience: float) -> None:
    """SIGTERM to the server, which ends its own processes; SIGKILL to all of them if it does not."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(patience)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
