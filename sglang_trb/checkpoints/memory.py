"""How much memory a blended pair needs (App. C, Eq. 4-6), from the two ``config.json`` alone.

With W the weights and KV(n) the cache of a context of n tokens, generation holds W_S + KV_S(n) without a teacher
(Eq. 4), W_S + W_Q + KV_S(n) + KV_Q(n) with one (Eq. 5); the difference is W_Q + KV_Q(n) (Eq. 6). SGLang gives weights
and KV pool together ``mem-fraction-static`` of what is free before loading, and both models' caches share one set of
slots, so a pool of N tokens costs N · (kv_S + kv_Q) bytes. All bytes are those of one tensor-parallel rank.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sglang_trb.checkpoints.folder import read_json, text_config
from sglang_trb.checkpoints.model_tensors import meta_model
from sglang_trb.errors import InvalidParameter
from sglang_trb.footprint import RUNNING_REQUESTS, step_bytes

KIB, GIB = 1 << 10, 1 << 30
H100_BYTES = 81_559 << 20  # the 80 GB card, as nvidia-smi reports it
CONTEXT_BYTES = GIB  # CUDA context, NCCL and the like, taken before the weights load; an estimate

_MODELS = ("model_path", "speculative_draft_model_path")
_LABEL = 42  # width of the first column
_DTYPE_BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}
_KV_DTYPE_BYTES = {"bfloat16": 2, "bf16": 2, "fp8_e5m2": 1, "fp8_e4m3": 1}


@dataclasses.dataclass(frozen=True, slots=True)
class ModelMemory:
    """One model of the pair.

    Attributes:
        name: folder or Hugging Face id.
        parameters: of the whole model, tied matrices counted once.
        weight_bytes: on one rank; exact for one rank, else every matrix divided evenly.
        kv_bytes_per_token: on one rank.
    """

    name: str
    parameters: int
    weight_bytes: int
    kv_bytes_per_token: int


@dataclasses.dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The memory of one rank that serves a pair.

    Attributes:
        student, teacher: the two models.
        context_length: longest sequence, in tokens.
        device_bytes: memory of the device.
        mem_fraction: the share of it, less `CONTEXT_BYTES`, for weights and KV pool; None: no limit but the next.
        max_total_tokens: upper limit on the KV pool, in tokens; None: no limit but the one before.
        step_bytes: what a step of the blend takes at most, of what weights and KV pool leave.
    """

    student: ModelMemory
    teacher: ModelMemory
    context_length: int
    device_bytes: int
    mem_fraction: float | None
    max_total_tokens: int | None = None
    step_bytes: int = 0

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights on one device."""
        return self.student.weight_bytes + self.teacher.weight_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that one token takes in the KV cache of one device."""
        return self.student.kv_bytes_per_token + self.teacher.kv_bytes_per_token

    @property
    def available_bytes(self) -> int:
        """What is free before the weights load."""
        return self.device_bytes - CONTEXT_BYTES

    @property
    def static_bytes(self) -> int:
        """What weights and KV pool may take together."""
        return int(self.available_bytes * (1 if self.mem_fraction is None else self.mem_fraction))

    @property
    def tokens(self) -> int:
        """Tokens in the KV pool; 0 when the weights leave no room."""
        room = max(0, self.static_bytes - self.weight_bytes) // self.kv_bytes_per_token
        return room if self.max_total_tokens is None else min(room, self.max_total_tokens)

    @property
    def pool_bytes(self) -> int:
        """Bytes that are left for the KV cache of both models."""
        return self.tokens * self.kv_bytes_per_token

    @property
    def left_bytes(self) -> int:
        """For graphs, activations, logits and the blend's steps."""
        return self.available_bytes - self.weight_bytes - self.pool_bytes

    @property
    def fits(self) -> bool:
        """Whether at least one sequence of full length can be served, and a full batch of them blended."""
        return self.tokens >= self.context_length and self.step_bytes <= self.left_bytes

    def student_bytes(self, tokens: int) -> int:
        """Eq. 4 for a context of ``tokens`` tokens."""
        return self.student.weight_bytes + tokens * self.student.kv_bytes_per_token

    def teacher_bytes(self, tokens: int) -> int:
        """Eq. 6: what blending adds for a context of ``tokens`` tokens."""
        return self.teacher.weight_bytes + tokens * self.teacher.kv_bytes_per_token

    def blended_bytes(self, tokens: int) -> int:
        """Eq. 5 for a context of ``tokens`` tokens."""
        return self.student_bytes(tokens) + self.teacher_bytes(tokens)

    def render(self) -> str:
        """The plan as aligned plain text; GiB and KiB are powers of two."""
        length = self.context_length
        parameters = self.student.parameters + self.teacher.parameters
        header = f"{'one rank':{_LABEL}}{'parameters':>11}{'weights':>12}{'KV/token':>12}{f'KV/{length}':>12}"
        models = [
            (f"student {Path(self.student.name).name}", self.student),
            (f"teacher {Path(self.teacher.name).name}", self.teacher),
            ("both", ModelMemory("both", parameters, self.weight_bytes, self.kv_bytes_per_token)),
        ]
        share = "" if self.mem_fraction is None else f"{self.mem_fraction:g} of "
        sequences = f"{self.tokens:,} tokens = {self.tokens / length:.1f} sequences of {length:,}"
        totals = [
            ("student alone, one sequence (Eq. 4)", self.student_bytes(length), ""),
            ("blended, one sequence (Eq. 5)", self.blended_bytes(length), ""),
            ("added by the teacher (Eq. 6)", self.teacher_bytes(length), ""),
            (f"weights and pool may take {share}{self.available_bytes / GIB:.2f}", self.static_bytes, ""),
            ("  weights", self.weight_bytes, ""),
            ("  KV pool", self.pool_bytes, f" = {sequences}"),
            ("left (graphs, activations, logits)", self.left_bytes, ""),
            ("  a step of the blend, at most", self.step_bytes, ""),
        ]
        lines = [header, *(_row(label, model, length) for label, model in models)]
        return "\n".join([*lines, *(f"{label:{_LABEL}}{_gib(size)}{note}" for label, size, note in totals)])


