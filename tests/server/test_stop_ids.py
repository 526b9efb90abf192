"""Stop-id alignment on a real server: base and post-trained checkpoints end a text with different ids (App. D)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from sglang_trb.wire.packing import unpack
from tests.pairs import ENDOFTEXT, IM_END, Pair, build_pair, qwen_tokenizer, small_tokenizer
from tests.server.checks import prompts
from tests.server.harness import Server, serve

VARIANTS = {"eos": small_tokenizer, "qwen_ids": qwen_tokenizer}


@dataclasses.dataclass(frozen=True)
class Served:
    server: Server
    pair: Pair
    student_stop: int
    teacher_stop: int


@pytest.fixture(scope="module", params=VARIANTS)
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    """A pair that differs in its stop id only."""
    tokenizer = VARIANTS[request.param]()
    pair = build_pair(request.param)
    with serve(pair.student, pair.teacher, grammar_backend="xgrammar") as server:
        yield Served(server, pair, tokenizer.token_to_id(ENDOFTEXT), tokenizer.token_to_id(IM_END))


def test_info_names_the_stop_event(served: Served) -> None:
    assert served.server.get("/trb/info").json()["stop_ids"] == {
        "student": [served.student_stop],
        "teacher": [served.teacher_stop],
        "canonical": served.student_stop,
        "masked": [served.teacher_stop],
    }


def test_a_grammar_leaves_the_teacher_its_stop(served: Served) -> None:
    """It knows the student's stop id only; without its own the teacher would have nothing left to draw."""
    for blend in ({"trb_rule": "teacher"}, {"trb_epsilon": 0.05}):
        answer = served.server.generate("hello", blend, regex="(yes|no|hello world)", ignore_eos=False)
        assert answer["text"] in ("yes", "no", "hello world")
        assert answer["output_ids"][-1] == served.student_stop
        assert answer["meta_info"]["trb"]["mean_beta"] == 1.0


def test_aligned_models_are_equal_and_stop_with_the_students_id(served: Served) -> None:
    blend = {"trb_epsilon": 0.05, "trb_return": "support_both"}
    stopped = 0
    for seed, ids in enumerate(prompts(8, 12, seed=31)):
        answer = served.server.generate(ids, blend, max_new_tokens=120, ignore_eos=False, sampling_seed=seed)
        trb, output = answer["meta_info"]["trb"], answer["output_ids"]
        # p and q are one law, so every budget allows the teacher: beta = 1 and KL = 0 up to the forwards' rounding.
        assert np.all(unpack(trb["beta"]) == 1.0)
        assert np.max(unpack(trb["kl"])) <= 1e-9
        np.testing.assert_allclose(unpack(trb["student_logprob"]), unpack(trb["teacher_logprob"]), atol=1e-5)
        assert served.teacher_stop not in output
        assert served.teacher_stop not in unpack(trb["support"]["ids"])
        if answer["meta_info"]["finish_reason"]["type"] == "stop":
            assert output[-1] == served.student_stop
            assert answer["meta_info"]["finish_reason"]["matched"] == served.student_stop
            stopped += 1
    assert stopped > 0, "some answers end by themselves"


def test_teacher_rule_stops_with_the_students_id(served: Served) -> None:
    reasons = []
    for seed, ids in enumerate(prompts(4, 12, seed=32)):
        blend = {"trb_rule": "teacher"}
        answer = served.server.generate(ids, blend, max_new_tokens=200, ignore_eos=False, sampling_seed=seed)
        reasons.append(answer["meta_info"]["finish_reason"])
    assert {"type": "stop", "matched": served.student_stop} in reasons


def test_min_new_tokens_keeps_both_models_from_stopping(served: Served) -> None:
    for rule in ({"trb_rule": "teacher"}, {"trb_epsilon": 10.0}, {"trb_rule": "student"}):
        answer = served.server.generate(
            prompts(1, 8, seed=33)[0], rule, max_new_tokens=40, min_new_tokens=40, ignore_eos=False
        )
        assert answer["meta_info"]["completion_tokens"] == 40


def test_stop_token_that_alignment_masks_is_refused(served: Served) -> None:
    body = {"text": "x", "sampling_params": {"stop_token_ids": [served.teacher_stop]}}
    response = served.server.post("/generate", body)
    assert response.status_code == 400
    assert "stop_token_ids" in response.text
    assert str(served.student_stop) in response.text


def test_overridden_stop_ids(served: Served) -> None:
    """Told that both models stop with the teacher's id, the server ends answers there."""
    both = str(served.teacher_stop)
    environment = {"TRB_STUDENT_STOP_IDS": both, "TRB_TEACHER_STOP_IDS": both}
    with serve(served.pair.student, served.pair.teacher, environment) as server:
        assert server.get("/trb/info").json()["stop_ids"]["canonical"] == served.teacher_stop
        reasons = [
            server.generate(ids, {"trb_rule": "teacher"}, max_new_tokens=200, ignore_eos=False)["meta_info"]
            for ids in prompts(4, 12, seed=34)
        ]
        assert any(meta["finish_reason"].get("matched") == served.teacher_stop for meta in reasons)
