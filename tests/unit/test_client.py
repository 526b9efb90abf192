"""The HTTP client against a server in a thread, which goes on while the client's event loop stands still."""

from __future__ import annotations

import asyncio
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from trainer.rollouts import client
from trainer.rollouts.client import TrbClient, session

CLOSES_AFTER_SECONDS = 0.3


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open
    timeout = CLOSES_AFTER_SECONDS
    ports: list[int]

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.ports.append(self.client_address[1])
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    handler = type("OwnPorts", (Handler,), {"ports": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_connection_that_the_server_closed_between_two_steps_is_not_used(server, monkeypatch):
    """Nobody sees it closed: the loop does not run while the student trains."""
    monkeypatch.setattr(client, "IDLE_SECONDS", CLOSES_AFTER_SECONDS / 3)
    with asyncio.Runner() as runner:

        async def make():
            return session()

        http = runner.run(make())
        one = TrbClient(f"http://127.0.0.1:{server.server_port}", http)
        for _ in range(2):
            runner.run(one.post("/step", {}, 5))
        time.sleep(CLOSES_AFTER_SECONDS * 2)
        runner.run(one.post("/step", {}, 5))
        runner.run(http.close())
    first, second, third = server.RequestHandlerClass.ports
    assert first == second != third


def test_idle_connections_are_dropped_before_sglang_closes_them():
    from sglang.srt.environ import envs

    assert envs.SGLANG_TIMEOUT_KEEP_ALIVE.get() / 2 >= client.IDLE_SECONDS
