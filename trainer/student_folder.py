"""A student on disk, as transformers and SGLang load it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import huggingface_hub
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sglang_trb.checkpoint import checkpoint_file
from trainer.atomic import new_folder

_COMPANIONS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "tokenizer.model",
)  # fmt: skip
"""What makes weights a checkpoint; a source has some of these."""


def write_student(folder: Path, weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Write a checkpoint: the weights, and config and tokenizer of the source.

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


def read_weights(source: str | Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint folder or Hugging Face id, on the CPU.

    Raises:
        FileNotFoundError: it holds no safetensors file.
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = Path(huggingface_hub.snapshot_download(str(source), allow_patterns=["*.safetensors"]))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no safetensors file")
    return {name: weight for file in files for name, weight in load_file(file).items()}
