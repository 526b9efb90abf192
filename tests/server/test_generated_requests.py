"""No request can end, fault or hang the server, change a neighbour's answer, or keep slots or memory."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.request_cases import CASES
from tests.server import generated
from tests.server.harness import Server

pytestmark = pytest.mark.filterwarnings("ignore:Ignoring unsupported FirstError")  # Hypothesis: it changes no value

TOGETHER = 10
MIB = 1 << 20


def hold(server: Server, count: int, derandomize: bool) -> None:
    """Send that many generated requests, in groups; see the module."""

    @settings(
        max_examples=count,
        derandomize=derandomize,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # a server that died cannot be asked again for a smaller example
        suppress_health_check=list(HealthCheck),
    )
    @given(generated.routed())
    def send(request: generated.Request) -> None:
        waiting.append(request)
        if len(waiting) == TOGETHER:
            group = waiting.copy()
            waiting.clear()
            generated.send_together(server, group, expected)

    waiting: list[generated.Request] = []
    expected = generated.neighbour(server)
    slots, memory = server.kv_slots(), generated.resident_bytes(server)
    send()
    assert generated.neighbour(server) == expected
    assert server.kv_slots() == slots
    assert generated.resident_bytes(server) < memory + 256 * MIB
    assert server.get("/health_generate").status_code == 200


def test_three_hundred_generated_requests(server: Server) -> None:
    hold(server, 300, derandomize=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_three_thousand_generated_requests(server: Server) -> None:
    hold(server, 3000, derandomize=False)


@pytest.mark.parametrize("route", generated.REFUSED)
def test_a_route_without_a_place_for_the_blend_says_so(server: Server, route: str) -> None:
    response = server.post(route, {"model": "m", "input": "x", "messages": [], "prompt": "x"})
    assert response.status_code == 501, response.text
    assert f"{route} is not served by a blending server: " in response.text


@pytest.mark.parametrize(("route", "body", "field"), CASES, ids=[f"{case[0]} {case[2]}" for case in CASES])
def test_a_wrong_request_is_answered_400(server: Server, route: str, body: dict, field: str) -> None:
    response = server.post(route, body, timeout=generated.TIMEOUT)
    assert response.status_code == 400, response.text
    assert field in response.text
    assert "allowed: " in response.text
