"""One blending server with SGLang's default scheduling, shared by the tests that do not change its weights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pairs import TOKENIZER_SIZE, Pair, build_pair
from tests.server.harness import ADMIN_KEY, Server, serve
from tests.server.oracle import Oracle


@pytest.fixture(scope="session")
def pair() -> Pair:
    return build_pair("poison")


@pytest.fixture(scope="session")
def server(pair: Pair) -> Iterator[Server]:
    with serve(pair.student, pair.teacher, admin_api_key=ADMIN_KEY) as server:
        yield server


@pytest.fixture(scope="session")
def oracle(pair: Pair, server: Server) -> Oracle:
    return Oracle(pair.student, pair.teacher, TOKENIZER_SIZE, server.get("/trb/info").json()["stop_ids"])
