"""The command line: help that appears at once, exit statuses, and errors of one line that name what is wrong."""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sglang_trb.cli import generate, main, serve
from sglang_trb.errors import InvalidParameter, TrbError
from sglang_trb.launch.local_server import ADMIN_KEY_VARIABLE
from sglang_trb.wire.params import Rule
from trainer.cli import stop_on_sigterm

ROOT = Path(__file__).resolve().parents[2]


def trb(*arguments, cwd=ROOT):
    command = [sys.executable, "-m", "sglang_trb.cli.main", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_help_lists_every_command_and_is_quick():
    best = min(_timed("--help") for _ in range(5))
    assert best < 0.3
    result = trb("--help")
    assert result.returncode == 0 and result.stderr == ""
    for name in main.COMMANDS:
        assert f"\n  {name} " in result.stdout
    assert trb("-h").stdout == trb("help").stdout == result.stdout


def _timed(*arguments):
    """CPU seconds, which a busy machine does not stretch."""
    started = os.times()
    trb(*arguments)
    ended = os.times()
    return ended.children_user + ended.children_system - started.children_user - started.children_system


def test_help_loads_neither_torch_nor_sglang():
    code = "import sys; from sglang_trb.cli.main import main; main(['--help']); print(sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout
    assert "'torch'" not in modules and "'sglang'" not in modules and "'numpy'" not in modules


@pytest.mark.parametrize("name", main.COMMANDS)
def test_each_command_has_help_that_tells_what_it_does(name):
    result = trb(name, "--help")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: trb {name}") and "--config" in result.stdout


def test_version_and_usage_errors():
    assert trb("--version").stdout.startswith("trb ")
    assert trb().returncode == 2
    unknown = trb("serv")
    assert unknown.returncode == 2 and "serve, generate, doctor" in unknown.stderr
    assert trb("serve").returncode == 2


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (TrbError("no teacher"), 1, "trb x: no teacher\n"),
        (KeyboardInterrupt(), 1, "trb x: interrupted\n"),
        (None, 0, ""),
    ],
)
def test_errors_become_a_line_and_a_status(monkeypatch, capsys, error, status, says):
    def run(arguments):
        assert arguments == ["--flag"]
        if error:
            raise error
        return 0

    monkeypatch.setitem(main.COMMANDS, "x", "")
    monkeypatch.setitem(sys.modules, "sglang_trb.cli.x", argparse.Namespace(run=run))
    assert main.main(["x", "--flag"]) == status
    assert capsys.readouterr().err == says


