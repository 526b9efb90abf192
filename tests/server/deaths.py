"""Ends a process of a running server, and sees that clients are told and nothing is left."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import requests

from tests.server.checks import prompts
from tests.server.harness import Server

SECONDS = 5.0


def check_all_end_with(server: Server, victim: str) -> None:
    """A request is in flight; it fails, and the server's last process is gone, within SECONDS.

    Args:
        server: a running server; it is not running any more afterwards.
        victim: ``main``, ``paused main`` (told to stop by SIGTERM while generation is paused, and so are all its
            processes, as service managers do), or a part of the name of the process that is killed.
    """
    launcher = psutil.Process(server.process.pid)
    processes = [launcher, *launcher.children(recursive=True)]
    scheduler = _named(processes, "sglang::scheduler")
    main = scheduler.parent()
    body = {"input_ids": prompts(1, 16, seed=51)[0], "sampling_params": {"max_new_tokens": 250, "ignore_eos": True}}
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(_answer, server, body)
        time.sleep(0.3)
        if victim == "paused main":
            assert server.post("/pause_generation", {"mode": "in_place"}, admin=True).status_code == 200
        assert not request.done() or server.get("/trb/info").json()["refusing"]
        started = time.monotonic()
        if victim == "paused main":
            for process in processes:
                process.send_signal(signal.SIGTERM)
        elif victim == "main":
            main.kill()
        else:
            _named(processes, victim).kill()
        status = server.process.wait(SECONDS)
        while left := [process for process in processes if _alive(process)]:
            assert time.monotonic() - started < SECONDS, left
            time.sleep(0.05)
        refused = [503, "closed"] if victim != "paused main" else [503]  # a server may refuse whatever comes
        assert request.result(timeout=SECONDS) in refused
    if not victim.endswith("main"):
        assert (status, "the server ends: " in server.log_tail(5)) == (1, True), server.log_tail()


def _answer(server: Server, body: dict[str, Any]) -> str | int:
    try:
        return server.post("/generate", body).status_code
    except requests.ConnectionError:
        return "closed"


def _named(processes: list[psutil.Process], name: str) -> psutil.Process:
    return next(process for process in processes if name in " ".join(process.cmdline()))


def _alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
