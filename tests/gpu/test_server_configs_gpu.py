"""The single-GPU server configurations, started on randomly initialised models of the real shapes.

SGLang's random weights make every law uniform. One tensor, pushed to the student as a trainer would, makes its law
peaked and leaves the teacher's as it was: then the budget binds at every token.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sglang_trb.checkpoints.memory import model_config, plan
from sglang_trb.cli.doctor import device_bytes
from sglang_trb.cli.machine import MODEL_OPTIONS
from sglang_trb.launch.local_server import free_port
from sglang_trb.launch.server_config import read_server_config
from tests.pairs import build_pair, qwen_tokenizer
from tests.server.harness import ADMIN_KEY, Server, wait_until_healthy
from tests.server.trainer_side import push_tensors, session

FOLDER = Path(__file__).resolve().parents[2] / "server_configs"
START_SECONDS = 900  # the first start on a machine compiles kernels
EPSILON = 0.01
PEAKED = 10_000.0
"""Over the root of the hidden size, the final norm's weight that gives SGLang's random models (uniform within 0.001)
logits with a deviation of some 3."""

GPU_MARKS = [
    pytest.mark.gpu,
    pytest.mark.timeout(START_SECONDS + 300),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


CONFIGS = [
    *(pytest.param(path, 64, id=path.name, marks=GPU_MARKS) for path in sorted(FOLDER.glob("h100-*-1gpu.yaml"))),
    pytest.param(FOLDER / "cpu-tiny.yaml", 4, id="cpu", marks=[pytest.mark.slow]),
]
"""The GPU configurations with 64 requests; the CPU's, with Qwen3's vocabulary and 4, keeps this file right."""


def shapes_of(options):
    """The two models' ``config.json``."""
    if options["device"] == "cuda":
        return [model_config(options[name]) for name in MODEL_OPTIONS]
    pair = build_pair("qwen_ids")
    return [json.loads((folder / "config.json").read_text()) for folder in (pair.student, pair.teacher)]


@pytest.mark.parametrize(("path", "requests"), CONFIGS)
def test_starts_with_both_models_captured_and_blends(path, requests, tmp_path):
    options = read_server_config(path)
    shapes = shapes_of(options)
    for name, shape in zip(MODEL_OPTIONS, shapes, strict=True):
        options[name] = str(random_model(tmp_path / name, shape))
    expected = plan(options, device_bytes(options))
    if not expected.fits:
        pytest.skip(f"this GPU is too small for the pair:\n{expected.render()}")
    models = {name: options[name] for name in MODEL_OPTIONS}
    with running(path, models, tmp_path / "server.log") as server:
        log = server.log.read_text(errors="replace")
        for role in ("target", "draft"):  # SGLang's names for student and teacher
            assert (f"Capture {role} decode CUDA graph end." in log) == (options["device"] == "cuda")
        found = server.get("/trb/info").json()["memory"]
        for role, model in (("student", expected.student), ("teacher", expected.teacher)):
            assert found[f"{role}_weight_bytes"] == model.weight_bytes
            assert found[f"{role}_kv_bytes_per_token"] == model.kv_bytes_per_token
        assert found["max_total_tokens"] == pytest.approx(expected.tokens, rel=0.05)
        make_the_student_peaked(server, shapes[0]["hidden_size"])
        answers = generate(server, requests, tokens=64)
    for answer in answers:
        found = answer["meta_info"]["trb"]
        assert found["epsilon"] == EPSILON and found["completion_tokens"] == 64
        assert 0.99 * EPSILON <= found["mean_kl"] <= EPSILON * (1 + 1e-4)
        assert 0 < found["mean_beta"] < 1 and found["saturated_fraction"] == 0


def make_the_student_peaked(server, hidden_size):
    assert session(server, "begin").status_code == 200
    weights = {"model.norm.weight": torch.full((hidden_size,), PEAKED / hidden_size**0.5)}
    response = push_tensors(server, weights, weight_version="peaked")
    assert response.status_code == 200, response.text
    assert session(server, "end").status_code == 200


@contextlib.contextmanager
def running(config, models, log):
    """The server of a configuration, its models replaced."""
    port = free_port()
    arguments = ["--config", str(config), "--port", str(port), "--load-format", "dummy", "--admin-api-key", ADMIN_KEY]
    for name, folder in models.items():
        arguments += [f"--{name.replace('_', '-')}", folder]
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "sglang.launch_server", *arguments],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            start_new_session=True,
        )
    server = Server(process, port, log)
    try:
        wait_until_healthy(server, START_SECONDS)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def random_model(folder, config):
    """A checkpoint of a published shape: a tokenizer of Qwen3's size, and of the weights the one that is pushed."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": config["eos_token_id"]}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    qwen_tokenizer().save(str(folder / "tokenizer.json"))
    weights = {"model.norm.weight": torch.zeros(config["hidden_size"])}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def generate(server, batch, tokens):
    sampling = {"max_new_tokens": tokens, "ignore_eos": True, "custom_params": {"trb_epsilon": EPSILON}}
    body = {"input_ids": [[1000 + i] * (8 + i) for i in range(batch)], "sampling_params": sampling}
    response = server.post("/generate", body, timeout=300)
    assert response.status_code == 200, response.text
    return response.json()
