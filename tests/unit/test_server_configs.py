"""Every shipped server configuration, read by SGLang's own argument parser and resolved as a launch would.

A child process does it (tests/resolve_options.py), for the H100 configurations on a pretended H100. The models are
small tokenizers beside the real shapes, since no checkpoint is at hand.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sglang_trb.checkpoints.memory import H100_BYTES, model_config, plan
from sglang_trb.cli.doctor import BAD, config_checks
from sglang_trb.errors import InvalidParameter
from sglang_trb.footprint import RUNNING_REQUESTS
from sglang_trb.launch.server_config import REQUIRED, read_server_config
from tests.pairs import build_pair

FOLDER = Path(__file__).resolve().parents[2] / "server_configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
H100_CONFIGS = [path for path in CONFIGS if path.name.startswith("h100-")]
CPU_CONFIGS = [path for path in CONFIGS if path.name.startswith("cpu-")]
MODELS = ("model_path", "speculative_draft_model_path")

REFUSED = {
    "speculative-draft-attention-backend": "flashinfer",
    "speculative-draft-kv-cache-dtype": "fp8_e4m3",
    "speculative-draft-load-format": "dummy",
    "speculative-draft-window-size": "1024",
    "speculative-draft-model-quantization": "fp8",
    "flashinfer-allreduce-fusion-backend": "auto",
    "json-model-override-args": '{"rope_theta": 1}',
    "quantization-param-path": "scales.json",
    "startup-weight-load-mode": "overlap",
    "ep-dispatch-algorithm": "static",
    "enable-hisparse": None,
    "enable-flexkv": None,
}
"""Options that would reach one of the two models only, or one in the other's place, with a value; None for a flag."""

TOO_SMALL = {"context-length": "0", "max-total-tokens": "-1", "max-running-requests": "0"}
WRONG = REFUSED | TOO_SMALL


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What tests/resolve_options.py finds: configurations by file name, refused options by name."""
    folder = tmp_path_factory.mktemp("resolved")
    request, answer = folder / "request.json", folder / "answer.json"
    lines = {path: _command_line(folder / path.stem, path) for path in CONFIGS}
    refused = [[*lines[H100_CONFIGS[0]], f"--{name}", *([value] if value else [])] for name, value in WRONG.items()]
    written = H100_CONFIGS[0].read_text().splitlines(keepends=True)
    (folder / "open.yaml").write_text("".join(line for line in written if not line.startswith("max-running-requests")))
    models = lines[H100_CONFIGS[0]][2:]
    open_ended = ["--config", str(folder / "open.yaml"), *models]
    flashinfer = [*open_ended, "--attention-backend", "flashinfer", "--tp-size", "2"]
    asked = {"cpu": [lines[path] for path in CPU_CONFIGS]}
    asked["cuda"] = [*(lines[path] for path in H100_CONFIGS), flashinfer]
    request.write_text(json.dumps(asked | {"refused": refused}))
    command = [sys.executable, "-m", "tests.resolve_options", str(request), str(answer)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SGLANG_")}
    child = subprocess.run(command, env=environment, cwd=FOLDER.parent, capture_output=True, text=True, timeout=300)
    assert child.returncode == 0, child.stderr[-4000:]
    found = json.loads(answer.read_text())
    names = [*(path.name for path in CPU_CONFIGS), *(path.name for path in H100_CONFIGS), "flashinfer", *WRONG]
    return dict(zip(names, [*found["cpu"], *found["cuda"], *found["refused"]], strict=True))


@pytest.fixture
def resolved(answers):
    """File name → the options SGLang would start with."""
    return {path.name: answers[path.name]["options"] for path in CONFIGS}


def _command_line(folder, path):
    """A configuration, its models replaced by folders of the same shape (the tiny pair's for the CPU) that exist."""
    options, arguments = read_server_config(path), ["--config", str(path)]
    for name, tiny in zip(MODELS, (build_pair("plain").student, build_pair("plain").teacher), strict=True):
        copy = folder / name
        shutil.copytree(tiny, copy)
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
    assert (found["attention_backend"], found["device"], found["dtype"]) == ("fa3", "cuda", "bfloat16")
    assert found["enable_fp32_lm_head"] and found["mem_fraction_static"] == 0.84
    assert (found["tp_size"], found["dp_size"], found["page_size"]) == (1, 1, 1)
    assert found["max_running_requests"] == 128 and found["flashinfer_allreduce_fusion_backend"] is None
    graphs = found["cuda_graph_config"]
    assert graphs["decode"]["backend"] == "full" and graphs["decode"]["max_bs"] == found["max_running_requests"]
    assert graphs["prefill"]["backend"] == "disabled"


@pytest.mark.parametrize("path", H100_CONFIGS, ids=lambda path: path.name)
def test_both_models_get_the_same_on_an_h100(answers, path):
    models = answers[path.name]["models"]
    assert models["student"] == models["teacher"]
    assert models["student"]["attention"] == ["fa3", "fa3"]
    assert models["student"]["dtype"] == models["student"]["kv_dtype"] == "torch.bfloat16"
    assert models["student"]["context_length"] == 9216 and models["student"]["quantization"] is None
    assert models["student"]["decode_graph"] == "captured"
    sizes = models["student"]["graph_sizes"]
    assert sizes[0] == 1 and sizes[-1] == 128, "every batch the server may run has a graph that holds it"


def test_flashinfer_and_several_gpus_can_be_chosen_for_both(answers):
    models = answers["flashinfer"]["models"]
    assert models["student"] == models["teacher"] and models["student"]["attention"] == ["flashinfer"] * 2
    assert answers["flashinfer"]["synchronised"] == "1", "the ranks' tokens"
    assert answers[H100_CONFIGS[0].name]["synchronised"] is None


def test_running_requests_are_not_left_to_the_kv_pool(answers):
    """The configuration of this answer does not say; SGLang would take thousands, whose steps need memory."""
    assert answers["flashinfer"]["options"]["max_running_requests"] == RUNNING_REQUESTS


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_reach_one_model_only_are_refused(answers, name):
    option = name.replace("-", "_")
    assert answers[name].startswith(f"NotInForce: {option} is "), answers[name]


@pytest.mark.parametrize(("name", "value"), TOO_SMALL.items())
def test_sizes_that_no_server_can_have_are_refused(answers, name, value):
    expected = f"InvalidParameter: {name.replace('-', '_')}: got {value}; allowed: an integer of at least 1"
    assert answers[name] == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("port: 1\nport: 2", "'port' is given twice"),
        ("tp-size: 1\ntensor_parallel_size: 2", "'tensor_parallel_size' is given twice"),
        ("a: " + "[" * 5000, "recursion"),
        ("model-path: 5", "model_path: got 5; allowed: a checkpoint folder"),
    ],
)
def test_a_file_that_says_nothing_clear_is_refused(tmp_path, text, says):
    (tmp_path / "server.yaml").write_text(text)
    with pytest.raises(InvalidParameter, match=says):
        read_server_config(tmp_path / "server.yaml")


