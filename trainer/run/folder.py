"""A run's folder: one process at a time writes to it, it is continued with the settings that made it, and it says what
it was made with.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from sglang_trb.pair.pair import Pair
from trainer.atomic import write_file
from trainer.config.run import RunConfig
from trainer.errors import TrainerError
from trainer.records import read_settings

PROVENANCE_FILE = "provenance.json"
_LOCK_FILE = ".lock"
_PACKAGES = ("sglang-trb", "sglang", "torch", "transformers", "deepspeed", "math-verify", "antlr4-python3-runtime")
_NEW = object()

MAY_CHANGE = (
    "steps", "folder", "server", "push", "checkpoints", "evaluation", "records",
    "rollouts.request_timeout_s", "rollouts.max_attempts", "rollouts.max_refused_share",
    "optimisation.micro_batch_size", "optimisation.micro_batch_tokens",
    "optimisation.gradient_checkpointing", "optimisation.logits_chunk",
    "optimisation.max_drift_warn", "optimisation.max_drift_stop",
    "optimisation.max_skipped_in_a_row", "optimisation.max_skipped",
)  # fmt: skip
"""Fields and sections that decide neither what is trained on nor how; the micro-batches do with `micro_batch_mean`."""


class FolderInUse(TrainerError, RuntimeError):
    """Another process writes to the run's folder."""


class OtherRun(TrainerError, ValueError):
    """The folder holds a run with other settings."""


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other processes out while the block runs; the claim ends with the process, however that ends.

    Raises:
        FolderInUse: another has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUse(
                f"{folder}: another process of trb is at work there; wait for it, or choose another name"
            ) from None
        yield


def is_begun(folder: Path) -> bool:
    """Whether a run has rollouts or checkpoints there."""
    return any(any((folder / name).glob("*")) for name in ("journal", "checkpoints"))


def check_continues(folder: Path, config: RunConfig) -> None:
    """Make sure that a folder with rollouts or checkpoints in it was made with the same settings.

    Raises:
        OtherRun: names a field that decides about the run, what it was and what came.
    """
    if not is_begun(folder):
        return
    before, now = _flat(read_settings(folder)), _flat(config.model_dump(mode="json"))
    decisive = "optimisation.micro_batch_size" if config.loss.aggregation == "micro_batch_mean" else None
    for name, value in now.items():
        may_change = _may_change(name) and name != decisive
        if before and before.get(name, _NEW) not in (value, _NEW) and not may_change:
            raise OtherRun(
                f"{name}: got {value!r}, but the run in {folder} was started with {before[name]!r}; "
                "allowed: the same, or another name"
            )


def write_provenance(folder: Path, config: RunConfig, pair: Pair) -> None:
    """Record what a run was made with and the configuration does not say: template, stop ids, versions."""
    alignment = pair.alignment
    provenance = {
        "chat_template": AutoTokenizer.from_pretrained(config.models.student).chat_template,
        "enable_thinking": config.data.enable_thinking,
        "vocabulary": pair.vocab_size,
        "stop_ids": {
            "student": [*alignment.student_ids],
            "teacher": [*alignment.teacher_ids],
            "canonical": alignment.canonical_id,
        },
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
    }
    write_file(folder / PROVENANCE_FILE, json.dumps(provenance, indent=2, ensure_ascii=False) + "\n")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _may_change(name: str) -> bool:
    return any(name == field or name.startswith(f"{field}.") for field in MAY_CHANGE)


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{above}{name}.")
        else:
            flat[above + name] = value
    return flat
