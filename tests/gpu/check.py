"""``make gpu-check``: runs the tests that need a GPU and writes what they said to a JSON file and logs.

    python -m tests.gpu.check [--output out/gpu-check] [pytest arguments]

Any Python with SGLang's CUDA stack and pytest will do, also where this package is not installed, and without a
network: its entry points, by which SGLang finds it, are then laid beside the output. Exit status: 0 when every test
that ran passed, 1 when one failed, 2 when nothing could run; the reason is printed and in the JSON file.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests" / "gpu"
NO_TESTS = 5  # pytest's status where every test was deselected
NEEDED = ("torch", "sglang", "transformers", "pytest", "requests")
VERSIONS = (
    "torch", "sglang", "transformers", "triton", "sglang-kernel", "flashinfer-python", "apache-tvm-ffi", "xgrammar",
    "pytest",
)  # fmt: skip
PLUGIN_GROUP = "sglang.srt.plugins"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="gpu-check", description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "gpu-check", help="folder of JSON file and logs")
    arguments, for_pytest = parser.parse_known_args(argv)
    folder = arguments.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": machine()}
    if reason := why_not():
        write(folder, report | {"not_run": reason, "tests": []})
        print(f"gpu-check: not run: {reason}", file=sys.stderr)
        return 2
    tests: list[dict[str, Any]] = []
    for file in sorted(TESTS.glob("test_*.py")):  # written after each: what came before a hang is not lost
        tests += run(file, folder, for_pytest)
        counts = {name: sum(test["outcome"] == name for test in tests) for name in ("passed", "failed", "skipped")}
        write(folder, report | {"counts": counts, "tests": tests})
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped; {folder}")
    return 0 if counts["passed"] and not counts["failed"] else 1


def write(folder: Path, report: dict[str, Any]) -> None:
    (folder / "gpu-check.json").write_text(json.dumps(report, indent=2) + "\n")


def why_not() -> str | None:
    """Why no test can run here; None when they can."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return f"{sys.executable} has no {', '.join(missing)}"
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} of {sys.executable} is a CPU build; name another Python: make gpu-check PY=…"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device; see `trb doctor`"
    return None


def run(file: Path, folder: Path, for_pytest: list[str]) -> list[dict[str, Any]]:
    """Run a file's tests, pytest's output both shown and kept, and return their outcomes."""
    junit, name = folder / f"{file.stem}.xml", str(file.relative_to(ROOT))
    # Not the project's own options: a plug-in that they name may not be there.
    options = ["-o", "addopts=", "--import-mode=importlib", "-ra", "-p", "no:cacheprovider", "--durations=0"]
    command = [sys.executable, "-m", "pytest", *options, "-m", "gpu", f"--junitxml={junit}", name, *for_pytest]
    junit.unlink(missing_ok=True)
    with (folder / f"{file.stem}.log").open("w") as kept:
        child = subprocess.Popen(
            command, cwd=ROOT, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert child.stdout is not None
        for line in child.stdout:
            print(line, end="", flush=True)
            kept.write(line)
            kept.flush()
    if child.wait() not in (0, 1, NO_TESTS):
        fault = {"name": name, "outcome": "failed", "seconds": 0.0, "reason": f"pytest ended with {child.returncode}"}
        return [*outcomes(junit), fault]
    return outcomes(junit)


def outcomes(junit: Path) -> list[dict[str, Any]]:
    """Each test's name, outcome and seconds, and the reason where it was skipped or failed; empty without a file."""
    if not junit.exists():
        return []
    found = []
    for case in ElementTree.parse(junit).iter("testcase"):
        test = {
            "name": f"{case.get('classname')}::{case.get('name')}",
            "outcome": "passed",
            "seconds": float(case.get("time", 0)),
        }
        for tag, outcome in (("skipped", "skipped"), ("failure", "failed"), ("error", "failed")):
            if (element := case.find(tag)) is not None:
                test |= {"outcome": outcome, "reason": (element.get("message") or element.text or "").strip()[:2000]}
        found.append(test)
    return found


def environment(folder: Path) -> dict[str, str]:
    """The tests' environment: this checkout is imported, and SGLang finds the plug-in."""
    paths = [str(ROOT)]
    if not importlib.metadata.entry_points(group=PLUGIN_GROUP, name="trb"):
        paths.append(str(lay_entry_points(folder / "site")))
    inherited = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": os.pathsep.join([*paths, *([inherited] if inherited else [])])}


def lay_entry_points(site: Path) -> Path:
    """A folder that holds this package's metadata, as an installation would have laid them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = site / f"sglang_trb-{project['version']}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = {"console_scripts": project["scripts"], **project["entry-points"]}
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in names.items()) for group, names in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return site


def machine() -> dict[str, Any]:
    """What the figures depend on: versions, devices, driver, commit."""
    versions = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    found: dict[str, Any] = {"platform": platform.platform(), "versions": versions, "devices": []}
    if importlib.util.find_spec("torch"):
        import torch

        found["torch_cuda"] = torch.version.cuda
        found["devices"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found["driver"] = output(["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"])
    found["commit"] = output(["git", "-C", str(ROOT), "rev-parse", "HEAD"])
    return found


def output(command: list[str]) -> str | None:
    """A command's output, or None where it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
