"""A pair on a GPU against transformers: attention backends, graphs, overlap, retraction, weight updates.

Every body runs on the CPU too, in ``make test-slow``, so that nothing but devices and kernels is new on a GPU. The
models differ by a KL like a real pair's and depend on their context, so that a stale buffer, exchanged models or a
wrong slot of either KV pool would show.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.pairs import TOKENIZER_SIZE, Pair, build_pair
from tests.server.checks import Request, check_against_oracle, mixed_requests, run_concurrently
from tests.server.harness import ADMIN_KEY, Server, serve
from tests.server.oracle import Oracle
from tests.server.staggered import check_roughly, equal_answers, run_together, staggered_requests
from tests.server.test_weights import checksums, update_from_disk
from tests.server.trainer_side import push_tensors, session

START_SECONDS = 600
"""The first start on a machine compiles kernels."""


@dataclasses.dataclass(frozen=True)
class Setup:
    """A way to run the pair.

    Attributes:
        exact: float32 throughout, so that answers agree with the oracle token by token.
        requests: how many at once.
        longest: their longest answer, in tokens.
    """

    name: str
    options: dict[str, Any]
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    exact: bool = False
    requests: int = 64
    longest: int = 64

    @property
    def on_gpu(self) -> bool:
        return self.options.get("device") == "cuda"

    @contextlib.contextmanager
    def serve(self, pair: Pair, **options: Any) -> Iterator[Server]:
        """A server whose kernels are compiled: for new prompts, for cached ones, and for decoding."""
        options = {"admin_api_key": ADMIN_KEY, "start_seconds": START_SECONDS} | self.options | options
        with serve(pair.student, pair.teacher, self.environment, **options) as server:
            body = {"input_ids": list(range(20, 60)), "sampling_params": {"max_new_tokens": 4, "ignore_eos": True}}
            for _ in range(2):
                assert server.post("/generate", body, timeout=START_SECONDS).status_code == 200
            yield server


GPU = {
    "device": "cuda",
    "max_total_tokens": 16384,
    "max_running_requests": 64,
    "cuda_graph_max_bs_decode": 64,
    "disable_prefill_cuda_graph": True,
}
HALF = {"dtype": "bfloat16", "enable_fp32_lm_head": True}
FLOAT32 = {
    "NVIDIA_TF32_OVERRIDE": "0",  # TF32 keeps 10 bits
    "TRITON_F32_DEFAULT": "ieee",
    "SGLANG_FORCE_FUSED_OP_BACKEND": "native",  # SGLang's norm kernels take half precision only
}
ON_CPU = [
    Setup("cpu-float32", {}, exact=True, requests=16, longest=32),
    Setup("cpu-bfloat16", HALF, requests=16, longest=32),
]
ON_GPU = [
    Setup("triton-float32", GPU | {"attention_backend": "triton"}, FLOAT32, exact=True),
    Setup("fa3-bfloat16", GPU | HALF | {"attention_backend": "fa3"}),
    Setup("flashinfer-bfloat16", GPU | HALF | {"attention_backend": "flashinfer"}),
]
GPU_MARKS = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
HOPPER = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability()[0] != 9, reason="FA3 needs a Hopper GPU"
)


def parameters() -> Iterator[Any]:
    for setup in ON_CPU:
        yield pytest.param(setup, id=setup.name, marks=[pytest.mark.slow])
    for setup in ON_GPU:
        yield pytest.param(setup, id=setup.name, marks=[*GPU_MARKS, *([HOPPER] if "fa3" in setup.name else [])])


pytestmark = pytest.mark.timeout(2 * START_SECONDS + 300)
every_setup = pytest.mark.parametrize("setup", list(parameters()))


@pytest.fixture(scope="module")
def pair() -> Pair:
    return build_pair("wide")


@pytest.fixture(scope="module")
def oracles() -> dict[Path, Oracle]:
    return {}


def check(setup: Setup, oracle: Oracle, requests: list[Request], answers: list[dict[str, Any]]) -> None:
    for request, answer in zip(requests, answers, strict=True):
        assert len(answer["output_ids"]) == request[2]["max_new_tokens"]
        if setup.exact:
            check_against_oracle(oracle, request, answer, exact_penalties=False)
        else:
            check_roughly(oracle, request, answer)


def oracle_of(oracles: dict[Path, Oracle], student: Path, teacher: Path, server: Server) -> Oracle:
    if student not in oracles:
        oracles[student] = Oracle(student, teacher, TOKENIZER_SIZE, server.get("/trb/info").json()["stop_ids"])
    return oracles[student]


def check_graphs(setup: Setup, server: Server) -> None:
    """Both models' decode graphs were captured, by SGLang's names for student and teacher."""
    log = server.log.read_text(errors="replace")
    for role in ("target", "draft"):
        assert (f"Capture {role} decode CUDA graph end." in log) == setup.on_gpu


@every_setup
def test_staggered_answers_agree_with_transformers_with_and_without_overlap(setup, pair, oracles) -> None:
    requests, answers = staggered_requests(setup.requests, setup.longest), []
    for options in ({}, {"disable_overlap_schedule": True}):
        with setup.serve(pair, **options) as server:
            check_graphs(setup, server)
            oracle = oracle_of(oracles, pair.student, pair.teacher, server)
            for _ in range(2):  # the second round finds its prompts in the radix cache
                answers.append(run_concurrently(server, requests))
                check(setup, oracle, requests, answers[-1])
    # What is rounded depends on which requests share a batch; where that moves a law past a draw, a token changes.
    assert equal_answers(answers[0], answers[2], requests) >= (0.95 if setup.exact else 0.4)


@every_setup
def test_retracted_requests_agree_with_transformers(setup, pair, oracles) -> None:
    requests = mixed_requests(length=16, new_tokens=64)
    with setup.serve(pair, max_total_tokens=320, schedule_conservativeness=0.01) as server:
        answers = run_together(server, requests)
        check(setup, oracle_of(oracles, pair.student, pair.teacher, server), requests, answers)
    assert any(answer["meta_info"]["num_retractions"] for answer in answers)


@every_setup
def test_updates_from_disk_and_tensors_reach_the_student_only(setup, pair, oracles, tmp_path) -> None:
    trained, weights = moved_copy(pair.student, tmp_path / "student")
    requests = staggered_requests(12, longest=12)
    with setup.serve(pair) as server:
        old, new = (oracle_of(oracles, student, pair.teacher, server) for student in (pair.student, trained))
        teacher = checksums(server, "draft")
        check(setup, old, requests, run_concurrently(server, requests))
        assert update_from_disk(server, trained, "disk-1").status_code == 200
        pushed = checksums(server, "target")
        check(setup, new, requests, run_concurrently(server, requests))
        assert update_from_disk(server, pair.student, "disk-0").status_code == 200
        assert checksums(server, "target") != pushed
        assert session(server, "begin").status_code == 200
        assert push_tensors(server, weights, weight_version="tensor-1").status_code == 200
        assert session(server, "end").status_code == 200
        assert checksums(server, "target") == pushed
        answers = run_concurrently(server, requests)
        check(setup, new, requests, answers)
        assert {answer["meta_info"]["weight_version"] for answer in answers} == {"tensor-1"}
        assert checksums(server, "draft") == teacher
    with pytest.raises(AssertionError):  # the check would notice the old weights
        check(setup, old, requests, answers)


def moved_copy(student: Path, folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A checkpoint like the student's after training: every tensor moved a little."""
    shutil.copytree(student, folder)
    generator = torch.Generator().manual_seed(7)
    weights = load_file(folder / "model.safetensors")
    moved = {k: w + 0.2 * w.std() * torch.randn(w.shape, generator=generator) for k, w in weights.items()}
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, moved
