"""Which tensors a model has: what new weights for it must bring, may bring, and cannot bring.

A checkpoint's configuration decides, as transformers builds the model from it on the meta device, under the names that
transformers saves; its files add what they hold besides. Only where transformers does not know the architecture, or
names its tensors otherwise than the files do, is all that the files hold taken for the model's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from sglang_trb.checkpoints.folder import checkpoint_folder, read_json, text_config
from sglang_trb.checkpoints.weight_files import Shape, read_layout
from sglang_trb.errors import InvalidParameter

_COMPUTED = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
"""Ends of the names of buffers that follow from the configuration; some checkpoints hold them, no model reads them."""
_HEAD = "lm_head.weight"

Described = Iterable[tuple[str, Sequence[int]]]
"""Names and shapes of tensors."""


@dataclasses.dataclass(frozen=True)
class ModelTensors:
    """The tensors of a model under their names in a checkpoint.

    Attributes:
        required: `own_tensors`: a tied output head is the embeddings.
        optional: what a checkpoint may hold besides: a copy of a tied head, weights of parts that are not served.
        problem: why ``required`` is what the files hold and not what the configuration says; None where it is that.
    """

    required: Mapping[str, Shape]
    optional: Mapping[str, Shape]
    problem: str | None

    @classmethod
    def of(cls, folder: Path) -> ModelTensors:
        """Read a checkpoint folder.

        Raises:
            OSError, ValueError: its weights cannot be read, as `read_layout`.
        """
        stored = {name: tensor.shape for name, tensor in read_layout(folder).items() if not _computed(name)}
        config = read_json(folder, "config.json") or {}
        try:
            required, tied = _as_built(config)
            problem = _difference(required, stored)
        except InvalidParameter as error:
            problem = str(error)
        if problem is not None:
            tied = {_HEAD: stored[_HEAD]} if _HEAD in stored and text_config(config).get("tie_word_embeddings") else {}
            required = {name: shape for name, shape in stored.items() if name not in tied}
        others = {name: shape for name, shape in stored.items() if name not in required}
        return cls(required, tied | others, problem)

    def refusal(self, described: Described, *, whole: bool = False) -> str | None:
        """Why tensors of these names and shapes are not the model's, or None.

        Args:
            described: what is to be loaded.
            whole: it is all that is to be loaded, so nothing may be missing.
        """
        given = {name: tuple(shape) for name, shape in described if not _computed(name)}
        missing = sorted(self.required.keys() - given.keys()) if whole else []
        if missing:
            return f"{missing[0]} is missing"
        for name, shape in given.items():
            known = self.required.get(name, self.optional.get(name))
            if known is None:
                return f"{name} is not a tensor of the served model"
            if shape != known:
                return f"{name} has shape {list(shape)}, the served model's is {list(known)}"
        return None


def check_checkpoint(folder: Path, served: str) -> str | None:
    """Why the checkpoint in ``folder`` cannot replace the one that is served, or None when nothing speaks against it.

    Reads headers and sizes only: the safetensors files are whole, and they hold the parameters of the served model with
    the same shapes.

    Args:
        folder: to load.
        served: the folder or Hugging Face id that the server was started with; where its safetensors files are not on
            this machine, only the new files themselves are checked.
    """
    try:
        new = read_layout(folder)
    except (OSError, ValueError) as error:
        return str(error)
    model = _served(served)
    problem = model and model.refusal(((name, tensor.shape) for name, tensor in new.items()), whole=True)
    return f"the checkpoint is not of the served model: {problem}" if problem else None


def check_tensors(described: Described, served: str) -> str | None:
    """Why tensors of these names and shapes are not the served model's, or None; ``served`` as in `check_checkpoint`.

    SGLang's loaders skip a name that they do not know with a warning, so a misnamed tensor would count as pushed.
    """
    model = _served(served)
    return None if model is None else model.refusal(described)


@cache
def _served(served: str) -> ModelTensors | None:
    """None where the files are not on this machine, as on a server that was started with dummy weights."""
    folder = checkpoint_folder(served, download=False)
    return ModelTensors.of(folder) if any(folder.glob("*.safetensors")) else None


def meta_model(config: Mapping[str, Any]) -> Any:
    """The causal language model that transformers builds from the content of a ``config.json``, without memory.

    Raises:
        InvalidParameter: transformers knows no such architecture.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    except (KeyError, TypeError, ValueError, StrictDataclassError) as error:
        allowed = f"an architecture of transformers ({error})"
        raise InvalidParameter("model_type", config.get("model_type"), allowed) from error


def own_tensors(model: Any) -> dict[str, Any]:
    """What a torch model is made of, by name: each parameter once, however many places it is tied to, and the buffers
    that a checkpoint keeps, such as the bias that balances experts."""
    parameters = dict(model.named_parameters())
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return parameters | {name: t for name, t in model.state_dict(keep_vars=True).items() if name not in tied}


def _as_built(config: Mapping[str, Any]) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """Tensors by the names that transformers saves them under, and the other names of tied ones."""
    from transformers.core_model_loading import revert_weight_conversion

    if config.get("quantization_config"):  # its files hold scales too, which belong to the weights
        raise InvalidParameter("quantization_config", config["quantization_config"], "none")
    model = meta_model(config)
    own = own_tensors(model)
    saved = revert_weight_conversion(model, {name: tensor.detach() for name, tensor in own.items()})
    twice = {n: w for n, w in model.named_parameters(remove_duplicate=False) if n not in own}
    return {n: tuple(w.shape) for n, w in saved.items()}, {n: tuple(w.shape) for n, w in twice.items()}


def _difference(built: Mapping[str, Shape], stored: Mapping[str, Shape]) -> str | None:
    for name, shape in built.items():
        if name not in stored:
            return f"transformers saves a tensor {name}, which its files do not hold"
        if shape != stored[name]:
            return f"{name} has shape {list(stored[name])} in its files and {list(shape)} in transformers"
    return None


def _computed(name: str) -> bool:
    return name.endswith(_COMPUTED)
