"""Which SGLang options a blending server needs or cannot have; checked in the main process before anything starts."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from sglang.srt.arg_groups.overrides import declare_resolution, resolving_view
from sglang.srt.environ import envs
from sglang.srt.platforms import current_platform
from sglang.srt.server_args import ServerArgs

from sglang_trb.checkpoints.weight_files import require_weights
from sglang_trb.engine import hooks
from sglang_trb.engine.backend import BACKEND, asks_to_blend
from sglang_trb.engine.cpu.platform import ATTENTION_BACKEND, PlainCpuPlatform
from sglang_trb.engine.http import keys
from sglang_trb.engine.joining import join_seconds
from sglang_trb.engine.manager import teacher_probe
from sglang_trb.engine.worker.blend_backend import blend_backend
from sglang_trb.errors import InvalidParameter, NotInForce
from sglang_trb.footprint import RUNNING_REQUESTS
from sglang_trb.launch.server_config import AT_LEAST_ONE, REQUIRED
from sglang_trb.pair.pair import Pair

logger = logging.getLogger(__name__)

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
    if not asks_to_blend(server_args) or getattr(server_args, "_resolution_finished", False):
        return original(server_args)
    hooks.require_in_force()
    _check_required(server_args)
    keys.hide_in_command_line(server_args)
    keys.require_sendable(server_args)
    _check_same_quantization(server_args)
    # It grows the student's KV pool once graphs are captured; the teacher's must keep the same slots.
    envs.SGLANG_ENABLE_POST_CAPTURE_KV_SIZING.set(False)
    # SGLang turns it on by itself for some models; growing it for the larger of two frees what the other's graphs use.
    declare_resolution(server_args, "sglang_trb", enforce_disable_flashinfer_allreduce_fusion=True)
    if server_args.tp_size > 1:
        # Sums on a device may differ in the last bit from rank to rank, and with them a token; then the ranks part.
        os.environ.setdefault("SYNC_TOKEN_IDS_ACROSS_TP", "1")
    if server_args.max_running_requests is None:  # SGLang derives it from the KV pool; a step's memory grows with it
        declare_resolution(server_args, "sglang_trb", max_running_requests=RUNNING_REQUESTS)
    warmups = ",".join(filter(None, (server_args.warmups, teacher_probe.WARMUP)))
    declare_resolution(server_args, "sglang_trb", warmups=warmups)
    original(server_args)
    check(resolving_view(server_args))


def keep_backends_on_cpu(original: Callable[..., None], server_args: ServerArgs) -> None:
    """Hook around ``handle_cpu_backends``, which on a CPU resolves every sampling backend to ``pytorch``, and attention
    that was left open to a backend of sglang-kernel."""
    attention = resolving_view(server_args).attention_backend
    original(server_args)
    if resolving_view(server_args).device != "cpu":
        return
    if attention is None and isinstance(current_platform, PlainCpuPlatform):
        declare_resolution(server_args, "sglang_trb", attention_backend=ATTENTION_BACKEND)
    if asks_to_blend(server_args):
        declare_resolution(server_args, "sglang_trb", sampling_backend=BACKEND)


def check(options: Any) -> None:
    """Check resolved options; see `resolve_and_check`."""
    if not asks_to_blend(options):
        raise NotInForce(
            f"sampling_backend was 'trb' and was resolved to {options.sampling_backend!r}"
            + (": enable_deterministic_inference forces it" if options.enable_deterministic_inference else "")
        )
    if not options.speculative_draft_model_path:
        raise NotInForce("speculative_draft_model_path is not set; it names the teacher")
    _check_required(options)
    _check_same_files(options)
    for name, reason in FORBIDDEN_VARIABLES.items():
        if os.environ.get(name, "0").lower() not in ("", "0", "false"):
            raise NotInForce(f"the environment sets {name}={os.environ[name]}; unset it: {reason}")
    join_seconds()  # a wrong value is refused now, not in the first update
    blend_backend()  # likewise
    if options.load_format != "dummy":
        require_weights("model_path", options.model_path)
    Pair.load(options.model_path, options.speculative_draft_model_path)
    if options.dtype not in ("float32", "float") and not options.enable_fp32_lm_head:
        logger.warning("half-precision logits drown budgets below 0.005 nats; use --enable-fp32-lm-head")


def _check_same_files(options: Any) -> None:
    """The tokenizers and stop ids that are compared are those of the two models' folders."""
    expected = {"tokenizer_path": options.model_path, "revision": "main", "speculative_draft_model_revision": "main"}
    for name, needed in expected.items():
        if getattr(options, name) not in (None, needed):
            reason = "tokenizers and stop ids are read from the models' own folders, on the hub from the main branch"
            raise NotInForce(f"{name} is {getattr(options, name)!r}; a blending server needs {needed!r}: {reason}")


def _check_same_quantization(written: Any) -> None:
    """As written, before SGLang fills it in; how a checkpoint is quantised SGLang finds in its own configuration."""
    value, needed = written.speculative_draft_model_quantization, written.quantization
    if value not in (None, needed):
        reason = "it would reach the teacher alone"
        raise NotInForce(
            f"speculative_draft_model_quantization is {value!r}; a blending server needs {needed!r}: {reason}"
        )


def _check_required(options: Any) -> None:
    for name in AT_LEAST_ONE:
        if (number := getattr(options, name, None)) is not None and number < 1:
            raise InvalidParameter(name, number, "an integer of at least 1")
    for name, (needed, reason) in REQUIRED.items():
        value = getattr(options, name, needed)
        if value != needed and not (needed is False and not value):
            raise NotInForce(f"{name} is {value!r}; a blending server needs {needed!r}: {reason}")
