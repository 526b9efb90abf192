"""The names of a run folder's records, and its settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.atomic import write_file
from trainer.errors import TrainerError

METRICS_FILE = "metrics.jsonl"
SETTINGS_FILE = "run.json"


class SettingsBroken(TrainerError, ValueError):
    """A run's settings file is not a JSON object; the message says where."""


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write a run's resolved settings (any JSON-ready object), for the report and for the reader."""
    text = json.dumps(settings, indent=2, ensure_ascii=False, allow_nan=False)
    write_file(folder / SETTINGS_FILE, text + "\n")


def read_settings(folder: Path) -> dict[str, Any]:
    """Read a run's settings; {} where none were written.

    Raises:
        SettingsBroken: the file is not a JSON object.
    """
    path = folder / SETTINGS_FILE
    if not path.exists():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SettingsBroken(f"{path}: not JSON: {error}") from None
    if not isinstance(settings, dict):
        raise SettingsBroken(f"{path}: got a JSON {type(settings).__name__}; allowed: an object")
    return settings
