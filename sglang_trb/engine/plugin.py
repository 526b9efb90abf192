"""The SGLang plugin: which of SGLang's classes are replaced, and which functions are wrapped.

Every replacement is a subclass that behaves as its base unless the server was started with ``--sampling-backend trb``.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import NoReturn

from sglang.srt.layers.sampler import register_sampler_backend
from sglang.srt.plugins.hook_registry import HookType

from sglang_trb.engine.hooks import BACKEND, CHECKED_SGLANG, put
from sglang_trb.errors import NotInForce

_COMPONENTS = "managers.scheduler_components"


def register() -> None:
    """Entry point of ``sglang.srt.plugins``; called once in the main process and in every scheduler process.

    Everything is replaced in each of them: which one a process will be cannot be told, for frameworks launch servers
    from children too.
    """
    installed = importlib.metadata.version("sglang")
    if installed != CHECKED_SGLANG:
        register_sampler_backend(BACKEND, lambda: _refuse_version(installed))
        return
    # Imported now: these modules subclass SGLang's, so they load only once SGLang asks for its plugins.
    from sglang_trb.engine.http import app as http
    from sglang_trb.engine.worker import sampler

    register_sampler_backend(BACKEND, sampler.TrbSampler)
    for target, cls in _replacements().items():
        put(target, cls, HookType.REPLACE)
    for target, hook in _hooks().items():
        put(target, hook, HookType.AROUND)
    put("entrypoints.http_server._setup_and_run_http_server", http.add_routes, HookType.BEFORE)


def _replacements() -> dict[str, type]:
    """Classes of SGLang, and the subclasses that take their places; names are below ``sglang.srt``."""
    from sglang_trb.engine.http import anthropic, openai
    from sglang_trb.engine.manager import processes, tokenizer_manager
    from sglang_trb.engine.scheduling import results, scheduler
    from sglang_trb.engine.worker import batch, weights

    return {
        "managers.scheduler.Scheduler": scheduler.TrbScheduler,
        "managers.tokenizer_manager.TokenizerManager": tokenizer_manager.TrbTokenizerManager,
        "sampling.sampling_batch_info.SamplingBatchInfo": batch.TrbSamplingBatchInfo,
        f"{_COMPONENTS}.batch_result_processor.SchedulerBatchResultProcessor": results.TrbBatchResultProcessor,
        f"{_COMPONENTS}.weight_updater.SchedulerWeightUpdaterManager": weights.TrbWeightUpdater,
        "utils.watchdog.SubprocessWatchdog": processes.TrbWatchdog,
        "entrypoints.openai.serving_completions.OpenAIServingCompletion": openai.TrbServingCompletion,
        "entrypoints.openai.serving_chat.OpenAIServingChat": openai.TrbServingChat,
        "entrypoints.anthropic.serving.AnthropicServing": anthropic.TrbAnthropicServing,
    }


def _hooks() -> dict[str, Callable]:
    """Functions of SGLang, and what stands around them; names are below ``sglang.srt``."""
    from sglang_trb.engine import containment, options
    from sglang_trb.engine.http import keys
    from sglang_trb.engine.manager import processes
    from sglang_trb.engine.scheduling import profiling, results

    logprobs = f"{_COMPONENTS}.logprob_result_processor.SchedulerLogprobResultProcessor"
    profiler = f"{_COMPONENTS}.profiler_manager.SchedulerProfilerManager"
    return {
        "managers.schedule_batch.Req.update_finish_state": containment.update_finish_state,
        "managers.schedule_batch.Req.init_next_round_input": containment.init_next_round_input,
        "managers.schedule_batch.ScheduleBatch.prepare_for_extend": containment.prepare_for_extend,
        "managers.schedule_policy.SchedulePolicy.calc_priority": containment.calc_priority,
        "managers.schedule_policy.PrefillAdder.add_one_req": containment.add_one_req,
        "managers.schedule_policy.PrefillAdder.add_chunked_req": containment.add_chunked_req,
        f"{logprobs}.add_logprob_return_values": containment.logprobs,
        f"{logprobs}.add_input_logprob_return_values": containment.logprobs,
        f"{_COMPONENTS}.output_streamer._GenerationStreamAccumulator.accept": results.accept,
        f"{profiler}._profile": profiling.profile,
        f"{profiler}._profile_batch_predicate": profiling.in_a_step,
        "entrypoints.engine.Engine._launch_scheduler_processes": processes.launched_deaf,
        "entrypoints.engine.Engine._launch_detokenizer_subprocesses": processes.launched_deaf,
        "server_args.ServerArgs.resolve_once": options.resolve_and_check,
        "server_args.ServerArgs.resolved_dict": keys.hide_in_options,
        "arg_groups.platform_hook.handle_cpu_backends": options.keep_backend_on_cpu,
        "utils.auth.decide_request_auth": keys.decide,
    }


def _refuse_version(installed: str) -> NoReturn:
    raise NotInForce(f"sglang {installed} is installed; this version of sglang-trb works with {CHECKED_SGLANG} only")
