"""Where a checkpoint lies that is given as a local folder or as a Hugging Face id, and its small JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sglang_trb.errors import InvalidParameter

_PARTS, _NOT_WANTED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"), ("*/*", "consolidated*")
"""Of a repository on the hub: weights, configuration and tokenizer; not the same weights in other forms."""


def checkpoint_folder(model: str | Path, *, download: bool = True) -> Path:
    """The folder on this machine that holds a checkpoint: the one given, or the snapshot of a Hugging Face id.

    Args:
        model: a checkpoint folder, or a Hugging Face id (looked up in the hub's cache, wherever HF_HOME puts it).
        download: bring the snapshot up to date first, unless HF_HUB_OFFLINE is set or the hub cannot be reached.

    Returns:
        The folder. A snapshot of which files were never fetched is returned as it is: whoever reads it names them.

    Raises:
        InvalidParameter: ``model`` is neither a folder nor an id that is cached or, with ``download``, can be reached.
    """
    if Path(model).is_dir():
        return Path(model)
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                str(model), allow_patterns=[*_PARTS], ignore_patterns=[*_NOT_WANTED], local_files_only=not download
            )
        )
    except (OSError, ValueError) as error:
        if partial := getattr(error, "snapshot_path", None):  # IncompleteSnapshotError, in newer clients of the hub
            return Path(partial)
        reach = "is cached or can be reached" if download else "is in this machine's cache"
        allowed = f"a checkpoint folder, or a Hugging Face id that {reach} ({error})"
        raise InvalidParameter("model", str(model), allowed) from error


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
    return None if path is None else json.loads(path.read_text(encoding="utf-8"), object_hook=_number)


def _number(value: dict[str, Any]) -> Any:
    """transformers writes infinities and NaN as ``{"__float__": "Infinity"}``."""
    return float(value["__float__"]) if value.keys() == {"__float__"} else value


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a ``config.json``: what its ``text_config`` sets (not null) over the top level."""
    nested = config.get("text_config") or {}
    return config | {key: value for key, value in nested.items() if value is not None}
