"""Which SGLang options a blending server needs or cannot have; checked in the main process before anything starts."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from sglang.srt.arg_groups.overrides import declare_resolution, resolving_view
from sglang.srt.environ import envs
from sglang.srt.server_args import ServerArgs

from sglang_trb.engine import plugin
from sglang_trb.engine.pair import Pair
from sglang_trb.errors import NotInForce

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
"""Option → (value it must have, why)."""

FORBIDDEN_VARIABLES = {
    "SGLANG_RUST_SERVER": "requests would not pass our checks",
    "SGLANG_RETURN_ORIGINAL_LOGPROB": "returned log-probabilities are log mu",
}


def resolve_and_check(original: Callable[..., None], server_args: ServerArgs) -> None:
    """Hook around ``ServerArgs.resolve_once``: a server that was asked to blend starts able to, or not at all.

    Raises:
        NotInForce: names the option, its value and the value that is needed.
        PairMismatch, InvalidParameter: the two checkpoints cannot be blended.
    """
    if server_args.sampling_backend != plugin.BACKEND or getattr(server_args, "_resolution_finished", False):
        return original(server_args)
    plugin.require_in_force()
    # It grows the student's KV pool once graphs are captured; the teacher's must keep the same slots.
    envs.SGLANG_ENABLE_POST_CAPTURE_KV_SIZING.set(False)
    original(server_args)
    check(resolving_view(server_args))


def keep_backend_on_cpu(original: Callable[..., None], server_args: ServerArgs) -> None:
    """Hook around ``handle_cpu_backends``, which resolves every sampling backend to ``pytorch`` on a CPU."""
    original(server_args)
    if server_args.sampling_backend == plugin.BACKEND and resolving_view(server_args).device == "cpu":
        declare_resolution(server_args, "sglang_trb", sampling_backend=plugin.BACKEND)


def check(options: Any) -> None:
    """Check resolved options; see `resolve_and_check`."""
    if options.sampling_backend != plugin.BACKEND:
        raise NotInForce(
            f"sampling_backend was 'trb' and was resolved to {options.sampling_backend!r}"
            + (": enable_deterministic_inference forces it" if options.enable_deterministic_inference else "")
        )
    if not options.speculative_draft_model_path:
        raise NotInForce("speculative_draft_model_path is not set; it names the teacher")
    for name, (needed, reason) in REQUIRED.items():
        value = getattr(options, name, needed)
        if value != needed and not (needed is False and not value):
            raise NotInForce(f"{name} is {value!r}; a blending server needs {needed!r}: {reason}")
    for name, reason in FORBIDDEN_VARIABLES.items():
        if os.environ.get(name, "0").lower() not in ("", "0", "false"):
            raise NotInForce(f"the environment sets {name}={os.environ[name]}; unset it: {reason}")
    Pair.load(options.model_path, options.speculative_draft_model_path)