CONFIGS = {
    "broken.yaml": "model-path: [unclosed\n",
    "list.yaml": "- model-path\n",
    "config.txt": "port: 1\n",
    "unknown.yaml": "model-path: x/y\nno-such-option: 1\n",
    "missing_model.yaml": "model-path: ./no/such/folder\n",
    "bad_value.yaml": "model-path: x/y\nport: many\n",
    "good.yaml": "model-path: some/model\nhost: 127.0.0.1\n",
}
REFUSED = {
    "absent file": (["absent.yaml"], "absent.yaml"),
    "not YAML": (["broken.yaml"], "broken.yaml"),
    "not a mapping": (["list.yaml"], "list.yaml"),
    "not named .yaml": (["config.txt"], "YAML"),
    "unknown option in the file": (["unknown.yaml"], "--no-such-option"),
    "wrong value in the file": (["bad_value.yaml"], "--port: invalid int value: 'many'"),
    "no such model": (["missing_model.yaml"], "./no/such/folder"),
    "unknown option": (["good.yaml", "--frobnicate"], "--frobnicate"),
    "port in use": (["good.yaml", "--port", "PORT"], "127.0.0.1:PORT"),
}
RUN_EACH = """
import contextlib, io, json, sys
from sglang_trb.cli.main import main
for arguments in json.load(sys.stdin):
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        status = main(["serve", "--config", *arguments])
    print(json.dumps([status, stderr.getvalue()]))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """What `trb serve` says to each of REFUSED; all in one process, for SGLang takes seconds to import."""
    folder = tmp_path_factory.mktemp("configs")
    for name, text in CONFIGS.items():
        (folder / name).write_text(text)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        asked = [[part.replace("PORT", port) for part in arguments] for arguments, _ in REFUSED.values()]
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", RUN_EACH],
            input=json.dumps(asked),
            cwd=folder,
            env=os.environ | {ADMIN_KEY_VARIABLE: "-begins with a dash"},
            capture_output=True,
            text=True,
            timeout=240,
            check=True,
        )
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return {name: (*result, port) for name, result in zip(REFUSED, results, strict=True)}


@pytest.mark.parametrize("name", REFUSED)
def test_serve_refuses_before_it_loads_models(refusals, name):
    status, message, port = refusals[name]
    assert status == 2
    assert message.startswith("trb serve: ") and message.count("\n") == 1 and len(message) < 700
    assert REFUSED[name][1].replace("PORT", port) in message


def test_the_banner_hides_keys():
    command = ["--admin-api-key=-a", "--api-key", "b", "--ssl-keyfile-password=c=d", "--port", "1"]
    assert serve._without_secrets(command) == [
        *("--admin-api-key", "***", "--api-key", "***", "--ssl-keyfile-password", "***", "--port", "1")
    ]


def policies(*arguments):
    parser = generate._parser()
    return generate.chosen_policies(parser.parse_args(["--prompt", "x", *arguments]))


def test_laws_of_generate_follow_the_command_line():
    assert list(policies()) == ["ε = 0", "ε = 0.01", "ε = 0.1"]
    assert list(policies("--rule", "teacher")) == ["teacher"]
    both = policies("--epsilon", "0.1", "1", "--rule", "student", "skd", "--skd-top-k", "5", "--skd-temperature", "0.2")
    assert list(both) == ["ε = 0.1", "ε = 1", "student", "skd"]
    assert (both["skd"].rule, both["skd"].skd_top_k, both["skd"].skd_temperature) == (Rule.SKD, 5, 0.2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--epsilon", "-1"], "trb_epsilon: got -1.0"),
        (["--epsilon", "nan"], "trb_epsilon: got nan"),
        (["--rule", "skd"], "trb_skd_top_k"),
        (["--skd-top-k", "5"], "--skd-top-k: got 5"),
    ],
)
def test_laws_that_cannot_be(arguments, says):
    with pytest.raises(InvalidParameter, match=says):
        policies(*arguments)


def test_prompt_files(tmp_path):
    text, lines = tmp_path / "p.txt", tmp_path / "p.jsonl"
    text.write_text("one\n\n two \n")
    lines.write_text('{"question": "é?", "answer": 1}\n\n{"prompt": "x", "problem": "y"}\n', encoding="utf-8")
    assert generate.read_prompts(text) == ["one", " two "]
    assert generate.read_prompts(lines) == ["é?", "x"]


@pytest.mark.parametrize("line", ["no json", "[1]", '{"text": "x"}', '{"prompt": 3}'])
def test_a_wrong_prompt_is_told_its_line(tmp_path, line):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "x"}\n' + line)
    with pytest.raises(InvalidParameter, match="line 2"):
        generate.read_prompts(path)


DRAW = ["--prompt", "x", "--config", "server_configs/cpu-micro.yaml"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--prompt"),
        (["--prompt", "x"], "--student and --teacher"),
        (["--prompt", "x", "--student", "a"], "--student and --teacher"),
        (["--prompt", "x", "--config", "c.yaml", "--teacher", "t"], "--config"),
        (["--prompt", "x", "--config", "absent.yaml"], "absent.yaml"),
        (["--prompts", "absent.jsonl"], "absent.jsonl"),
        ([*DRAW, "--n", "0"], "--n: got 0; allowed: an integer from 1"),
        ([*DRAW, "--temperature", "nan"], "--temperature: got nan; allowed: 0"),
        ([*DRAW, "--max-tokens", "-1"], "--max-tokens: got -1"),
        ([*DRAW, "--seed", str(2**70)], "--seed: got 1180591620717411303424"),
        ([*DRAW, "--html", "/"], "output: got '/'; allowed: a file"),
    ],
)
def test_generate_refuses_wrong_usage(capsys, arguments, says):
    assert generate.run(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("trb generate: ") and says in message and message.count("\n") == 1


def test_sigterm_stops_a_training_that_a_script_put_into_the_background():
    """There, shells have SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN), signal.getsignal(signal.SIGTERM)
    try:
        stop_on_sigterm()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
