"""Resolves server options with SGLang's own code, in a process of its own: on this CPU, then on a pretended H100.

    python -m tests.resolve_options REQUEST.json ANSWER.json

SGLang and its plug-ins change the process they are loaded into. The pretence: torch.cuda reports one H100 (80 GB) with
CUDA 13, FlashInfer counts as installed, and SGLang's platform is its CUDA one. It begins once everything is imported,
since SGLang imports kernels that are not here where it sees a GPU. Nothing is launched: what is shown is which options
a launch would start with, and what each of the two model runners would take from them.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from sglang_trb.checkpoints.memory import H100_BYTES


def main(request_path: str, answer_path: str) -> None:
    """The request names ``cpu``, ``cuda`` and ``refused``: lists of command lines. The answer has one entry for each:
    ``{"options": …, "models": …, "synchronised": …}`` (the last two on CUDA only: what each model gets, and SGLang's
    variable that the servers' processes would inherit), or the error's text."""
    from sglang.srt.plugins import load_plugins

    load_plugins()
    request = json.loads(Path(request_path).read_text())
    answer = {"cpu": [{"options": _resolved(line).resolved_dict()} for line in request["cpu"]]}
    with h100():
        resolved, synchronised = [], []
        for line in request["cuda"]:
            resolved.append(_resolved(line))
            synchronised.append(os.environ.pop("SYNC_TOKEN_IDS_ACROSS_TP", None))
        answer["cuda"] = [
            {"options": args.resolved_dict(), "models": _models(args), "synchronised": variable}
            for args, variable in zip(resolved, synchronised, strict=True)
        ]
        answer["refused"] = [_error(line) for line in request["refused"]]
    Path(answer_path).write_text(json.dumps(answer, default=str))


@contextlib.contextmanager
def h100() -> Iterator[None]:
    """Everything that option resolution asks the machine answers as an H100 would."""
    import sglang.srt.platforms as platforms
    from sglang.srt.platforms.cuda import CudaSRTPlatform
    from sglang.srt.runtime_context import override_platform
    from sglang.srt.utils import common

    here, pretended = platforms.current_platform, CudaSRTPlatform()
    properties = SimpleNamespace(name="NVIDIA H100 80GB HBM3", total_memory=H100_BYTES, major=9, minor=0)
    cuda = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_capability": lambda *_: (9, 0),
        "get_device_name": lambda *_: properties.name,
        "get_device_properties": lambda *_: properties,
        "mem_get_info": lambda *_: (H100_BYTES, H100_BYTES),
    }
    holders = [m for m in list(sys.modules.values()) if getattr(m, "__dict__", {}).get("current_platform") is here]
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.multiple(torch.cuda, **cuda))
        stack.enter_context(mock.patch.object(torch.version, "cuda", "13.0"))
        stack.enter_context(mock.patch.object(platforms, "_current_platform", pretended))
        for module in holders:
            stack.enter_context(mock.patch.object(module, "current_platform", pretended))
        for probe in vars(common).values():
            getattr(probe, "cache_clear", lambda: None)()
        stack.enter_context(mock.patch.object(common, "get_nvgpu_memory_capacity", return_value=H100_BYTES >> 20))
        stack.enter_context(override_platform(has_flashinfer=True))
        yield


def _resolved(line: list[str]) -> Any:
    from sglang.srt.server_args import prepare_server_args

    arguments = prepare_server_args(line)
    arguments.resolve_once()
    arguments.check_server_args()
    return arguments


def _error(line: list[str]) -> str:
    try:
        _resolved(line)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def _models(arguments: Any) -> dict[str, dict[str, Any]]:
    """What the two runners would take from the options, by the functions that they call."""
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.mem_cache.kv_cache_dtype import configure_kv_cache_dtype
    from sglang.srt.model_executor.model_runner import resolve_draft_attention_backend
    from sglang.srt.model_executor.model_runner_components import attention_backend_setup, cuda_graph_setup
    from sglang.srt.runtime_context import get_model, get_schedule, get_spec, publish
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    publish(arguments, role="test")
    paths = {"student": get_model().model_path, "teacher": get_spec().speculative_draft_model_path}
    found = {}
    for role, path in paths.items():
        draft = role == "teacher"
        config = ModelConfig.from_server_args(arguments, model_path=path, is_draft_model=draft)
        own_backend = resolve_draft_attention_backend(draft_attention_backend=None, is_draft_worker=draft)
        runner = SimpleNamespace(
            is_draft_worker=draft,
            draft_attention_backend=own_backend,
            spec_algorithm=SpeculativeAlgorithm.from_string(get_spec().speculative_algorithm),
            is_generation=True,
            device=arguments.device,
            gpu_id=0,
            req_to_token_pool=SimpleNamespace(size=get_schedule().max_running_requests),
            _decode_cuda_graph_runner_cls=lambda: lambda runner: "captured",
        )
        attention = attention_backend_setup.resolve_attention_backend_strs(model_runner=runner)
        _, kv_dtype = configure_kv_cache_dtype(
            server_args_kv_cache_dtype=get_model().kv_cache_dtype,
            model=None,
            model_dtype=config.dtype,
            is_draft_worker=draft,
            is_dflash=False,
            speculative_draft_attention_backend=own_backend,
            speculative_draft_kv_cache_dtype=get_spec().speculative_draft_kv_cache_dtype,
        )
        with mock.patch.object(cuda_graph_setup, "get_available_gpu_memory", return_value=0.0):
            graph = cuda_graph_setup.capture_decode_graph(model_runner=runner)
            sizes, _ = cuda_graph_setup.get_batch_sizes_to_capture(runner, 1)
        found[role] = {
            "attention": [attention.prefill, attention.decode],
            "dtype": str(config.dtype),
            "kv_dtype": str(kv_dtype),
            "quantization": config.quantization,
            "context_length": config.context_len,
            "decode_graph": graph.runner,
            "graph_sizes": sizes,
        }
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
