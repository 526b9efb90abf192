"""Blended answers on a GPU against transformers: decode graphs of both models, with and without overlap scheduling.

The tiny pair's models differ, so a stale buffer, exchanged models or a wrong slot of the teacher's KV would show.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.pairs import TOKENIZER_SIZE, build_pair
from tests.server.checks import check_against_oracle, mixed_requests, run_concurrently
from tests.server.harness import serve
from tests.server.oracle import Oracle

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

IEEE = {"NVIDIA_TF32_OVERRIDE": "0", "TRITON_F32_DEFAULT": "ieee"}
"""Float32 products in float32, as the oracle's; TF32 keeps 10 bits."""


@pytest.mark.parametrize("options", [{}, {"disable_overlap_schedule": True}], ids=["overlap", "synchronous"])
def test_answers_agree_with_transformers(options: dict[str, Any]) -> None:
    pair = build_pair("plain")
    options = {"device": "cuda", "attention_backend": "triton", **options}
    with serve(pair.student, pair.teacher, IEEE, **options) as server:
        log = server.log.read_text(errors="replace")
        assert all(f"Capture {role} decode CUDA graph end." in log for role in ("target", "draft"))
        oracle = Oracle(pair.student, pair.teacher, TOKENIZER_SIZE, server.get("/trb/info").json()["stop_ids"])
        requests = mixed_requests()
        for _ in range(2):  # the second round finds its prompts in the radix cache
            for request, answer in zip(requests, run_concurrently(server, requests), strict=True):
                check_against_oracle(oracle, request, answer, exact_penalties="disable_overlap_schedule" in options)