def _row(label: str, model: ModelMemory, length: int) -> str:
    kv = f"{model.kv_bytes_per_token / KIB:8.1f} KiB"
    sequence = _gib(length * model.kv_bytes_per_token)
    return f"{label:{_LABEL}}{model.parameters / 1e6:>9,.1f} M{_gib(model.weight_bytes):>12}{kv:>12}{sequence:>12}"


def _gib(size: int) -> str:
    return f"{size / GIB:7.2f} GiB"


def plan(options: Mapping[str, Any], device_bytes: int) -> MemoryPlan:
    """The memory plan of a server configuration.

    Args:
        options: SGLang's options with underscores. ``model_path``, ``speculative_draft_model_path``,
            ``context_length`` and one of ``mem_fraction_static`` and ``max_total_tokens`` are required; ``dtype``,
            ``kv_cache_dtype``, ``tp_size``, ``device`` and ``max_running_requests`` are used where given.
        device_bytes: memory of one device.

    Raises:
        InvalidParameter: a required option is absent, or one has a value the plan does not know.
    """
    for name in (*_MODELS, "context_length"):
        if options.get(name) is None:
            raise InvalidParameter(name, None, "a value; the memory plan needs it")
    for name in ("context_length", "max_total_tokens", "tp_size", "max_running_requests"):
        if not isinstance(options.get(name, 1), int) or options.get(name, 1) < 1:
            raise InvalidParameter(name, options[name], "an integer >= 1")
    fraction, tokens = options.get("mem_fraction_static"), options.get("max_total_tokens")
    if fraction is None and tokens is None:
        raise InvalidParameter("mem_fraction_static", None, "a value, here or for max_total_tokens")
    if fraction is not None and not (isinstance(fraction, int | float) and 0 < fraction <= 1):
        raise InvalidParameter("mem_fraction_static", fraction, "a number in (0, 1]")
    if options.get("quantization"):
        raise InvalidParameter("quantization", options["quantization"], "none: the plan counts unquantised weights")
    precision = {name: options.get(name, "auto") for name in ("dtype", "kv_cache_dtype")}
    student, teacher = (
        model_memory(options[name], tensor_parallel=options.get("tp_size", 1), **precision) for name in _MODELS
    )
    vocab = max(text_config(model_config(options[name]))["vocab_size"] for name in _MODELS)
    requests = options.get("max_running_requests", RUNNING_REQUESTS)
    step = step_bytes(requests, vocab, options.get("device") or "cuda")
    return MemoryPlan(student, teacher, options["context_length"], device_bytes, fraction, tokens, step)


