"""`make gpu-check` without a GPU: its refusal, its report, and the entry points it lays where nothing is installed."""

import importlib.metadata
import json
from pathlib import Path

import pytest
import torch

from tests.gpu import check

JUNIT = """<?xml version="1.0"?><testsuites><testsuite name="pytest">
<testcase classname="tests.gpu.test_a" name="test_good[fa3]" time="1.5"/>
<testcase classname="tests.gpu.test_a" name="test_bad" time="2"><failure message="AssertionError: 3"/></testcase>
<testcase classname="tests.gpu.test_a" name="test_broken" time="0"><error message="fixture"/></testcase>
<testcase classname="tests.gpu.test_b" name="test_two" time="0"><skipped message="needs two GPUs"/></testcase>
</testsuite></testsuites>"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_why_in_the_file_and_by_its_status(tmp_path, capsys):
    assert check.main(["--output", str(tmp_path)]) == 2
    report = json.loads((tmp_path / "gpu-check.json").read_text())
    assert report["not_run"] in capsys.readouterr().err and report["tests"] == []
    assert ("CPU build" in report["not_run"]) == (torch.version.cuda is None)
    assert report["machine"]["versions"]["torch"] == torch.__version__


class Child:
    """pytest, whose first file has JUNIT's outcomes, and which dies in the second."""

    stdout = ("one line\n",)

    def __init__(self, command, **_):
        self.returncode = -9
        if "tests/gpu/test_a.py" in command:
            (junit,) = [part.split("=", 1)[1] for part in command if part.startswith("--junitxml=")]
            Path(junit).write_text(JUNIT)
            self.returncode = 1

    def wait(self):
        return self.returncode


def test_the_report_has_every_outcome_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "why_not", lambda: None)
    monkeypatch.setattr(check.subprocess, "Popen", Child)
    monkeypatch.setattr(check, "output", lambda command: None)
    monkeypatch.setattr(check, "ROOT", tmp_path)
    monkeypatch.setattr(check, "TESTS", tmp_path / "tests" / "gpu")
    check.TESTS.mkdir(parents=True)
    for name in ("test_a.py", "test_b.py"):
        (check.TESTS / name).touch()
    assert check.main(["--output", str(tmp_path / "out")]) == 1
    report = json.loads((tmp_path / "out" / "gpu-check.json").read_text())
    assert (tmp_path / "out" / "test_a.log").read_text() == "one line\n"
    assert report["counts"] == {"passed": 1, "failed": 3, "skipped": 1}
    found = {test["name"].rpartition("::")[2]: test.get("reason") for test in report["tests"]}
    expected = {"test_good[fa3]": None, "test_bad": "AssertionError: 3", "test_broken": "fixture"}
    assert found == expected | {"test_two": "needs two GPUs", "tests/gpu/test_b.py": "pytest ended with -9"}


def test_laid_entry_points_are_those_of_an_installation(tmp_path):
    (laid,) = importlib.metadata.distributions(path=[str(check.lay_entry_points(tmp_path / "site"))])
    ours = importlib.metadata.distribution("sglang-trb")
    assert laid.version == ours.version
    assert {(e.group, e.name, e.value) for e in laid.entry_points} == {
        (e.group, e.name, e.value) for e in ours.entry_points
    }
