"""A student on disk, as transformers and SGLang load it: which one can be trained, how it is read and written."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sglang_trb.checkpoints.folder import checkpoint_file, checkpoint_folder
from sglang_trb.checkpoints.model_tensors import ModelTensors
from sglang_trb.checkpoints.weight_files import read_layout, require_weights
from sglang_trb.errors import InvalidParameter
from sglang_trb.pair.vocab import VOCABULARY_FILES
from trainer.atomic import new_folder

_COMPANIONS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", *VOCABULARY_FILES,
)  # fmt: skip
"""What makes weights a checkpoint; a source has some of these."""
STUDENT_FIELD = "models.student"
"""Of the configuration."""


def check_student(source: str, *, download: bool = True) -> ModelTensors:
    """Refuse a student that could not be trained and pushed, before anything is loaded or drawn.

    Its weights are safetensors files, and what transformers makes of its configuration has exactly their names and
    shapes: the trainer computes with transformers' model and pushes what SGLang reads under the checkpoint's names.

    Args:
        source: the checkpoint folder or Hugging Face id.
        download: as in `checkpoint_folder`.

    Returns:
        What it is made of.

    Raises:
        InvalidParameter: it could not; says why.
    """
    tensors = ModelTensors.of(require_weights(STUDENT_FIELD, source, download=download))
    if tensors.problem is not None:
        allowed = f"a checkpoint whose tensors are those of transformers' model of it: {tensors.problem}"
        raise InvalidParameter(STUDENT_FIELD, source, allowed)
    return tensors


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
    """The parameters of a checkpoint folder or Hugging Face id, on the CPU; not what its files hold besides.

    Raises:
        InvalidParameter, OSError, ValueError: it is not there, or its weights are not whole safetensors files.
    """
    folder = checkpoint_folder(source)
    layout, names = read_layout(folder), ModelTensors.of(folder).required
    weights: dict[str, torch.Tensor] = {}
    for file in sorted({layout[name].file for name in names}):
        with safe_open(file, "pt") as tensors:
            weights |= {name: tensors.get_tensor(name) for name in names if layout[name].file == file}
    return weights
