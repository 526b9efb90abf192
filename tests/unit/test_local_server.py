"""What a server of one's own needs before it starts; the rest is tested with servers, in tests/e2e."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from sglang_trb.launch import local_server
from sglang_trb.launch.local_server import SERVER_PORTS, ServerDidNotStart, free_port


def test_a_port_is_not_one_of_those_for_outgoing_connections():
    lowest, _ = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert SERVER_PORTS[-1] < lowest
    assert all(free_port() in SERVER_PORTS for _ in range(100))


def test_a_port_that_is_taken_is_not_given(monkeypatch):
    with socket.socket() as taken, socket.socket() as probe:
        taken.bind(("127.0.0.1", free_port()))
        port = taken.getsockname()[1]
        monkeypatch.setattr(local_server, "SERVER_PORTS", range(port, port + 1))
        with pytest.raises(ServerDidNotStart, match=f"a free one from {port} to {port}"):
            free_port()
        taken.close()
        assert free_port() == port
        probe.bind(("127.0.0.1", port))