def test_no_option_of_the_draft_model_is_left_out():
    """SGLang's options of a draft model are the teacher's here; a new one needs a decision."""
    import sglang

    fields = (Path(sglang.__file__).parent / "srt/arg_groups/fields").glob("*.py")
    found = {name for file in fields for name in re.findall(r"^    (\w*draft\w*): A\[", file.read_text(), re.MULTILINE)}
    decided = {
        "speculative_draft_model_path",  # the teacher
        "speculative_draft_model_revision",  # checked with the student's
        "speculative_draft_model_quantization",  # checked with the student's
        "_speculative_draft_quantization_explicitly_set",  # SGLang's own note of the one before
        "speculative_num_draft_tokens",  # of the algorithm, which is refused
        "enable_draft_weights_cpu_backup",  # of the memory saver, which is refused
    }
    assert found - decided <= set(REQUIRED) and decided <= found


@pytest.mark.parametrize("path", H100_CONFIGS, ids=lambda path: path.name)
def test_the_memory_in_the_comment_is_what_the_plan_says(path):
    table = plan(read_server_config(path), H100_BYTES).render()
    assert "".join(f"#   {line}\n" for line in table.splitlines()) in path.read_text()


@pytest.mark.parametrize("path", CPU_CONFIGS, ids=lambda path: path.name)
def test_on_a_cpu(resolved, path):
    found = resolved[path.name]
    assert (found["device"], found["attention_backend"], found["dtype"]) == ("cpu", "torch_batched", "float32")
    assert found["max_total_tokens"] >= found["context_length"]


@pytest.mark.parametrize("pair", ["1.7b-8b", "0.6b-4b"])
def test_each_of_eight_gpus_serves_as_one_does(pair):
    one, eight = (read_server_config(FOLDER / f"h100-qwen3-{pair}-{count}gpu.yaml") for count in (1, 8))
    assert one == eight


def test_the_engine_requires_what_the_doctor_checks():
    """Read as text: importing the engine would load SGLang into this process."""
    engine = (FOLDER.parent / "sglang_trb" / "engine" / "options.py").read_text()
    assert "from sglang_trb.launch.server_config import AT_LEAST_ONE, REQUIRED" in engine or all(
        f'"{name}": (' in engine for name in REQUIRED
    )
