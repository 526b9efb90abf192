"""A server that cannot blend as asked does not start, and says why."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.pairs import build_pair
from tests.server.harness import ServerDied, serve

CASES: list[tuple[str, dict[str, Any], dict[str, str], str]] = [
    ("deterministic", {"enable_deterministic_inference": True}, {}, "enable_deterministic_inference"),
    ("defaults", {"sampling_defaults": "model"}, {}, "sampling_defaults is 'model'.*'openai'"),
    ("plugin hidden", {}, {"SGLANG_PLUGINS": "trb_cpu"}, "'trb'"),
    ("processor", {"enable_custom_logit_processor": True}, {}, "enable_custom_logit_processor"),
    ("original logprobs", {}, {"SGLANG_RETURN_ORIGINAL_LOGPROB": "1"}, "SGLANG_RETURN_ORIGINAL_LOGPROB"),
    ("revision", {"revision": "step-100"}, {}, "revision is 'step-100'; a blending server needs 'main'"),
    ("tokenizers", {"tokenizer_worker_num": 2}, {}, "tokenizer_worker_num is 2"),
]


@pytest.mark.parametrize(("options", "environment", "message"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_missing_precondition_is_named(options: dict[str, Any], environment: dict[str, str], message: str) -> None:
    pair = build_pair("plain")
    with pytest.raises(ServerDied) as died, serve(pair.student, pair.teacher, environment, **options):
        pass
    assert re.search(message, str(died.value)), str(died.value)


def test_no_teacher_is_named() -> None:
    pair = build_pair("plain")
    with pytest.raises(ServerDied, match="speculative_draft_model_path"), serve(pair.student, None):
        pass


@pytest.mark.parametrize(
    ("variant", "message"), [("mismatch_ids", "id"), ("mismatch_split", "pre-tokeniser|pre_tokenizer")]
)
def test_different_vocabularies_are_named(variant: str, message: str) -> None:
    pair = build_pair(variant)
    with pytest.raises(ServerDied, match=f"PairMismatch.*({message})"), serve(pair.student, pair.teacher):
        pass


def test_a_teacher_that_would_be_taken_for_a_draft_head_is_named(tmp_path: Path) -> None:
    pair = build_pair("plain")
    teacher = shutil.copytree(pair.teacher, tmp_path / "teacher")
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen3MoeForCausalLM"]}))
    message = "PairMismatch: the teacher is a Qwen3MoeForCausalLM, which SGLang takes for its Qwen3MoeForCausalLMMTP"
    with pytest.raises(ServerDied, match=message), serve(pair.student, teacher):
        pass


def test_a_student_of_another_format_is_named(tmp_path: Path) -> None:
    pair = build_pair("plain")
    student = shutil.copytree(pair.student, tmp_path / "student")
    (student / "model.safetensors").rename(student / "pytorch_model.bin")
    message = "model_path: got .*; it has pytorch_model.bin; .*save_pretrained"
    with pytest.raises(ServerDied, match=message), serve(student, pair.teacher):
        pass


def test_plain_server_beside_the_plugin_is_untouched() -> None:
    """With the plugin installed and another sampling backend, SGLang is itself."""
    pair = build_pair("plain")
    with serve(pair.student, None, sampling_backend="pytorch") as server:
        answer = server.generate("hello", max_new_tokens=4)
        assert "trb" not in answer["meta_info"]
        assert server.get("/trb/info").status_code == 404
