"""Every shipped server configuration, read by SGLang's own argument parser and resolved as a launch would.

SGLang and its plug-ins change the process they are loaded into, so a child process does it. Patched there: the memory
of the device, an H100's. (With and without our CPU platform the H100 configurations resolved to the same, option by
option.) The models are small tokenizers beside the real shapes, since no checkpoint is at hand.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sglang_trb.cli.doctor import BAD, config_checks
from sglang_trb.memory import H100_BYTES, model_config, plan
from sglang_trb.server_config import REQUIRED, read_server_config
from tests.pairs import build_pair

FOLDER = Path(__file__).resolve().parents[2] / "server_configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
H100_CONFIGS = [path for path in CONFIGS if path.name.startswith("h100-")]
CPU_CONFIGS = [path for path in CONFIGS if path.name.startswith("cpu-")]
MODELS = ("model_path", "speculative_draft_model_path")

RESOLVE = """
import json, sys
from unittest import mock
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.arg_groups import memory_hook
from sglang.srt.server_args import prepare_server_args
request = json.load(open(sys.argv[1]))
answers = {}
for path, models in request["configs"].items():
    with mock.patch.object(memory_hook, "get_device_memory_capacity", return_value=request["device_mib"]):
        arguments = prepare_server_args(["--config", path, *models])
        arguments.resolve_once()
    arguments.check_server_args()
    answers[path] = arguments.resolved_dict()
json.dump(answers, open(sys.argv[2], "w"), default=str)
"""


@pytest.fixture(scope="module")
def resolved(tmp_path_factory):
    """File name → the options SGLang would start with."""
    folder = tmp_path_factory.mktemp("resolved")
    request, answer = folder / "request.json", folder / "answer.json"
    asked = {str(path): _local_models(folder / path.stem, read_server_config(path)) for path in CONFIGS}
    request.write_text(json.dumps({"configs": asked, "device_mib": H100_BYTES >> 20}))
    command = [sys.executable, "-c", RESOLVE, str(request), str(answer)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SGLANG_")}
    child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert child.returncode == 0, child.stderr[-4000:]
    return {Path(path).name: options for path, options in json.loads(answer.read_text()).items()}


def _local_models(folder, options):
    """Arguments that replace both models by folders of the same shape (the tiny pair's for the CPU) that exist."""
    arguments = []
    for name, tiny in zip(MODELS, (build_pair("plain").student, build_pair("plain").teacher), strict=True):
        copy = folder / name
        shutil.copytree(tiny, copy, ignore=shutil.ignore_patterns("*.safetensors"))
        if options["device"] == "cuda":
            own = json.loads((tiny / "config.json").read_text())
            stops = {key: own[key] for key in ("eos_token_id", "pad_token_id")}
            (copy / "config.json").write_text(json.dumps(model_config(options[name]) | stops))
        arguments += [f"--{name.replace('_', '-')}", str(copy)]
    return arguments


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_sglang_resolves_what_the_file_says(resolved, path):
    written, found = read_server_config(path), resolved[path.name]
    given = {name: value for name, value in written.items() if name not in MODELS}
    for name in ("cuda_graph_max_bs_decode", "disable_prefill_cuda_graph"):  # see test_on_an_h100
        given.pop(name, None)
    assert {name: found[name] for name in given} == given


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_server_can_blend(resolved, path):
    found = resolved[path.name]
    assert found["sampling_backend"] == "trb"
    assert found["sampling_defaults"] == "openai"
    assert found["speculative_draft_model_path"] and found["speculative_algorithm"] is None
    assert not found["disable_overlap_schedule"] and not found["enable_deterministic_inference"]
    assert found["host"] == "127.0.0.1"
    assert not [check for check in config_checks(read_server_config(path)) if check.status in BAD]


@pytest.mark.parametrize("path", H100_CONFIGS, ids=lambda path: path.name)
def test_on_an_h100(resolved, path):
    found = resolved[path.name]
    assert (found["attention_backend"], found["device"], found["dtype"]) == ("flashinfer", "cuda", "bfloat16")
    assert found["enable_fp32_lm_head"] and found["mem_fraction_static"] == 0.84
    assert (found["tp_size"], found["dp_size"], found["page_size"]) == (1, 1, 1)
    graphs = found["cuda_graph_config"]
    assert graphs["decode"]["backend"] == "full" and graphs["decode"]["max_bs"] == found["max_running_requests"] == 128
    assert graphs["prefill"]["backend"] == "disabled"


@pytest.mark.parametrize("path", H100_CONFIGS, ids=lambda path: path.name)
def test_the_memory_in_the_comment_is_what_the_plan_says(path):
    table = plan(read_server_config(path), H100_BYTES).render()
    assert "".join(f"#   {line}\n" for line in table.splitlines()) in path.read_text()


@pytest.mark.parametrize("path", CPU_CONFIGS, ids=lambda path: path.name)
def test_on_a_cpu(resolved, path):
    found = resolved[path.name]
    assert (found["device"], found["attention_backend"], found["dtype"]) == ("cpu", "torch_native", "float32")
    assert found["max_total_tokens"] >= found["context_length"]


@pytest.mark.parametrize("pair", ["1.7b-8b", "0.6b-4b"])
def test_each_of_eight_gpus_serves_as_one_does(pair):
    one, eight = (read_server_config(FOLDER / f"h100-qwen3-{pair}-{count}gpu.yaml") for count in (1, 8))
    assert one == eight


def test_the_engine_requires_what_the_doctor_checks():
    """Read as text: importing the engine would load SGLang into this process."""
    engine = (FOLDER.parent / "sglang_trb" / "engine" / "options.py").read_text()
    assert "from sglang_trb.server_config import REQUIRED" in engine or all(
        f'"{name}": (' in engine for name in REQUIRED
    )
