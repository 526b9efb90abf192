"""The safetensors files of a checkpoint on disk: which they are, what their headers say, and whether they are whole.

Its index says which files are a checkpoint's; without an index it is ``model.safetensors`` alone. What else lies in the
folder, such as the same weights as ``consolidated.safetensors``, is not read.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

from sglang_trb.checkpoints.folder import checkpoint_folder
from sglang_trb.errors import InvalidParameter

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"

_MAX_HEADER = 100_000_000
_MALFORMED = (ValueError, TypeError, AttributeError, LookupError, RecursionError)
"""What reading JSON of another form than expected raises."""
_SAME_AGAIN = "consolidated.safetensors"
"""Beside ``model.safetensors`` alone SGLang passes over this file, as over any that an index does not name."""

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor is and what it is.

    Attributes:
        file: that holds it.
        dtype: as safetensors names it, such as ``BF16``.
        start, size: its bytes in the file.
    """

    file: Path
    dtype: str
    shape: Shape
    start: int
    size: int


Layout = dict[str, StoredTensor]


def require_weights(field: str, model: str | Path, *, download: bool = True) -> Path:
    """The folder of a checkpoint whose weights are whole safetensors files; headers and sizes are read.

    Args:
        field: the configuration's name for the checkpoint, for the message.
        model, download: as in `checkpoint_folder`.

    Raises:
        InvalidParameter: they are not; names the file, and says how to make the files that are wanted.
    """
    folder = checkpoint_folder(model, download=download)
    try:
        read_layout(folder)
    except (OSError, ValueError) as error:
        remedy = "AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW) of transformers writes them"
        raise InvalidParameter(field, str(model), f"a checkpoint of safetensors files: {error}; {remedy}") from None
    return folder


def read_layout(folder: Path) -> Layout:
    """Every tensor of a checkpoint's safetensors files, by name.

    Raises:
        OSError: the folder or a file cannot be read.
        ValueError: there is no safetensors file, or one is missing, truncated or malformed; names the file.
    """
    index = _read_index(folder)
    layout: Layout = {}
    for name in sorted(set(index.values())) or [SINGLE]:
        layout |= _read_header(folder / name)
    for tensor, name in index.items():
        if tensor not in layout:
            raise ValueError(f"{folder / name} lacks {tensor}, which its index says it holds")
    return layout


def _read_index(folder: Path) -> dict[str, str]:
    """Each tensor's file as the index has it; empty for a checkpoint that is one file."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    found = {file.name for file in folder.glob("*.safetensors")}
    if (folder / INDEX).is_file():
        try:
            files = json.loads((folder / INDEX).read_bytes())["weight_map"]
            index = {str(name): str(file) for name, file in files.items()}
        except _MALFORMED:
            raise ValueError(f"{folder / INDEX} is not an index of safetensors files") from None
        missing = sorted(set(index.values()) - found)
        if missing or not index:
            raise ValueError(f"{folder} lacks {missing[0] if missing else 'the tensors'}, which its index names")
        if SINGLE in found and SINGLE not in index.values():
            both = f"{folder} holds {SINGLE} and an index of other files"
            raise ValueError(f"{both}: transformers would read the one, SGLang the others; move one away")
        return index
    if SINGLE not in found:
        others = sorted(found | {file.name for file in folder.glob("*.bin")})
        instead = f"; it has {others[0]}" if others else ""
        raise ValueError(f"{folder} holds no {SINGLE} and no {INDEX}{instead}")
    if found - {SINGLE} not in (set(), {_SAME_AGAIN}):
        other = sorted(found - {SINGLE, _SAME_AGAIN})[0]
        raise ValueError(f"{folder} holds {other} beside {SINGLE} and no index: SGLang would load both; move one away")
    return {}


def _read_header(file: Path) -> Layout:
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _MAX_HEADER + 1
        if length > _MAX_HEADER:
            raise ValueError(f"{file} is not a safetensors file")
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            layout = {name: _stored(file, 8 + length, entry) for name, entry in header.items()}
        except _MALFORMED:
            raise ValueError(f"{file} has a broken safetensors header") from None
    end = max((tensor.start + tensor.size for tensor in layout.values()), default=8 + length)
    if file.stat().st_size != end:
        raise ValueError(f"{file} has {file.stat().st_size} bytes, its header says {end}: it is incomplete")
    return layout


def _stored(file: Path, base: int, entry: dict[str, Any]) -> StoredTensor:
    start, end = entry["data_offsets"]
    return StoredTensor(file, str(entry["dtype"]), tuple(map(int, entry["shape"])), base + start, end - start)
