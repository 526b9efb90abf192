"""What a stranger needs to take the project up: licence, citation, typing marks, files that tools read."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import pytest
import yaml

import sglang_trb

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_is_one():
    assert PROJECT["version"] == sglang_trb.__version__ == metadata("sglang-trb")["Version"]
    assert str(yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]) == PROJECT["version"]
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_licence_is_whole_and_named():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["license"] == "Apache-2.0" == yaml.safe_load((ROOT / "CITATION.cff").read_text())["license"]


def test_both_packages_are_typed():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package in ("sglang_trb", "trainer"):
        assert (ROOT / package / "py.typed").is_file() and "py.typed" in packages[package]


@pytest.mark.parametrize("path", [".github/workflows/ci.yml", ".pre-commit-config.yaml", "CITATION.cff"])
def test_what_tools_read_can_be_read(path):
    assert yaml.safe_load((ROOT / path).read_text())


def test_the_workflow_runs_what_the_makefile_has():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert {command.split()[1] for command in commands if command.startswith("make ")} <= targets
    assert workflow["jobs"]["checks"]["strategy"]["matrix"]["python"] == ["3.11", "3.12"]


def test_contributing_names_files_that_are_there():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:sglang_trb|trainer|docs)/[\w/.]+)`", page)
    assert named and all((ROOT / path).exists() for path in named)


def test_the_ten_lines_of_the_readme_run():
    """Those before the first mention of a server."""
    (block, *_) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(block.splitlines()) == 10
    names: dict = {}
    exec(block, names)
    blend = names["blend"]
    assert blend.beta_B[0] == 0 and 0 < blend.beta_B[1] < 1 and blend.beta_B[2] == 1
    assert (blend.kl_B <= names["epsilon"]).all() and names["token_ids"].shape == (3, 1)


def test_the_tree_is_clean_of_build_outputs():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not [path for path in tracked if re.search(r"\.(pyc|log|egg-info)$|^(out|runs|build|site)/", path)]
