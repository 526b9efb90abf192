"""New weights for the servers: written once, then every server is brought to them at its own address.

Only the disk route is here: a folder that trainer and servers share.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from sglang_trb.checkpoint import checkpoint_file
from trainer.atomic import new_folder, remove_folder
from trainer.client import TrbClient

PUSH_SECONDS = 1800.0
"""An update waits until the requests in flight are done, then loads the weights."""

_COMPANIONS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "tokenizer.model",
)  # fmt: skip
"""What makes weights a checkpoint; a source has some of these."""


def write_student(folder: Path, weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Write a checkpoint that transformers and SGLang load: the weights, and config and tokenizer of the source.

    Nobody sees it before it is whole and on disk.

    Args:
        folder: what to make; must not exist.
        weights: named as in the source's checkpoint, on the CPU.
        source: the checkpoint folder or Hugging Face id that training started from.

    Raises:
        OSError: the disk is full or gone; nothing is left behind.
    """
    with new_folder(folder) as unfinished:
        try:
            save_file(dict(weights), unfinished / "model.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{folder}: {error}") from None
        for name in _COMPANIONS:
            file = checkpoint_file(source, name)
            if file is not None:
                shutil.copyfile(file, unfinished / name)


class DiskPusher:
    """Pushes through a shared folder, which then also serves whoever comes back later.

    Args:
        folder: where the versions are written; only the newest is kept.
        source: as in `write_student`.
    """

    def __init__(self, folder: Path, source: str) -> None:
        self.folder, self._source = folder, source
        self._current: Path | None = None

    def write(self, weights: Mapping[str, torch.Tensor], weight_version: str) -> None:
        """Make this the version that `resync` gives out."""
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / weight_version.replace("/", "-")
        if target.exists():
            remove_folder(target)
        write_student(target, weights, self._source)
        for other in self.folder.iterdir():
            if other != target:
                shutil.rmtree(other)
        self.use(target, weight_version)

    def use(self, folder: Path, weight_version: str) -> None:
        """Give out a checkpoint that is there already."""
        self._current, self._version = folder, weight_version

    async def resync(self, client: TrbClient) -> None:
        """Bring one server to the newest version; it waits for the requests it has under way."""
        assert self._current is not None, "write() comes first"
        body = {"model_path": os.fspath(self._current.resolve()), "weight_version": self._version, "flush_cache": True}
        await client.post("/update_weights_from_disk", body, PUSH_SECONDS)
