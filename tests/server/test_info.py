"""What a server says of itself that a trainer relies on: how long a request may be, and is the teacher alive?"""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.pairs import TOKENIZER_SIZE, build_pair
from tests.server.harness import Server, serve


def test_the_limits_are_those_of_a_whole_answer(server: Server) -> None:
    """The server's context has 512 tokens; SGLang takes requests up to that, and cuts their responses off silently."""
    limits = server.get("/trb/info").json()["limits"]
    longest, total = limits["prompt_tokens"], limits["total_tokens"]

    def drawn(prompt: int, wanted: int) -> int:
        return len(server.generate([40] * prompt, max_new_tokens=wanted, ignore_eos=True)["output_ids"])

    for prompt in (longest, 300):
        assert drawn(prompt, total - prompt) == total - prompt
        assert drawn(prompt, total - prompt + 1) == total - prompt
    too_long = {"input_ids": [40] * (longest + 1), "sampling_params": {"max_new_tokens": 1}}
    assert server.post("/generate", too_long).status_code == 400


def test_a_teacher_that_looks_alive_is_said_to_be(server: Server) -> None:
    health = server.get("/trb/info").json()["teacher_health"]
    assert (health["condition"], health["broken"]) == (None, False) and health["entropy_spread"] > 0.1


def test_a_teacher_without_its_weights_is_named_in_the_log_and_in_info(tmp_path: Path) -> None:
    pair = build_pair("plain")
    teacher = shutil.copytree(pair.teacher, tmp_path / "teacher")
    weights = load_file(teacher / "model.safetensors")
    zeroed = {name: weight if "norm" in name else weight * 0 for name, weight in weights.items()}
    save_file(zeroed, teacher / "model.safetensors", metadata={"format": "pt"})
    with serve(pair.student, teacher) as server:
        health = server.get("/trb/info").json()["teacher_health"]
        assert (health["condition"], health["broken"]) == ("uniform teacher", True)
        assert health["entropy_mean"] == pytest.approx(math.log(TOKENIZER_SIZE), rel=1e-3)
        assert "uniform teacher: its entropy is" in server.log.read_text()
