"""Starts a real blending server on loopback for tests, and talks to it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from sglang_trb.launch.local_server import free_port

START_SECONDS = 180
ADMIN_KEY = "test-admin-key"

CPU_OPTIONS = {
    "device": "cpu",
    "grammar-backend": "none",
    "dtype": "float32",
    "sampling-backend": "trb",
    "sampling-defaults": "openai",
    "host": "127.0.0.1",
    "max-total-tokens": "4096",
    "context-length": "512",
    "max-running-requests": "32",
    "enable-metrics": None,
    "sleep-on-idle": None,  # an idle scheduler would keep a core busy
    "log-level": "info",
}
"""What every test server runs with; None marks a flag without a value."""


class ServerDied(RuntimeError):
    """The server ended while starting; the message holds the end of its log."""


class Server:
    """A running server; requests go to its own routes, with its API key where it has one."""

    def __init__(self, process: subprocess.Popen, port: int, log: Path, api_key: str | None = None) -> None:
        self.process, self.log, self.api_key = process, log, api_key
        self.url = f"http://127.0.0.1:{port}"

    def post(self, route: str, body: dict[str, Any], admin: bool = False, timeout: float = 120) -> requests.Response:
        return self.ask("POST", route, ADMIN_KEY if admin else self.api_key, json=body, timeout=timeout)

    def get(self, route: str) -> requests.Response:
        return self.ask("GET", route, self.api_key)

    def ask(self, method: str, route: str, key: str | None, timeout: float = 60, **more: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return requests.request(method, self.url + route, headers=headers, timeout=timeout, **more)

    def generate(self, prompt: str | list[int], blend: dict[str, Any] | None = None, **sampling: Any) -> dict[str, Any]:
        """One ``/generate`` request that must succeed; ``logprobs=True`` asks for SGLang's own too."""
        body: dict[str, Any] = {"text": prompt} if isinstance(prompt, str) else {"input_ids": prompt}
        if sampling.pop("logprobs", False):
            body["return_logprob"] = True
        sampling = {"max_new_tokens": 16, "ignore_eos": True} | sampling
        body["sampling_params"] = sampling | ({"custom_params": blend} if blend is not None else {})
        response = self.post("/generate", body)
        assert response.status_code == 200, response.text
        return response.json()

    def kv_slots(self) -> dict[str, int]:
        """Free and evictable KV slots after a flush, for leak checks."""
        response = self.post("/flush_cache?timeout=20", {}, admin=True)
        assert response.status_code == 200, response.text
        (state,) = self.get("/get_server_info").json()["internal_states"]
        return {key: state[key] for key in ("max_total_num_tokens", "available_kv_size") if key in state}

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


@contextlib.contextmanager
def serve(
    student: str | Path,
    teacher: Path | None,
    environment: dict[str, str] | None = None,
    module: str = "sglang.launch_server",
    start_seconds: float = START_SECONDS,
    **options: Any,
) -> Iterator[Server]:
    """A server on a free port, ended with its whole process group.

    Args:
        student, teacher: checkpoint folders, the student's also an id of the hub; without a teacher no
            ``speculative-draft-model-path`` is given.
        environment: variables to add.
        module: what is run, with SGLang's options.
        start_seconds: how long it may take until it answers.
        options: SGLang's options with underscores; True marks a flag, None removes one of CPU_OPTIONS.

    Raises:
        ServerDied: it ended, or did not answer in time.
    """
    port = free_port()
    arguments = dict(CPU_OPTIONS) | {"model-path": str(student), "port": str(port)}
    if teacher is not None:
        arguments["speculative-draft-model-path"] = str(teacher)
    for name, value in options.items():
        name = name.replace("_", "-")
        if value is None:
            arguments.pop(name, None)
        else:
            arguments[name] = None if value is True else str(value)
    command = [sys.executable, "-m", module]
    for name, value in arguments.items():
        command += [f"--{name}"] + ([] if value is None else [value])
    log = Path(tempfile.mkstemp(prefix="trb-server-", suffix=".log")[1])
    with log.open("w") as stream:
        process = subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | (environment or {}),
            start_new_session=True,
        )
    server = Server(process, port, log, options.get("api_key"))
    try:
        wait_until_healthy(server, start_seconds)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.unlink()


def wait_until_healthy(server: Server, start_seconds: float) -> None:
    """Return once the server generates.

    Raises:
        ServerDied: it ended, or did not answer in time.
    """
    deadline = time.monotonic() + start_seconds
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise ServerDied(server.log_tail(60))
        with contextlib.suppress(requests.ConnectionError, requests.Timeout):
            if requests.get(server.url + "/health_generate", timeout=10).status_code == 200:
                return
        time.sleep(0.3)
    raise ServerDied(f"no answer within {start_seconds:.0f} s\n" + server.log_tail(60))
