"""Reads the small JSON files of a checkpoint, given as a local folder or as a Hugging Face id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sglang_trb.errors import InvalidParameter


def checkpoint_file(model: str | Path, name: str) -> Path | None:
    """Where the file ``name`` of a checkpoint lies on this machine.

    Args:
        model: a checkpoint folder, or a Hugging Face id (looked up in the local cache, then on the hub).
        name: a file name inside the checkpoint, such as ``config.json``.

    Returns:
        The path, or None when the checkpoint has no such file.

    Raises:
        InvalidParameter: ``model`` is neither a folder nor an id that is cached or can be reached.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(str(model), name, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError) as error:
        allowed = f"a checkpoint folder, or a Hugging Face id that is cached or can be reached ({error})"
        raise InvalidParameter("model", str(model), allowed) from error
    return Path(found) if found else None


def read_json(model: str | Path, name: str) -> dict[str, Any] | None:
    """The content of a checkpoint's JSON file, or None when there is no such file; errors as `checkpoint_file`."""
    path = checkpoint_file(model, name)
    return None if path is None else json.loads(path.read_text(encoding="utf-8"))


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a ``config.json``: what its ``text_config`` sets (not null) over the top level."""
    nested = config.get("text_config") or {}
    return config | {key: value for key, value in nested.items() if value is not None}
