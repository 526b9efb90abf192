"""A server of the tiny pair, for each file of trainings."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest

from sglang_trb.launch.local_server import ADMIN_KEY_VARIABLE, serving
from tests.e2e.tiny_training import ADMIN_KEY, PREFERRED, ROOT, write_config
from tests.pairs import Pair, build_pair


@pytest.fixture(scope="module")
def pair() -> Pair:
    return build_pair("plain")


@pytest.fixture(scope="module")
def server(pair, tmp_path_factory):
    with server_of(pair, tmp_path_factory) as address:
        yield address


@pytest.fixture(scope="module")
def second_server(pair, server, tmp_path_factory):
    with server_of(pair, tmp_path_factory) as address:
        yield address


@contextlib.contextmanager
def server_of(pair, tmp_path_factory):
    options = ["--model-path", str(pair.student), "--speculative-draft-model-path", str(pair.teacher)]
    options += ["--preferred-sampling-params", json.dumps(PREFERRED)]
    os.environ[ADMIN_KEY_VARIABLE] = ADMIN_KEY  # the server's and the trainers'
    log = tmp_path_factory.mktemp("server") / "server.log"
    with serving(ROOT / "server_configs" / "cpu-tiny.yaml", options, log=log) as address:
        yield address
    os.environ.pop(ADMIN_KEY_VARIABLE, None)


@pytest.fixture
def config(pair, server, tmp_path) -> Path:
    return write_config(tmp_path, pair, server)
