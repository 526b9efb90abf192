"""Checks of a checkpoint on disk, before any of its bytes go into a running model."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from sglang_trb.checkpoint import checkpoint_file

_MAX_HEADER = 100_000_000
_MALFORMED = (ValueError, TypeError, AttributeError, LookupError, RecursionError)
"""What reading JSON of another form than expected raises."""
_TIED = "lm_head.weight"
"""Checkpoints of models with tied embeddings may hold this copy or leave it out."""

Shape = tuple[int, ...]
TensorLayout = dict[str, tuple[str, Shape]]


def check_checkpoint(path: str, served: str) -> str | None:
    """Why the checkpoint at ``path`` cannot replace the one that is served, or None when nothing speaks against it.

    Reads headers and sizes only: the folder exists, its safetensors files are whole, and they hold the tensors of the
    served checkpoint with the same shapes.

    Args:
        path: the folder to load.
        served: the folder or Hugging Face id that the server was started with; where its safetensors files are not on
            this machine, only the new files themselves are checked.
    """
    try:
        new = read_layout(Path(path))
    except (OSError, ValueError) as error:
        return str(error)
    old = _served_layout(served)
    if old is None:
        return None
    missing = sorted(old.keys() - new.keys() - {_TIED})
    if missing:
        return f"the checkpoint is not of the served model: {missing[0]} is missing"
    return check_tensors(((name, shape) for name, (_, shape) in new.items()), served)


def check_tensors(described: Iterable[tuple[str, Sequence[int]]], served: str) -> str | None:
    """Why tensors of these names and shapes are not the served model's, or None; ``served`` as in `check_checkpoint`.

    SGLang's loaders skip a name that they do not know with a warning, so a misnamed tensor would count as pushed.
    """
    layout = _served_layout(served)
    if layout is None:
        return None
    for name, shape in described:
        if name not in layout:
            if name == _TIED:
                continue
            return f"{name} is not a tensor of the served model"
        if tuple(shape) != layout[name][1]:
            return f"{name} has shape {list(shape)}, the served model's is {list(layout[name][1])}"
    return None


@cache
def _served_layout(served: str) -> TensorLayout | None:
    config = checkpoint_file(served, "config.json")
    folder = config.parent if config else Path(served)
    return read_layout(folder) if any(folder.glob("*.safetensors")) else None


def read_layout(folder: Path) -> TensorLayout:
    """The dtype and shape of each tensor in a folder of safetensors files.

    Raises:
        OSError: the folder or a file cannot be read.
        ValueError: there is no safetensors file, or one is truncated or malformed; names the file.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no .safetensors file")
    layout: TensorLayout = {}
    for file in files:
        layout |= _read_header(file)
    missing = _indexed_files(folder) - {file.name for file in files}
    if missing:
        raise ValueError(f"{folder} lacks {sorted(missing)[0]}, which its index names")
    return layout


def _indexed_files(folder: Path) -> set[str]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return set()
    try:
        return set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
    except _MALFORMED:
        raise ValueError(f"{index} is not an index of safetensors files") from None


def _read_header(file: Path) -> TensorLayout:
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _MAX_HEADER + 1
        if length > _MAX_HEADER:
            raise ValueError(f"{file} is not a safetensors file")
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
            layout = {name: (str(entry["dtype"]), tuple(entry["shape"])) for name, entry in header.items()}
        except _MALFORMED:
            raise ValueError(f"{file} has a broken safetensors header") from None
    if file.stat().st_size != end:
        raise ValueError(f"{file} has {file.stat().st_size} bytes, its header says {end}: it is incomplete")
    return layout
