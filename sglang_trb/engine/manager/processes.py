"""The processes of a server end together: when one of them dies, or it is told to stop, none is left after seconds.

SGLang's own means poll once a second, then wait a minute for crash dumps while clients hang; on SIGTERM they wait for
every request, also for one that is held back for good.

Needs Linux.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from multiprocessing import resource_tracker
from typing import Any, NoReturn

import psutil
from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.managers.tokenizer_manager import SignalHandler, TokenizerManager
from sglang.srt.utils.watchdog import SubprocessWatchdog

from sglang_trb.engine.backend import blends, on_blending_servers

logger = logging.getLogger(__name__)

STOP_SECONDS = 20.0
"""How long SIGTERM lets running requests go on; requests of a paused server are ended at once."""

CLOSE_SECONDS = 4.0
"""For the processes to close in order after that; then they are killed."""

_KILL_SECONDS = 3.0
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PR_SET_CHILD_SUBREAPER = 36

_status: int | None = None
"""Of `end_server`, which what it kills causes to be called again."""


@on_blending_servers
def launched_deaf(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Hook around the launch of SGLang's processes: what a terminal or a service manager sends to a whole group stops
    the main process, which lets requests end and then ends the others. They inherit the mask."""
    resource_tracker.ensure_running()  # launching it by the way would lift the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        return original(*args, **kwargs)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class TrbWatchdog(SubprocessWatchdog):
    """Ends a blending server as soon as a process of it dies; SGLang's watchdog otherwise."""

    def start(self) -> None:
        """Begin to watch."""
        if blends():
            # What a dead process leaves behind becomes our child, so that `end_server` finds it.
            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
            self._monitor_loop = self._end_with_the_first
        super().start()

    def _end_with_the_first(self) -> None:
        names = {process.pid: name for process, name in zip(self._processes, self._names, strict=True)}
        names[resource_tracker._resource_tracker._pid] = "resource tracker"  # type: ignore[attr-defined]
        descriptors, poll = {}, select.poll()
        for pid, name in names.items():
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                end_server(f"{name} (process {pid}) has died")
            descriptors[descriptor] = f"{name} (process {pid})"
            poll.register(descriptor, select.POLLIN)
        while not self._stop_event.is_set():
            for descriptor, _ in poll.poll(100):  # milliseconds; `stop` waits for this thread
                if not self._stop_event.is_set():
                    end_server(f"{descriptors[descriptor]} has died")
        for descriptor in descriptors:
            os.close(descriptor)


class TrbSignalHandler(SignalHandler):
    """What a blending server does when it is told to stop, or a child says that it failed."""

    def sigterm_handler(self, signum: Any = None, frame: Any = None) -> None:
        """SGLang's, on SIGTERM."""
        if self.tokenizer_manager.gracefully_exit:
            end_server("it was told to stop twice", 0)
        patience = 0.0 if self.tokenizer_manager.is_pause else STOP_SECONDS
        limit = threading.Timer(patience + CLOSE_SECONDS, end_server, ("it took too long to stop", 0))
        limit.daemon = True
        limit.start()
        super().sigterm_handler(signum, frame)

    def running_phase_sigquit_handler(self, signum: Any = None, frame: Any = None) -> None:
        """SGLang's, on the death of another process: answers what is in flight, then ends all."""
        end_server("a process of it failed; its error is in the log above")


async def drain(manager: TokenizerManager) -> None:
    """Return once a stop was asked for and no request is left; those that do not end in time are answered 503."""
    while not manager.gracefully_exit:
        await asyncio.sleep(0.1)
    deadline = time.monotonic() + STOP_SECONDS
    while manager.rid_to_state and not manager.is_pause and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    reason = {"type": "abort", "status_code": HTTPStatus.SERVICE_UNAVAILABLE, "message": "the server is stopping"}
    for rid in list(manager.rid_to_state):
        manager._handle_abort_req(AbortReq(rid=rid, finished_reason=reason))


def end_server(reason: str, status: int = 1) -> NoReturn:
    """Kill all processes below this one, then end it. Clients see their connections close.

    The first reason and status count: meanwhile another thread finds that a process has died.
    """
    global _status
    if _status is None:
        _status = status
        logger.error("the server ends: %s", reason)
    deadline = time.monotonic() + _KILL_SECONDS
    while (alive := _living_children()) and time.monotonic() < deadline:
        for process in alive:
            process.kill()
        time.sleep(0.02)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_status)


def _living_children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if _alive(child)]


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
