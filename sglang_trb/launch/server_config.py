"""Server configurations, SGLang's own ``--config`` YAML: how to read one, and what blending needs of it.

Loads without SGLang, so that `trb doctor` can say what is wrong where SGLang itself is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sglang_trb.errors import InvalidParameter

_FOLLOWS = "it would reach the teacher alone, which takes the student's"
_TEACHER_MISSED = "it would reach the student alone"

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
    "enable_flexkv": (False, "only the student's KV would come back"),
    "enable_unified_cache_external_linker": (False, "only the student's KV would come back"),
    "enable_hisparse": (False, _TEACHER_MISSED),
    "enable_unified_memory": (False, "the pools of the pair are sized together"),
    "enable_memory_saver": (False, "the teacher's weights would not survive a release"),
    "weight_cache_mode": ("off", "weights are updated in place"),
    "startup_weight_load_mode": ("serial", "the teacher's weights would never be committed"),
    "speculative_draft_attention_backend": (None, _FOLLOWS),
    "speculative_draft_kv_cache_dtype": (None, _FOLLOWS),
    "speculative_draft_load_format": (None, _FOLLOWS),
    "speculative_draft_window_size": (None, _FOLLOWS),
    "speculative_draft_sink_size": (None, _FOLLOWS),
    "decrypted_config_file": (None, _TEACHER_MISSED),
    "decrypted_draft_config_file": (None, _FOLLOWS),
    "quantization_param_path": (None, "it holds one model's KV scales, and both would load them"),
    "json_model_override_args": ("{}", "it would change both models; write it into the config.json that it is for"),
    "enable_eplb": (False, "the experts' places would be the student's in both models"),
    "ep_dispatch_algorithm": (None, "the experts' places would be the student's in both models"),
    "elastic_ep_backend": (None, "the experts' places would be the student's in both models"),
    "flashinfer_allreduce_fusion_backend": (None, "its workspace is made for one hidden size"),
    "enable_lora": (False, "adapters are not supported"),
    "enable_custom_logit_processor": (False, "it would change the distribution after the budget was checked"),
    "enable_two_batch_overlap": (False, "the teacher runs the same batch as the student"),
    "enable_pdmux": (False, "split prefill does not pass the paired worker"),
    "dllm_algorithm": (None, "diffusion decoding has no next-token distribution to blend"),
    "is_embedding": (False, "a generation model is needed"),
    "download_dir": (None, "checkpoints are looked for in the hub's own cache; HF_HOME or HF_HUB_CACHE moves that"),
    "use_ray": (False, "only SGLang's own launcher was checked"),
    "smg_grpc_mode": (False, "requests would not pass our checks"),
    "grpc_port": (None, "requests would not pass our checks"),
    "crash_dump_folder": (None, "a dump holds the server's keys"),
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


AT_LEAST_ONE = ("context_length", "max_total_tokens", "max_running_requests")
"""Options that SGLang takes at any value, and then fails on somewhere."""


UNREADABLE = (yaml.YAMLError, ValueError, TypeError, RecursionError)
"""What PyYAML raises, on purpose or not, for text that is no YAML or whose dates and numbers cannot be."""


class StrictLoader(yaml.SafeLoader):
    """A key given twice is an error, not the last one's."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping in which no key stands twice."""
        self.flatten_mapping(node)
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_server_config(path: str | Path) -> dict[str, Any]:
    """The options of a server configuration, named with underscores as in SGLang's ``ServerArgs``.

    Raises:
        InvalidParameter: no such file, not YAML, or not a mapping of option names to values; a model without a name.
    """
    allowed = "a YAML file of SGLang options"
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), StrictLoader)
    except (OSError, *UNREADABLE) as error:
        raise InvalidParameter("--config", str(path), f"{allowed} ({error})") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InvalidParameter("--config", str(path), f"{allowed}, with option names as keys")
    options: dict[str, Any] = {}
    for written, value in content.items():
        name = written.replace("-", "_")
        name = ALIASES.get(name, name)
        if name in options:
            raise InvalidParameter("--config", str(path), f"{allowed}: {written!r} is given twice")
        if name in ("model_path", "speculative_draft_model_path") and not isinstance(value, str | None):
            raise InvalidParameter(name, value, "a checkpoint folder, or a Hugging Face id")
        options[name] = value
    return options
