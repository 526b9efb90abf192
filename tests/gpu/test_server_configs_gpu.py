"""The single-GPU server configurations, started on randomly initialised models of the real shapes.

Not run on this project's own machines unless one has a GPU with room for the pair; until then the configurations are
checked by tests/unit/test_server_configs.py alone.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
import torch

from sglang_trb.memory import model_config, plan
from sglang_trb.server_config import read_server_config
from tests.pairs import qwen_tokenizer

FOLDER = Path(__file__).resolve().parents[2] / "server_configs"
CONFIGS = sorted(FOLDER.glob("h100-*-1gpu.yaml"))
START_SECONDS = 900  # FlashInfer may compile kernels
PORT = 30917
EPSILON = 0.01

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.timeout(START_SECONDS + 300),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_starts_with_both_models_captured_and_blends(path, tmp_path):
    expected = plan(read_server_config(path), torch.cuda.get_device_properties(0).total_memory)
    if not expected.fits:
        pytest.skip(f"this GPU is too small for the pair:\n{expected.render()}")
    log = tmp_path / "server.log"
    with running(path, tmp_path, log):
        text = log.read_text(errors="replace")
        for role in ("target", "draft"):  # SGLang's names for student and teacher
            assert f"Capture {role} decode CUDA graph end." in text
        found = requests.get(f"http://127.0.0.1:{PORT}/trb/info", timeout=60).json()["memory"]
        for role, model in (("student", expected.student), ("teacher", expected.teacher)):
            assert found[f"{role}_weight_bytes"] == model.weight_bytes
            assert found[f"{role}_kv_bytes_per_token"] == model.kv_bytes_per_token
        assert found["max_total_tokens"] == pytest.approx(expected.tokens, rel=0.05)
        answers = generate(batch=8, tokens=64)
    for answer in answers:
        found = answer["meta_info"]["trb"]
        assert found["epsilon"] == EPSILON and found["completion_tokens"] == 64
        assert 0 <= found["mean_kl"] <= EPSILON


@contextlib.contextmanager
def running(config, folder, log):
    """The server of a configuration, its models replaced by random ones of the same shapes."""
    arguments = ["--config", str(config), "--port", str(PORT), "--load-format", "dummy"]
    for name in ("model_path", "speculative_draft_model_path"):
        arguments += [f"--{name.replace('_', '-')}", str(random_model(folder, read_server_config(config)[name]))]
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "sglang.launch_server", *arguments],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            start_new_session=True,
        )
    try:
        wait_until_healthy(process, log)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def random_model(folder, name):
    """A checkpoint without weights: the published shape, a tokenizer of Qwen3's size."""
    config = model_config(name)
    folder = folder / Path(name).name
    folder.mkdir()
    stops = config["eos_token_id"] if name.endswith("-Base") else [151645, 151643]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    qwen_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def wait_until_healthy(process, log):
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(requests.ConnectionError, requests.Timeout):
            if requests.get(f"http://127.0.0.1:{PORT}/health_generate", timeout=10).status_code == 200:
                return
        time.sleep(1)
    pytest.fail("\n".join(log.read_text(errors="replace").splitlines()[-60:]))


def generate(batch, tokens):
    sampling = {"max_new_tokens": tokens, "ignore_eos": True, "custom_params": {"trb_epsilon": EPSILON}}
    body = {"input_ids": [[1000 + i] * 16 for i in range(batch)], "sampling_params": sampling}
    response = requests.post(f"http://127.0.0.1:{PORT}/generate", json=body, timeout=300)
    assert response.status_code == 200, response.text
    return response.json()
