"""The documentation: each command is parsed, each Python block compiled or run, each file that it names is there.

Links and anchors are checked by `make docs`, which builds the site strictly.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from sglang_trb.launch.server_config import read_server_config
from trainer.config.file import load_config
from trainer.losses import LOSSES

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^ *```", re.M | re.S)
NEEDS_A_SERVER = ("OpenAI(", "requests.")
HELPERS = {"curl", "source", "export", "apt-get", "pip", "torchrun", "deepspeed", "pre-commit", "nvidia-smi"}
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


def blocks(*languages: str) -> list:
    """The fenced blocks of all pages in some languages, as parameters of a test."""
    found = []
    for page in PAGES:
        for number, (indent, language, text) in enumerate(FENCE.findall(page.read_text(encoding="utf-8"))):
            if language in languages:
                name = f"{page.relative_to(ROOT)}-{number}"
                found.append(pytest.param(re.sub(f"^{indent}", "", text, flags=re.M), id=name))
    return found


@functools.cache
def options(command: str) -> set[str]:
    """What `trb COMMAND` takes."""
    asked = [sys.executable, "-m", "sglang_trb.cli.main", command, "--help"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    return set(re.findall(r"--[a-z][a-z-]*", done.stdout))


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a shell block as words, without variables before them, comments and here-documents."""
    whole = re.sub(r"\\\n\s*", " ", text)
    whole = re.sub(r"'\{.*?\}'", "'JSON'", whole, flags=re.S)
    for line in whole.splitlines():
        words = shlex.split(line, comments=True)
        while words and (re.fullmatch(r"\w+=.*", words[0]) or words[0] == "&&"):
            words = words[1:]
        if words:
            yield words


@pytest.mark.parametrize("text", blocks("bash", "console", "sh"))
def test_every_command_is_one(text):
    for words in commands(text):
        program, *rest = words
        if program == "make":
            assert {word for word in rest if "=" not in word} <= TARGETS
        elif program == "trb":
            check_trb(rest)
        elif program in ("python", "python3", ".venv/bin/python") and rest[:1] != ["-m"]:
            assert (ROOT / rest[0]).is_file(), rest[0]
        elif program == "torchrun":
            assert "sglang_trb.cli.main" in rest
            check_trb(rest[rest.index("sglang_trb.cli.main") + 1 :])
        else:
            assert program in HELPERS or program.startswith(("python", ".venv/bin/python")), f"{program}: what is it?"


def check_trb(words: list[str]) -> None:
    command, *rest = words
    known = options(command)
    for word in rest:
        if word.startswith("--"):
            assert word.partition("=")[0] in known or command == "serve", f"trb {command} has no {word}"
    if "--config" in rest:
        path, *overrides = [word for word in rest[rest.index("--config") + 1 :] if not word.startswith("--")]
        if path == "FILE":
            return
        assert (ROOT / path).is_file(), path
        if command == "train":
            load_config(ROOT / path, overrides)


@pytest.mark.parametrize("text", blocks("python"))
def test_every_python_block_runs(text):
    code = compile(text, "a block of the documentation", "exec")
    if not any(sign in text for sign in NEEDS_A_SERVER):
        exec(code, {})


@pytest.mark.parametrize("text", blocks("json"))
def test_every_json_block_is_json(text):
    json.loads(text)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_every_yaml_block_is_a_part_of_a_configuration(text):
    values = yaml.safe_load(text)
    if {"rollouts", "loss"} & set(values):
        overrides = [f"{name}={json.dumps(value)}" for name, value in values.items() if name == "loss"]
        behaviour = values.get("rollouts", {}).get("behaviour")
        overrides += [f"rollouts.behaviour={json.dumps(behaviour)}"] if behaviour else []
        load_config(ROOT / "examples/micro/trb.yaml", overrides)


def test_every_method_has_its_page():
    pages = {path.stem for path in (ROOT / "docs/methods").glob("*.md")}
    assert {*LOSSES} <= pages
    assert {"trb", "fixed_epsilon", "student", "skd", "temperature_warmup"} <= pages
    for page in (ROOT / "docs/methods").glob("*.md"):
        text = page.read_text()
        assert "## When not to" in text and "## Configuration" in text and "models.teacher=" in text, page.name


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert f": {page.relative_to(ROOT / 'docs')}\n" in text, page


def test_quoted_messages_are_messages():
    """Of the troubleshooting page: what stands in backticks in its first column is in the code."""
    code = "\n".join(
        path.read_text()
        for folder in ("sglang_trb", "trainer", "scripts")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".sh")
    )
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    rows = [line for line in (ROOT / "docs/troubleshooting.md").read_text().splitlines() if line.startswith("| ")][1:]
    quoted = [part for row in rows for text in re.findall(r"`([^`]+)`", row.split("|")[1]) for part in text.split("…")]
    assert len(quoted) > 5
    for part in quoted:
        assert part.strip() in code, part


def test_server_configurations_that_pages_name_are_there():
    for page in PAGES:
        for path in re.findall(r"(?:server_configs|examples)/[\w./-]+\.(?:yaml|py)", page.read_text(encoding="utf-8")):
            assert (ROOT / path).is_file(), f"{page.name}: {path}"
            if path.startswith("server_configs"):
                assert read_server_config(ROOT / path)
