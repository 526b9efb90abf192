"""Server configurations, SGLang's own ``--config`` YAML: how to read one, and what blending needs of it.

Loads without SGLang, so that `trb doctor` can say what is wrong where SGLang itself is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sglang_trb.errors import InvalidParameter

REQUIRED: dict[str, tuple[Any, str]] = {
    "sampling_defaults": ("openai", "otherwise chat requests inherit filters from generation_config unseen"),
    "speculative_algorithm": (None, "the teacher runs in lockstep; a speculative algorithm would draft with it"),
    "enable_deterministic_inference": (False, "it replaces the sampling backend; seeds work without it"),
    "tokenizer_worker_num": (1, "one process guards weight updates"),
    "pp_size": (1, "the sampler needs both models' logits on one rank"),
    "dcp_size": (1, "both models share the KV slots of one rank"),
    "enable_dp_attention": (False, "the teacher's batches would not follow its padding"),
    "disaggregation_mode": ("null", "the teacher's KV is not transferred"),
    "enable_hierarchical_cache": (False, "only the student's KV would come back from the host"),
    "enable_lmcache": (False, "only the student's KV would come back"),
    "enable_unified_memory": (False, "the pools of the pair are sized together"),
    "enable_memory_saver": (False, "the teacher's weights would not survive a release"),
    "weight_cache_mode": ("off", "weights are updated in place"),
    "enable_lora": (False, "adapters are not supported"),
    "enable_custom_logit_processor": (False, "it would change the law after the budget was checked"),
    "enable_two_batch_overlap": (False, "the teacher runs the same batch as the student"),
    "enable_pdmux": (False, "split prefill does not pass the paired worker"),
    "dllm_algorithm": (None, "diffusion decoding has no next-token law to blend"),
    "is_embedding": (False, "a generation model is needed"),
    "use_ray": (False, "only SGLang's own launcher was checked"),
    "smg_grpc_mode": (False, "requests would not pass our checks"),
    "encoder_only": (False, "a generation model is needed"),
}
"""Option → (value a blending server needs, why)."""

ALIASES = {
    "model": "model_path",
    "speculative_draft_model": "speculative_draft_model_path",
    "tensor_parallel_size": "tp_size",
    "pipeline_parallel_size": "pp_size",
    "decode_context_parallel_size": "dcp_size",
}
"""Other names that SGLang accepts for the options used here."""


def read_server_config(path: str | Path) -> dict[str, Any]:
    """The options of a server configuration, named with underscores as in SGLang's ``ServerArgs``.

    Raises:
        InvalidParameter: no such file, not YAML, or not a mapping of option names to values.
    """
    allowed = "a YAML file of SGLang options"
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidParameter("--config", str(path), f"{allowed} ({error})") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InvalidParameter("--config", str(path), f"{allowed}, with option names as keys")
    names = {name: name.replace("-", "_") for name in content}
    return {ALIASES.get(name, name): content[written] for written, name in names.items()}
