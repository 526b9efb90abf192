"""The pair's tokenizer, and its checkpoint folders as transformers and SGLang load them."""

from __future__ import annotations

import dataclasses
import functools
import json
import string
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

CHARACTERS = string.digits + "+-=;\\{}., " + string.ascii_lowercase
ENDOFTEXT, IM_END, PAD, UNK = "<|endoftext|>", "<|im_end|>", "<|pad|>", "<|unk|>"
SPECIAL_TOKENS = (ENDOFTEXT, IM_END, PAD, UNK)
CHAT_TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
"""A prompt is the question alone: there are no roles to mark."""
CONTEXT = 512
SAVED_DTYPE = torch.float16
"""Halves the files; config.json says float32, which is what the weights are loaded as."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen3 model; as many key-value heads as heads, output tied to the embedding."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    head_dim: int = 32


def build_tokenizer() -> Tokenizer:
    """One token a character; ``SPECIAL_TOKENS`` have the last ids. Any other character becomes UNK."""
    vocabulary = {token: i for i, token in enumerate((*CHARACTERS, *SPECIAL_TOKENS))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNK))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


@functools.cache
def tokenizer_with_stop(stop: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=build_tokenizer(), **_tokenizer_roles(stop))


def _tokenizer_roles(stop: str) -> dict[str, Any]:
    return {
        "eos_token": stop,
        "pad_token": PAD,
        "unk_token": UNK,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def new_model(shape: Shape, stop: str, seed: int) -> Qwen3ForCausalLM:
    """A model with random weights (float32)."""
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(Qwen3Config.from_dict(_config(shape, stop)))


def _config(shape: Shape, stop: str) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "dtype": "float32",
        "vocab_size": len(CHARACTERS) + len(SPECIAL_TOKENS),
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": CONTEXT,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": True,
        "transformers_version": "5.12.1",
        **_stop_ids(stop),
    }


def _stop_ids(stop: str) -> dict[str, int]:
    tokenizer = build_tokenizer()
    return {"eos_token_id": tokenizer.token_to_id(stop), "pad_token_id": tokenizer.token_to_id(PAD)}


def write_checkpoint(folder: Path, model: Qwen3ForCausalLM, shape: Shape, stop: str) -> None:
    """Weights (rounded to SAVED_DTYPE), both configs and the tokenizer, whose tokenizer.json all models share."""
    folder.mkdir(parents=True)
    weights = {n: p.detach().to(SAVED_DTYPE).contiguous() for n, p in model.named_parameters()}  # tied: no lm_head
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", _config(shape, stop))
    _write_json(folder / "generation_config.json", _stop_ids(stop))
    build_tokenizer().save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **_tokenizer_roles(stop)}
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
