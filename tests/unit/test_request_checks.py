"""What the main process does with a request object, however it was made: by a route, or by ``Engine`` in-process."""

from __future__ import annotations

import dataclasses

import pytest

from sglang_trb.errors import InvalidParameter
from sglang_trb.requests.fields import ServerFacts

io_struct = pytest.importorskip("sglang.srt.managers.io_struct")
from sglang.srt.managers.tokenizer_manager import TokenizerManager  # noqa: E402

from sglang_trb.engine.http import request_routes  # noqa: E402
from sglang_trb.engine.manager import tokenizer_manager  # noqa: E402

GenerateReqInput = io_struct.GenerateReqInput


@pytest.fixture
def manager(monkeypatch):
    """A tokenizer manager with nothing but what the checks look at."""
    monkeypatch.setattr(tokenizer_manager.metrics, "observe_rejected", lambda reason: None)
    made = object.__new__(tokenizer_manager.TrbTokenizerManager)
    made.blends, made.facts, made.rid_to_state = True, ServerFacts(2000, 512), {}
    return made


def test_what_sglang_leaves_at_its_defaults_is_no_part_of_the_request(manager):
    for prompt in ({"text": "x"}, {"text": ["x", "y"]}, {"input_ids": [1]}, {"input_ids": [[1], [2]]}):
        manager._check_request(GenerateReqInput(**prompt))
        manager._check_request(GenerateReqInput(**prompt, modalities=[], return_sampling_mask=False, image_data=None))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"sampling_params": {"top_k": 2**31}}, "top_k"),
        ({"sampling_params": {"logit_bias": {5: 1.0}}}, "logit_bias"),
        ({"sampling_params": [{}]}, "sampling_params"),
        ({"rid": "HEALTH_CHECK_x"}, "rid"),
        ({"stream": 1}, "stream"),
        ({"return_text_in_logprobs": 0}, "return_text_in_logprobs"),
        ({"image_data": "x.png"}, "image_data"),
    ],
)
def test_a_request_in_process_meets_the_same_rules(manager, fields, named):
    with pytest.raises(InvalidParameter, match=f"^{named}: got .*; allowed: "):
        manager._check_request(GenerateReqInput(**({"text": "x"} | fields)))


def test_a_field_of_another_sglang_is_refused_once_a_request_uses_it(manager):
    newer = dataclasses.make_dataclass("Newer", [("new_power", int, 0)], bases=(GenerateReqInput,))
    manager._check_request(newer(text="x"))
    with pytest.raises(InvalidParameter, match=r"new_power: got 1; allowed: known fields only"):
        manager._check_request(newer(text="x", new_power=1))


def test_only_generation_requests_come_in(manager):
    with pytest.raises(InvalidParameter, match="EmbeddingReqInput"):
        manager._check_request(io_struct.EmbeddingReqInput(text="x"))


def test_an_id_in_flight_is_refused_before_anything_is_kept_of_the_request(manager):
    manager.rid_to_state = {"a": None, "b_5": None}
    for rid, prompts in (("a", "x"), (["c", "a"], ["x", "y"]), ("b", ["x"] * 6)):
        with pytest.raises(InvalidParameter, match="rid"):
            manager._check_request(GenerateReqInput(text=prompts, rid=rid))
    manager._check_request(GenerateReqInput(text="x", rid="b"))
    with pytest.raises(InvalidParameter, match="b_5"):
        manager._check_request(GenerateReqInput(text="x", rid="b", sampling_params={"n": 6}))


def test_aborting_a_request_leaves_those_whose_ids_begin_like_its_own(manager, monkeypatch):
    aborted = []
    monkeypatch.setattr(TokenizerManager, "abort_request", lambda self, rid="", abort_all=False: aborted.append(rid))
    manager.rid_to_state = {"a": None, "ab": None, "c": None}
    for rid in ("a", "ab", "c"):
        manager.abort_request(rid)
    assert aborted == ["ab", "c"]


def test_every_route_that_takes_a_request_is_checked_or_refused():
    """By path, so that a route of a new SGLang which takes one is missed here and not by a client."""
    from sglang.srt.entrypoints.http_server import app

    takes_none = {"/health", "/health_generate", "/v1/models", "/v1/models/{model:path}"}
    guarded = request_routes.CHECKED.keys() | request_routes.REFUSED.keys() | takes_none | {"/v1/loads"}
    paths = {path for route in app.routes if (path := getattr(route, "path", None))}
    assert {path for path in paths if path.startswith(("/v1/", "/api/"))} - {"/api/tags", "/api/show"} <= guarded
    assert request_routes.CHECKED.keys() | request_routes.REFUSED.keys() <= paths
