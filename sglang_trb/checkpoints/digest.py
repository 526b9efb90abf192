"""Do two checkpoints on different paths or machines hold the same model? Digests that both sides take and compare."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from sglang_trb.checkpoints.folder import checkpoint_folder, read_json
from sglang_trb.checkpoints.weight_files import StoredTensor, read_layout
from sglang_trb.errors import InvalidParameter

_BLOCKS, _BLOCK_BYTES = 4, 1024
"""Read of each tensor, evenly spaced: some thousand reads for a model of billions of parameters, a second or so."""
_HISTORY = ("_name_or_path", "transformers_version")
"""Of a ``config.json``: where it came from, not what the model is."""


@dataclasses.dataclass(frozen=True)
class ModelDigest:
    """Of one checkpoint. A part is None where this machine does not have it.

    Attributes:
        config: of the ``config.json``, whatever the order of its keys.
        weights: of every tensor's name, dtype and shape and of a sample of its bytes, however they are cut into files.
            Different models, and steps of one training, differ in it. It is no proof against somebody who, to deceive,
            changes only bytes that are not in the sample.
    """

    config: str | None
    weights: str | None

    @classmethod
    def of(cls, model: str | Path) -> ModelDigest:
        """Take it of a checkpoint folder, or of what the hub's cache has of a Hugging Face id; downloads nothing."""
        try:
            config = read_json(model, "config.json")
        except InvalidParameter:
            config = None
        return cls(None if config is None else _of_config(config), _of_weights(model))

    @classmethod
    def from_wire(cls, value: Mapping[str, Any]) -> ModelDigest:
        """Read what `to_wire` wrote; KeyError for anything else."""
        return cls(value["config"], value["weights"])

    def to_wire(self) -> dict[str, str | None]:
        """JSON-ready."""
        return dataclasses.asdict(self)

    def difference(self, other: ModelDigest) -> str | None:
        """The part in which two digests differ, or None: those that both have are equal."""
        for field in ("weights", "config"):
            ours, theirs = getattr(self, field), getattr(other, field)
            if None not in (ours, theirs) and ours != theirs:
                return field
        return None


@cache
def digest_of(model: str) -> ModelDigest:
    """`ModelDigest.of`, taken once in a process."""
    return ModelDigest.of(model)


def _of_config(config: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in config.items() if key not in _HISTORY}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:32]


def _of_weights(model: str | Path) -> str | None:
    try:
        layout = read_layout(checkpoint_folder(model, download=False))
    except (OSError, ValueError):  # not on this machine, or in another format: nothing to compare with
        return None
    digest = hashlib.sha256()
    for name in sorted(layout):
        tensor = layout[name]
        digest.update(json.dumps([name, tensor.dtype, tensor.shape]).encode())
        digest.update(_sample(tensor))
    return digest.hexdigest()[:32]


def _sample(tensor: StoredTensor) -> bytes:
    size = min(_BLOCK_BYTES, tensor.size)
    starts = {(tensor.size - size) * i // (_BLOCKS - 1) for i in range(_BLOCKS)}
    with tensor.file.open("rb", buffering=0) as stream:
        return b"".join(_read_at(stream, tensor.start + start, size) for start in sorted(starts))


def _read_at(stream: Any, position: int, size: int) -> bytes:
    stream.seek(position)
    return stream.read(size)