def model_memory(
    model: str | Path, *, dtype: str = "auto", kv_cache_dtype: str = "auto", tensor_parallel: int = 1
) -> ModelMemory:
    """Weights and KV bytes of one full-attention decoder, without loading it.

    Args:
        model: a checkpoint folder or a Hugging Face id (the paper's four need no network: their configs are here).
        dtype, kv_cache_dtype: SGLang's options of these names; "auto" follows the checkpoint and the weights.
        tensor_parallel: number of ranks; KV heads are repeated where there are fewer heads than ranks.

    Raises:
        InvalidParameter: no config, an architecture transformers does not know, or one with another kind of cache.
    """
    config = model_config(model)
    text = text_config(config)
    kinds = set(text.get("layer_types") or ()) - {"full_attention"}
    if kinds or text.get("kv_lora_rank"):
        raise InvalidParameter("model", str(model), "a model with full attention in every layer")
    element = _element_bytes(text, dtype)
    kv_element = element if kv_cache_dtype == "auto" else _lookup("kv_cache_dtype", kv_cache_dtype, _KV_DTYPE_BYTES)
    heads = text["num_attention_heads"]
    kv_heads = text.get("num_key_value_heads") or heads
    head_dim = text.get("head_dim") or text["hidden_size"] // heads
    shapes = _parameter_shapes(model, config)
    return ModelMemory(
        name=str(model),
        parameters=sum(count for _, _, count in shapes),
        weight_bytes=element * sum(-(-n // _ranks(name, dims, tensor_parallel, kv_heads)) for name, dims, n in shapes),
        kv_bytes_per_token=2 * text["num_hidden_layers"] * max(1, kv_heads // tensor_parallel) * head_dim * kv_element,
    )


def model_config(model: str | Path) -> dict[str, Any]:
    """The ``config.json`` of a folder or Hugging Face id; the package carries those of the paper's four models.

    Raises:
        InvalidParameter: it cannot be found.
    """
    owner, _, name = str(model).partition("/")
    shipped = importlib.resources.files("sglang_trb.checkpoints") / "model_configs" / f"{name}.json"
    if owner == "Qwen" and "/" not in name and shipped.is_file() and not Path(model).is_dir():
        return json.loads(shipped.read_text(encoding="utf-8"))
    config = read_json(model, "config.json")
    if config is None:
        raise InvalidParameter("model", str(model), "a checkpoint with a config.json")
    return config


def _parameter_shapes(model: str | Path, config: dict[str, Any]) -> list[tuple[str, int, int]]:
    """Name, dimensions and size of every parameter, from transformers' model built on the meta device."""
    try:
        parameters = meta_model(config).named_parameters()
    except InvalidParameter as error:
        raise InvalidParameter("model", str(model), f"a model that transformers can build: {error}") from error
    return [(name, parameter.dim(), parameter.numel()) for name, parameter in parameters]


def _ranks(name: str, dims: int, tensor_parallel: int, kv_heads: int) -> int:
    """Over how many ranks a parameter is split: vectors are repeated, K and V at most once per KV head."""
    if dims < 2:
        return 1
    return min(tensor_parallel, kv_heads) if ".k_proj." in name or ".v_proj." in name else tensor_parallel


def _element_bytes(text: dict[str, Any], dtype: str) -> int:
    if dtype != "auto":
        return _lookup("dtype", dtype, _DTYPE_BYTES)
    own = text.get("dtype") or text.get("torch_dtype") or "float32"
    return 2 if own == "float32" else _lookup("dtype of the checkpoint", own, _DTYPE_BYTES)  # SGLang halves fp32


def _lookup(field: str, value: str, known: dict[str, int]) -> int:
    if value not in known:
        raise InvalidParameter(field, value, "auto, " + ", ".join(known))
    return known[value]
