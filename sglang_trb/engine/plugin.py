"""The SGLang plugin: which of SGLang's classes are replaced, and the proof that they were.

SGLang's plugin loader fails open: an error while loading a plugin or applying a hook is logged and the server serves
on. So each process proves with `require_in_force` that what it depends on took, before it serves.

Every replacement is a subclass that behaves as its base unless the server was started with ``--sampling-backend trb``.
"""

from __future__ import annotations

import importlib.metadata
import pkgutil
from typing import NoReturn

from sglang.srt.layers.sampler import register_sampler_backend
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_trb.errors import NotInForce

BACKEND = "trb"
CHECKED_SGLANG = "0.5.21"

_required: dict[str, object] = {}


def register() -> None:
    """Entry point of ``sglang.srt.plugins``; called once in the main process and in every scheduler process.

    Everything is replaced in each of them: which one a process will be cannot be told, for frameworks launch servers
    from children too.
    """
    installed = importlib.metadata.version("sglang")
    if installed != CHECKED_SGLANG:
        register_sampler_backend(BACKEND, lambda: _refuse_version(installed))
        return
    # Imported here: these modules subclass SGLang's, so they load only once SGLang asks for its plugins.
    from sglang_trb.engine import batch, http, openai, options, results, sampler, scheduler, tokenizer_manager, weights

    register_sampler_backend(BACKEND, sampler.TrbSampler)
    _replace("sglang.srt.managers.scheduler.Scheduler", scheduler.TrbScheduler)
    _replace("sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo", batch.TrbSamplingBatchInfo)
    results_module = "sglang.srt.managers.scheduler_components.batch_result_processor"
    _replace(f"{results_module}.SchedulerBatchResultProcessor", results.TrbBatchResultProcessor)
    weights_module = "sglang.srt.managers.scheduler_components.weight_updater"
    _replace(f"{weights_module}.SchedulerWeightUpdaterManager", weights.TrbWeightUpdater)
    _replace("sglang.srt.managers.tokenizer_manager.TokenizerManager", tokenizer_manager.TrbTokenizerManager)
    openai_module = "sglang.srt.entrypoints.openai"
    _replace(f"{openai_module}.serving_completions.OpenAIServingCompletion", openai.TrbServingCompletion)
    _replace(f"{openai_module}.serving_chat.OpenAIServingChat", openai.TrbServingChat)
    _wrap("sglang.srt.server_args.ServerArgs.resolve_once", options.resolve_and_check, HookType.AROUND)
    _wrap("sglang.srt.arg_groups.platform_hook.handle_cpu_backends", options.keep_backend_on_cpu, HookType.AROUND)
    _wrap("sglang.srt.entrypoints.http_server._setup_and_run_http_server", http.add_routes, HookType.BEFORE)


def require_in_force() -> None:
    """Raise unless every replacement that this process registered is what SGLang now uses.

    Raises:
        NotInForce: names the first SGLang object that is not the replacement.
    """
    if not _required:
        raise NotInForce(
            "the sglang-trb plugin was not loaded in this process; unset SGLANG_PLUGINS and SGLANG_PLATFORM or add "
            "'trb' and 'trb_cpu' to them, and reinstall sglang-trb if `trb doctor` shows no entry points"
        )
    for target, expected in _required.items():
        found = pkgutil.resolve_name(target)
        in_force = found is expected if isinstance(expected, type) else hasattr(found, "__wrapped__")
        if not in_force:
            raise NotInForce(f"{target} is {found!r}, without the hook of sglang-trb; the log above says why")


def _replace(target: str, cls: type) -> None:
    HookRegistry.register(target, cls, HookType.REPLACE)
    _required[target] = cls


def _wrap(target: str, hook, kind: HookType) -> None:
    HookRegistry.register(target, hook, kind)
    _required[target] = hook


def _refuse_version(installed: str) -> NoReturn:
    raise NotInForce(f"sglang {installed} is installed; this version of sglang-trb works with {CHECKED_SGLANG} only")
