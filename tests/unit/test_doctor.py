"""The doctor's report on healthy and broken installations and configurations."""

import functools
import importlib.util
import json
import re
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from sglang_trb.checkpoints.memory import GIB, H100_BYTES
from sglang_trb.cli import compare_sglang, doctor
from sglang_trb.cli import machine as host
from sglang_trb.engine.touch_points.checked import CHECKED_SGLANG
from sglang_trb.engine.touch_points.source import Sources
from tests.pairs import build_pair

CPU_ONLY, H100 = [], [("NVIDIA H100 80GB HBM3", H100_BYTES)]


SMI = "| NVIDIA-SMI 580.65.06      Driver Version: 580.65.06      CUDA Version: 13.0     |"
NVCC = "Cuda compilation tools, release 13.0, V13.0.48"
GPU_PACKAGES = {"flashinfer_python": "0.6.18", "sglang_kernel": "0.4.7"}


@pytest.fixture
def headers(tmp_path):
    (tmp_path / "Python.h").touch()
    return tmp_path


@pytest.fixture(autouse=True)
def machine(monkeypatch, headers):
    """A healthy CPU machine; tests call it to change what is installed and which GPUs there are."""
    versions = {
        "torch": "2.13.0",
        "sglang": CHECKED_SGLANG,
        "transformers": "5.12.1",
        "triton": "3.7.1",
        "torchvision": "0.28.0",
    }

    def change(devices=CPU_ONLY, entry_points=True, free=100 * GIB, cuda=None, commands=None, **packages):
        installed = versions | {name.replace("_", "-"): version for name, version in packages.items()}
        monkeypatch.setattr(doctor, "installed_version", installed.get)
        monkeypatch.setattr(doctor, "cuda_devices", lambda: devices)
        monkeypatch.setattr(doctor, "has_entry_point", lambda group, name: entry_points)
        monkeypatch.setattr(doctor, "import_error", lambda module: None)
        monkeypatch.setattr(doctor, "torch_cuda", lambda: cuda)
        monkeypatch.setattr(host, "free_bytes", free if callable(free) else lambda path: free)
        answers = {argv.split()[0]: text for argv, text in (commands or {}).items()}
        monkeypatch.setattr(host, "run_command", lambda argv: answers.get(Path(argv[0]).name, ""))
        there = [f"/usr/bin/{name}" for name in ("gcc", "g++", *answers)]
        which = lambda name, path="/usr/bin": f"{path}/{name}" if f"{path}/{name}" in there else None  # noqa: E731
        monkeypatch.setattr(host.shutil, "which", which)

    monkeypatch.delenv("SGLANG_PLUGINS", raising=False)
    monkeypatch.delenv("SGLANG_PLATFORM", raising=False)
    for variable in ("CUDA_HOME", "CUDA_PATH", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(host.sysconfig, "get_path", lambda name: str(headers))
    change()
    return change


@pytest.fixture
def config(tmp_path):
    pair = build_pair("plain")
    options = {
        "model-path": str(pair.student),
        "speculative-draft-model-path": str(pair.teacher),
        "sampling-backend": "trb",
        "sampling-defaults": "openai",
        "device": "cpu",
        "dtype": "float32",
        "context-length": 512,
        "max-total-tokens": 4096,
    }

    def write(**change):
        changed = options | {name.replace("_", "-"): value for name, value in change.items()}
        path = tmp_path / "server.yaml"
        path.write_text(yaml.safe_dump({name: value for name, value in changed.items() if value is not None}))
        return str(path)

    return write


@pytest.fixture
def report(capsys):
    def run(*argv):
        status = doctor.run([*argv, "--json"])
        found = json.loads(capsys.readouterr().out)
        return status, {check["what"]: (check["status"], check["remedy"]) for check in found["checks"]}, found["memory"]

    return run


def of(checks, text):
    """The status and remedy of the one check whose line is ``text``, or holds it."""
    (found,) = [checks[text]] if text in checks else [value for what, value in checks.items() if text in what]
    return found


def test_a_healthy_installation_passes(report):
    status, checks, memory = report()
    assert (status, memory) == (0, None)
    assert {value[0] for value in checks.values()} == {"OK", "NOTE"}
    assert of(checks, "math-verify") == ("NOTE", "pip install math-verify")
    assert of(checks, "no CUDA device")[0] == "NOTE"


def test_missing_packages_name_the_remedy_of_the_machine(machine, report):
    machine(sglang=None)
    status, checks, _ = report()
    assert status == 1
    assert of(checks, "sglang")[0] == "MISSING" and "make setup" in of(checks, "sglang")[1]
    machine(devices=H100, sglang=None)
    _, checks, _ = report()
    assert of(checks, "sglang") == ("MISSING", f"pip install sglang=={CHECKED_SGLANG}")
    assert of(checks, "flashinfer-python") == ("MISSING", f"pip install sglang=={CHECKED_SGLANG}")
    assert of(checks, "H100")[0] == "OK"


def test_another_sglang_is_wrong_another_transformers_is_not(machine, report):
    machine(sglang="0.5.20", transformers="5.13.0")
    status, checks, _ = report()
    assert status == 1
    assert of(checks, "sglang 0.5.20") == ("WRONG", f"pip install sglang=={CHECKED_SGLANG}")
    assert of(checks, "transformers 5.13.0; checked with 5.12.1")[0] == "NOTE"


def test_a_torchvision_that_cannot_be_imported(monkeypatch, report):
    monkeypatch.setattr(doctor, "import_error", lambda module: "operator torchvision::nms does not exist")
    status, checks, _ = report()
    assert status == 1 and of(checks, "torchvision::nms")[0] == "WRONG"


def test_missing_entry_points(machine, report):
    machine(entry_points=False)
    status, checks, _ = report()
    assert status == 1
    assert of(checks, "sglang.srt.plugins: trb")[0] == of(checks, "sglang.srt.platforms: trb_cpu")[0] == "MISSING"


@pytest.mark.parametrize(
    ("variable", "value", "devices", "hidden"),
    [
        ("SGLANG_PLUGINS", "other", CPU_ONLY, "hides trb, trb_cpu"),
        ("SGLANG_PLUGINS", "trb, other", CPU_ONLY, "hides trb_cpu"),
        ("SGLANG_PLUGINS", "trb,trb_cpu", CPU_ONLY, None),
        ("SGLANG_PLUGINS", "trb", H100, None),
        ("SGLANG_PLUGINS", "trb_cpu", H100, "hides trb "),
        ("SGLANG_PLATFORM", "trb_cpu", CPU_ONLY, None),
        ("SGLANG_PLATFORM", "other", CPU_ONLY, "hides the plugin"),
        ("SGLANG_PLATFORM", "other", H100, "hides the plugin"),
        ("SGLANG_PLATFORM", "trb_cpu", H100, "not offered beside a GPU"),
    ],
)
def test_variables_that_hide_the_entry_points(machine, monkeypatch, report, variable, value, devices, hidden):
    machine(devices=devices, flashinfer_python="0.6.18", sglang_kernel="0.4.7")
    monkeypatch.setenv(variable, value)
    status, checks, _ = report()
    assert status == (0 if hidden is None else 1)
    if hidden is not None:
        assert of(checks, hidden)[0] == "WRONG" and f"unset {variable}" in of(checks, hidden)[1]


def test_a_gpu_machine_that_can_compile_passes(machine, report):
    machine(devices=H100, cuda="13.0", commands={"nvidia-smi": SMI, "nvcc": NVCC}, **GPU_PACKAGES)
    status, checks, _ = report()
    assert status == 0
    for line in ("the driver has CUDA 13.0", "nvcc 13.0 (/usr/bin/nvcc)", "gcc, g++ and Python.h"):
        assert of(checks, line)[0] == "OK"


def test_an_old_driver_is_named_though_torch_sees_no_device(machine, report):
    machine(cuda="13.0", commands={"nvidia-smi": SMI.replace("13.0", "12.8"), "nvcc": NVCC})
    status, checks, _ = report()
    found, remedy = of(checks, "the driver has CUDA 12.8, torch was built for CUDA 13.0")
    assert (status, found) == (1, "WRONG") and "newer driver: one that has CUDA 13" in remedy


def test_the_gpu_beside_a_cpu_build_is_left_alone(machine, report):
    machine(commands={"nvidia-smi": SMI})
    status, checks, _ = report()
    assert status == 0 and of(checks, "this torch is a CPU build")[0] == "NOTE"
    assert not [what for what in checks if "nvcc" in what]


def test_missing_compilers_are_named(machine, headers, monkeypatch, report):
    (headers / "Python.h").unlink()
    machine(devices=H100, cuda="13.0", commands={"nvidia-smi": SMI}, **GPU_PACKAGES)
    status, checks, _ = report()
    found, remedy = of(checks, "nvcc, with which SGLang compiles")
    assert (status, found) == (1, "MISSING") and "cuda-toolkit-13" in remedy and "CUDA_HOME" in remedy
    assert of(checks, "Python.h, with which") == ("MISSING", "apt-get install build-essential python3-dev")
    machine(devices=H100, cuda="13.0", commands={"nvidia-smi": SMI, "nvcc": NVCC}, **GPU_PACKAGES)
    monkeypatch.setenv("CUDA_HOME", "/opt/nothing")  # it decides, for SGLang as well
    assert of(report()[1], "nvcc, with which SGLang compiles")[0] == "MISSING"


def test_nvcc_of_another_cuda_is_noted(machine, report):
    commands = {"nvidia-smi": SMI, "nvcc": NVCC.replace("13.0", "12.8")}
    machine(devices=H100, cuda="13.0", commands=commands, **GPU_PACKAGES)
    status, checks, _ = report()
    assert status == 0 and of(checks, "nvcc 12.8 (/usr/bin/nvcc); torch's CUDA is 13")[0] == "NOTE"


def test_too_little_disk_or_shared_memory(machine, config, report, tmp_path, monkeypatch):
    space = lambda path: GIB // 16 if path == host.SHARED_MEMORY else 6 * GIB  # noqa: E731
    gpu = {"devices": H100, "cuda": "13.0", "commands": {"nvidia-smi": SMI, "nvcc": NVCC}, **GPU_PACKAGES}
    machine(free=space, **gpu)
    status, checks, _ = report()
    found, remedy = of(checks, "0.1 GiB free at /dev/shm, 1 needed")
    assert (status, found) == (1, "WRONG") and "--shm-size" in remedy
    assert of(checks, "6.0 GiB of disk free")[0] == "OK", "nothing to download"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    hub = {"model_path": "Qwen/Qwen3-0.6B-Base", "speculative_draft_model_path": "Qwen/Qwen3-4B"}
    path = config(**hub, device="cuda", dtype="bfloat16", mem_fraction_static=0.8, max_total_tokens=None)
    assert of(report("--config", path)[1], "13.6 needed with the models to download")[0] == "WRONG"
    (tmp_path / "models--Qwen--Qwen3-4B").mkdir()
    assert of(report("--config", path)[1], "6.1 needed with the models")[0] == "WRONG"
    machine(free=space)
    assert report()[0] == 0, "a CPU needs little of either"


def test_free_space_is_that_of_the_folder_to_be_made(monkeypatch, tmp_path):
    monkeypatch.undo()
    assert host.free_bytes(tmp_path / "not" / "yet") > 0
    assert host.run_command(["echo", "out"]) == "out\n"
    assert host.run_command(["false"]) == host.run_command(["no-such-command"]) == ""
    assert host.hub_cache({"HF_HOME": "/data/hf"}) == Path("/data/hf/hub")
    assert host.hub_cache({}) == Path("~/.cache/huggingface/hub").expanduser()


def test_a_good_configuration_passes_with_its_plan(config, report):
    status, checks, memory = report("--config", config())
    assert status == 0
    assert of(checks, "memory for 4,096 tokens")[0] == "OK"
    assert memory["tokens"] == 4096 and memory["fits"] is True
    assert memory["student"]["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 4


def test_without_transformers_the_options_are_still_checked(machine, config, report):
    machine(transformers=None)
    status, checks, memory = report("--config", config())
    assert (status, memory) == (1, None)
    assert of(checks, "no memory plan")[0] == "NOTE" and of(checks, "sampling_backend trb")[0] == "OK"


@pytest.mark.parametrize(
    ("change", "status", "what"),
    [
        ({"speculative_draft_model_path": None}, "MISSING", "speculative_draft_model_path (the teacher) is not set"),
        ({"sampling_backend": "flashinfer"}, "WRONG", "sampling_backend flashinfer"),
        ({"sampling_defaults": None}, "WRONG", "sampling_defaults None"),
        ({"speculative_algorithm": "EAGLE"}, "WRONG", "speculative_algorithm EAGLE"),
        ({"enable_deterministic_inference": True}, "WRONG", "enable_deterministic_inference True"),
        ({"context_length": 8192}, "WRONG", "memory for 4,096 tokens; context_length is 8,192"),
        ({"model_path": "/no/such/folder"}, "WRONG", "no memory plan: model"),
    ],
)
def test_configurations_that_would_fail(config, report, change, status, what):
    code, checks, _ = report("--config", config(**change))
    assert code == 1
    assert of(checks, what)[0] == status and of(checks, what)[1]


def test_half_precision_logits_are_noted(config, report):
    _, checks, _ = report("--config", config(dtype="bfloat16"))
    assert of(checks, "0.005 nats") == ("NOTE", "set enable_fp32_lm_head: true")
    _, checks, _ = report("--config", config(dtype="bfloat16", enable_fp32_lm_head=True))
    assert not [what for what in checks if "0.005 nats" in what]


def test_a_gpu_configuration_is_planned_for_an_h100_without_a_gpu_and_for_the_gpu_with_one(machine, config, report):
    path = config(device="cuda", mem_fraction_static=0.5)
    _, checks, memory = report("--config", path)
    assert memory["device_bytes"] == H100_BYTES
    assert of(checks, "assumes an H100")[0] == "NOTE"
    machine(devices=[("small", 10 * GIB)])
    assert report("--config", path)[2]["device_bytes"] == 10 * GIB


def test_text_output_has_a_line_a_check_and_a_summary(machine, config, capsys):
    assert doctor.run(["--config", config()]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("all ") and "KV pool" in "\n".join(lines)
    machine(triton=None)
    assert doctor.run([]) == 1
    out = capsys.readouterr().out
    assert "MISSING triton\n        → make setup" in out and out.splitlines()[-1].startswith("1 of ")


@pytest.mark.parametrize("content", [None, "- a\n- b\n", "model-path: [\n"])
def test_a_configuration_that_cannot_be_read_is_a_usage_error(tmp_path, capsys, content):
    path = tmp_path / "server.yaml"
    if content is not None:
        path.write_text(content)
    assert doctor.run(["--config", str(path)]) == 2
    assert "--config: got" in capsys.readouterr().err


def test_what_is_installed_here_is_found(monkeypatch):
    monkeypatch.undo()
    assert doctor.installed_version("pytest") == pytest.__version__
    assert doctor.installed_version("no-such-distribution") is None
    assert doctor.has_entry_point("console_scripts", "pytest")
    assert not doctor.has_entry_point("console_scripts", "no-such-script")
    assert doctor.import_error("json") is None
    assert "no_such_module" in doctor.import_error("no_such_module")


@pytest.mark.parametrize("option", ["--no-such-option", "--download"])
def test_an_option_that_says_nothing_is_a_usage_error(option):
    with pytest.raises(SystemExit) as raised:
        doctor.run([option])
    assert raised.value.code == 2


@pytest.fixture(scope="module")
def sglang_sources():
    """The installed SGLang with lines replaced; what was parsed once stays so."""
    installed = Sources.installed()

    @functools.cache
    def changed(*replaced):
        def read(path):
            text = installed._read(path)
            for old, new in replaced:
                text = text and text.replace(old, new)
            return text

        return Sources(CHECKED_SGLANG, read)

    return changed


RENAMED = {
    "def abort_request(": "def abort_it(",
    "SYNC_TOKEN_IDS_ACROSS_TP or": "not SYNC_TOKEN_IDS_ACROSS_TP or",
}


@pytest.fixture
def compared(monkeypatch, capsys, sglang_sources):
    """Runs ``doctor --sglang`` on an installed SGLang that has changed so."""

    def run(replaced, *argv):
        installed = None if replaced is None else sglang_sources(*replaced.items())
        monkeypatch.setattr(compare_sglang.Sources, "installed", lambda: installed)
        return doctor.run(["--sglang", *argv]), capsys.readouterr()

    return run


def test_the_checked_sglang_has_not_changed(compared):
    status, printed = compared({})
    assert status == 0
    assert re.search(r"^changed, of \d+ +0$", printed.out, re.MULTILINE)
    assert "abort_request" not in printed.out


def test_a_changed_sglang_is_told_with_file_and_line(compared):
    status, printed = compared(RENAMED)
    assert status == 1
    before, sampler = printed.out.split("srt.layers.sampler.Sampler (")
    _, scheduler = before.split("srt.managers.scheduler.Scheduler (")
    assert re.search(r"^  abort_request +gone$", scheduler, re.MULTILINE)
    assert re.search(r"^  _sync_token_ids_across_tp +changed sampler.py:\d+$", sampler, re.MULTILINE)
    assert "_launch_scheduler_processes" not in printed.out, "what has not changed is counted, not listed"


def test_another_sglang_stands_beside_the_installed_one(compared, tmp_path):
    (tmp_path / "sglang-9.9.9.dist-info").mkdir()
    (tmp_path / "sglang").mkdir()
    (tmp_path / "sglang" / "__init__.py").touch()
    status, printed = compared({}, str(tmp_path), "--json")
    assert status == 0, "the installed one alone decides"
    found = {entry["name"]: entry for entry in json.loads(printed.out)["touch_points"]}
    entry = found["sglang.srt.layers.sampler.Sampler.forward"]
    assert [version["state"] for version in entry["versions"].values()] == ["same", "gone"]
    assert entry["versions"]["9.9.9"] == {"state": "gone", "path": "", "line": 0}
    assert entry["versions"][f"{CHECKED_SGLANG} (installed)"]["path"] == "sglang/srt/layers/sampler.py"
    assert entry["reason"] and entry["proof"] and entry["ours"] == "worker.sampler.TrbSampler"


def test_the_same_version_from_elsewhere_does_not_hide_the_installed_one(compared, tmp_path):
    """Somebody may have changed the one, but not the other."""
    (package,) = importlib.util.find_spec("sglang").submodule_search_locations
    (tmp_path / "sglang").symlink_to(package)
    (tmp_path / f"sglang-{CHECKED_SGLANG}.dist-info").mkdir()
    status, printed = compared(RENAMED, str(tmp_path))
    assert status == 1
    assert re.search(r"^  abort_request +gone +same scheduler.py:\d+$", printed.out, re.MULTILINE)


def test_without_sglang_there_is_nothing_to_compare(compared):
    status, printed = compared(None)
    assert (status, printed.out) == (1, "sglang is not installed\n")


@pytest.mark.parametrize("wanted", ["no/such/folder", "9.9.9"])
def test_an_sglang_that_is_not_there_is_a_usage_error(compared, monkeypatch, tmp_path, wanted):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    status, printed = compared({}, wanted)
    assert status == 2 and wanted in printed.err
    assert ("add --download, or: pip download --no-deps" in printed.err) == (wanted == "9.9.9")


def test_a_version_is_downloaded_once(compared, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = []

    def pip(command, **_):
        asked.append(command[-1])
        folder = Path(command[command.index("--dest") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / "sglang-9.9.9-py3-none-any.whl", "w") as wheel:
            wheel.writestr("sglang/__init__.py", "")
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(compare_sglang.subprocess, "run", pip)
    for _ in range(2):
        status, printed = compared({}, "9.9.9", "--download")
        assert status == 0 and "9.9.9" in printed.out
    assert asked == ["sglang==9.9.9"]
    monkeypatch.setattr(
        compare_sglang.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr="no such version")
    )
    status, printed = compared({}, "9.9.8", "--download")
    assert status == 2 and "no such version" in printed.err


@pytest.mark.parametrize("options", [["--download"], ["--sglang", "--config", "server_configs/cpu-micro.yaml"]])
def test_options_that_do_not_go_together_are_refused(options, capsys):
    with pytest.raises(SystemExit) as ended:
        doctor.run(options)
    assert ended.value.code == 2 and "--sglang" in capsys.readouterr().err
