"""Every touch point. A new hook, a new subclass, a new import from SGLang gets its line here first; tests see to it.

`checked` has what SGLang's sources say of each.
"""

from __future__ import annotations

from sglang_trb.engine.touch_points.points import HOOKED, How, TouchPoint

STARTUP = "start-up compares it with what SGLang holds (`hooks.require_in_force`)"
FAULTS = f"{STARTUP}; `tests/server/test_containment.py` raises there"

_SHARED_POOL = "both models' KV caches have the same slots"
_IDENTITY = "`tests/server/test_answers.py` compares answers with transformers"
_OPTIONS = "`tests/unit/test_server_configs.py` resolves every shipped configuration"
_FIELDS = "`tests/unit/test_request_fields.py` compares the descriptions with it"


def _point(name: str, how: How, ours: str, reason: str, proof: str, members: str = "") -> TouchPoint:
    return TouchPoint(f"srt.{name}", how, ours, reason, proof, tuple(members.split()))


def _replaced(name: str, ours: str, reason: str, members: str, proof: str = STARTUP) -> TouchPoint:
    return _point(name, How.REPLACED, ours, reason, proof, members)


def _wrapped(name: str, ours: str, reason: str, proof: str = STARTUP) -> TouchPoint:
    return _point(name, How.WRAPPED, ours, reason, proof)


def _contained(name: str, ours: str) -> TouchPoint:
    return _wrapped(name, f"scheduling.wrapped.{ours}", "a request on which it fails ends alone", FAULTS)


def _subclassed(name: str, ours: str, reason: str, proof: str, members: str = "") -> TouchPoint:
    return _point(name, How.SUBCLASSED, ours, reason, proof, members)


def _used(name: str, ours: str, reason: str, proof: str, members: str = "") -> TouchPoint:
    return _point(name, How.USED, ours, reason, proof, members)


_SCHEDULER = (
    _replaced(
        "managers.scheduler.Scheduler", "scheduling.scheduler.TrbScheduler",
        "makes the pair; streams traces; keeps a prompt's chunks out of the radix cache until a token is drawn; "
        "answers requests that fail",
        """init_tp_model_worker stash_chunked_request get_output_streamer_class get_init_info abort_request
        handle_generate_request _add_request_to_queue get_new_batch_prefill process_batch_result
        _release_aborted_request chunked_req ipc_channels model_config nccl_port output_streamer req_to_token_pool
        server_args tp_worker tree_cache waiting_queue weight_updater event_loop_overlap""",
    ),
    _replaced(
        "managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor",
        "scheduling.results.TrbBatchResultProcessor", "ends the requests whose row could not be drawn, alone",
        """process_batch_result_prefill process_batch_result_decode _maybe_update_reasoning_tokens
        _maybe_collect_customized_info _apply_decode_logprobs _append_decode_hidden_states _apply_prefill_grammar
        _accept_grammar_tokens consume_auxiliary_output""",
    ),
    _replaced(
        "managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager", "worker.weights.TrbWeightUpdater",
        "writes the student alone, only when idle, only its own tensors, on all ranks or on none",
        """update_weights_from_disk update_weights_from_tensor update_weights_from_distributed begin_weight_update
        end_weight_update init_weights_update_group check_weights _select_runners _observe_weight_load _session
        flush_cache_after_weight_update is_fully_idle record_weight_version_after_update tp_cpu_group tp_worker""",
        f"{STARTUP}; `tests/server/test_weights.py` compares the teacher's checksums",
    ),
    _replaced(
        "sampling.sampling_batch_info.SamplingBatchInfo", "worker.batch.TrbSamplingBatchInfo",
        "the blend's columns follow the batch",
        """from_schedule_batch adjusted_from_schedule_batch adjusted_filter_batch adjusted_merge_batch filter_batch
        merge_batch copy_for_forward apply_logits_bias update_regex_vocab_mask acc_additive_penalties
        acc_scaling_penalties grammar_mask logit_bias min_ps penalizer_orchestrator temperatures top_ks top_ps""",
    ),
    _contained("managers.schedule_batch.Req.update_finish_state", "update_finish_state"),
    _contained("managers.schedule_batch.Req.init_next_round_input", "init_next_round_input"),
    _wrapped(
        "managers.schedule_batch.ScheduleBatch.prepare_for_extend", "scheduling.prefill.prepare_for_extend",
        "a prefill batch that cannot be built gives back what it took", FAULTS,
    ),
    _contained("managers.schedule_policy.SchedulePolicy.calc_priority", "calc_priority"),
    _contained("managers.schedule_policy.PrefillAdder.add_one_req", "add_one_req"),
    _contained("managers.schedule_policy.PrefillAdder.add_chunked_req", "add_chunked_req"),
    _contained("managers.scheduler_components.logprob_result_processor.SchedulerLogprobResultProcessor"
        ".add_logprob_return_values", "logprobs"),
    _contained("managers.scheduler_components.logprob_result_processor.SchedulerLogprobResultProcessor"
        ".add_input_logprob_return_values", "logprobs"),
    _wrapped(
        "managers.scheduler_components.output_streamer._GenerationStreamAccumulator.accept",
        "scheduling.results.accept",
        "closes a finished request's trace; a request on which it fails ends alone", FAULTS,
    ),
    _wrapped(
        "managers.scheduler_components.profiler_manager.SchedulerProfilerManager._profile",
        "scheduling.profiling.profile", "what fails there would end the scheduler",
        f"{STARTUP}; `tests/server/test_routes.py`",
    ),
    _wrapped(
        "managers.scheduler_components.profiler_manager.SchedulerProfilerManager._profile_batch_predicate",
        "scheduling.profiling.in_a_step", "what fails there would end the scheduler",
    ),
    _used(
        "managers.scheduler_components.profiler_manager.SchedulerProfilerManager", "scheduling.profiling",
        "its `__post_init__` forgets a profile that failed", "`tests/server/test_routes.py`", "__post_init__",
    ),
    _subclassed(
        "managers.scheduler_components.output_streamer.SchedulerOutputStreamer", "scheduling.results.TrbOutputStreamer",
        "sends a finished request's trace with its last output", "answers carry `trb`: `tests/server/test_answers.py`",
        "build_additional_customized_info has_additional_customized_info stream_output",
    ),
    _used(
        "managers.schedule_batch.Req", "scheduling.prefill", "a request's state, marked and given back by us",
        "`tests/server/test_containment.py` counts KV slots after each fault",
        """finished finished_reason to_finish finished_len finished_output output_ids skip_radix_cache_insert
        sampling_params return_logprob is_retracted kv extend_range prefix_indices last_node lock_receipt
        inflight_middle_chunks extend_batch_idx cached_tokens cached_tokens_device cached_tokens_host
        cached_tokens_storage _cache_breakdown_computed already_computed extra_key""",
    ),
    _used(
        "managers.schedule_batch", "scheduling.scheduler", "batches and the ends of requests",
        "`tests/server/test_containment.py`",
        "FINISH_ABORT NextBatchPlan ScheduleBatch ScheduleBatch.batch_is_full ScheduleBatch.sampling_info",
    ),
    _used("managers.utils.GenerationBatchResult", "scheduling.results", "carries a step's statistics",
          "`Trace.finish` raises when tokens outnumber rows", "auxiliary_host_output copy_done"),
    _used("managers.schedule_policy.AddReqResult", "scheduling.wrapped", "says that a request was passed over",
          FAULTS, "CONTINUE"),
    _used("managers.schedule_policy.PrefillAdder", "scheduling.wrapped", "admits requests to a prefill batch", FAULTS,
          "can_run_list new_chunked_req tree_cache"),
    _used("mem_cache.base_prefix_cache", "scheduling.prefill", "a request's lock on its prefix", FAULTS,
          """DecLockRefParams BasePrefixCache.unpin BasePrefixCache.free_kv_row BasePrefixCache.is_chunk_cache"""),
    _used("managers.schedule_batch.ReqKvInfo", "scheduling.prefill", "the KV slots that a request holds", FAULTS,
          "holds_kv kv_allocated_len kv_committed_len cache_protected_len req_pool_idx"),
    _used("mem_cache.memory_pool.ReqToTokenPool", "scheduling.scheduler", "the KV slots of a request", FAULTS,
          "req_to_token"),
    _used("managers.scheduler_components.output_sender.SenderWrapper", "scheduling.scheduler",
          "answers a request that failed", FAULTS, "send_output"),
    _used("managers.scheduler_components.output_streamer._GenerationStreamAccumulator", "scheduling.results",
          "a message to the detokenizer, from which a failed request is taken out", FAULTS,
          "output_reqs customized_info"),
    _used("configs.model_config.ModelConfig", "scheduling.scheduler", "the ids that end an answer",
          "`tests/server/test_stop_ids.py`", "hf_eos_token_id hf_config model_path vocab_size context_len"),
    _used("mem_cache.common.release_kv_cache", "scheduling.prefill", "frees what a request holds", FAULTS),
)  # fmt: skip

_WORKER = (
    _subclassed(
        "managers.tp_worker.TpModelWorker", "worker.paired_worker.PairedWorker",
        "both models' forwards in a step; pools, attention backends and graphs of both; checks of tensors sent",
        "`take_teacher_logits` raises when a step brings no teacher logits",
        """__init__ _init_model_config _init_model_runner alloc_memory_pool init_attention_backends init_cuda_graphs
        forward_batch_generation deserialize_own_rank get_memory_pool weight_update_runners _model_runner
        draft_attention_backend gpu_id is_draft_worker memory_pool_config model_config model_runner nccl_port
        req_to_token_pool server_args token_to_kv_pool_allocator""",
    ),
    _subclassed(
        "model_executor.model_runner.ModelRunner", "worker.paired_worker.StudentRunner",
        "leaves the logits to the sampler; plans the KV pool for both models; checksums on a CPU", _IDENTITY,
        """_preprocess_logits check_weights init_attention_backends init_kv_cache_configurator sample forward device
        kv_cache_configurator memory_pool_config prefill_attention_backend_str decode_attention_backend_str
        attn_backend sampler weight_updater is_hybrid_swa use_mla_backend max_running_requests
        max_total_num_tokens tp_size""",
    ),
    _subclassed(
        "mem_cache.kv_cache_configurator.KVCacheConfigurator", "worker.paired_worker.PairKVConfigurator",
        f"{_SHARED_POOL}, and a token costs both models' bytes", "`/trb/info` shows the plan that was allocated",
        "config_from_budget _resolve_memory_pool_config",
    ),
    _used(
        "model_executor.pool_configurator", "worker.paired_worker", "the KV bytes of a token",
        "`/trb/info` shows the plan that was allocated",
        "MemoryPoolConfig DefaultPoolConfigurator DefaultPoolConfigurator._cell_size",
    ),
    _used("configs.hybrid_arch.mambaish_config", "worker.paired_worker", "tells recurrent layers, which are not paired",
          "`tests/unit/test_paired_worker.py`"),
    _used(
        "model_executor.forward_batch_info.ForwardBatch", "worker.paired_worker", "the teacher's view of a batch",
        _IDENTITY, "init_new return_logprob",
    ),
    _used(
        "model_executor.model_runner_components.weight_updater.WeightUpdater", "worker.weights",
        "writes the student's weights on a rank", "`tests/server/test_weights.py`, each of its routes",
        """update_weights_from_disk update_weights_from_tensor receive_weights_from_distributed
        load_weights_from_distributed init_weights_update_group _model_update_group tp_rank device""",
    ),
    _used(
        "layers.attention.flashinfer_backend", "worker.plan_fence",
        "plans on the host, in a buffer that the pair would overwrite", "`make gpu-check`, on a GPU",
        """FlashInferAttnBackend.init_forward_metadata FlashInferAttnBackend.init_forward_metadata_out_graph
        FlashInferIndicesUpdaterDecode.call_begin_forward""",
    ),
    _subclassed(
        "layers.sampler.Sampler", "worker.sampler.TrbSampler", "the place where tokens are drawn",
        f"SGLang's parser refuses the backend `trb` unless it is registered; {_IDENTITY}",
        "__init__ forward output_logprob_processor _sync_token_ids_across_tp",
    ),
    _used("layers.logprob_processor.OutputLogprobProcessor", "worker.sampler", "returned log-probabilities are log μ",
          _IDENTITY, "compute_logprobs"),
    _used("sampling.penaltylib.orchestrator.BatchedPenalizerOrchestrator", "worker.batch",
          "penalties are taken into the blend", _IDENTITY, "is_required"),
    _used("layers.sampler.register_sampler_backend", "plugin", "the place where tokens are drawn",
          "SGLang's parser refuses the backend `trb` unless it is registered"),
    _used(
        "layers.logits_processor.LogitsProcessorOutput", "worker.sampler", "statistics leave a step beside the logits",
        "`Trace.finish` raises when tokens outnumber rows", "auxiliary_device_output next_token_logits",
    ),
    _used("managers.auxiliary_output", "worker.sampler", "statistics reach the host without a wait",
          "`Trace.finish` raises when tokens outnumber rows",
          "CommittedTokens DeviceAuxiliaryOutput HostAuxiliaryOutput"),
    _used("utils.init_custom_process_group", "worker.weights", "joins the trainer's process group",
          "`tests/server/test_weights.py`"),
)  # fmt: skip

_MAIN_PROCESS = (
    _replaced(
        "managers.tokenizer_manager.TokenizerManager", "manager.tokenizer_manager.TrbTokenizerManager",
        "checks requests, gives them seeds, guards weight updates, writes the answers",
        """__init__ generate_request _validate_one_request _create_tokenized_object _send_one_request
        _send_batch_request abort_request update_request_meta_info _validate_and_resolve_lora update_weights_from_disk
        begin_weight_update end_weight_update update_weights_from_tensor update_weights_from_distributed
        update_weights_from_ipc init_weights_update_group auto_create_handle_loop dump_requests_before_crash
        sigterm_watchdog flush_cache _execute_profile asyncio_tasks event_loop signal_handler_class rid_to_state
        is_pause gracefully_exit context_len preferred_sampling_params last_receive_tstamp init_communicators
        config_value _handle_abort_req tokenizer""",
        f"{STARTUP}; `trace_of` refuses a request without a seed",
    ),
    _used("managers.tokenizer_manager", "manager.operation", "what the tokenizer manager keeps of a request",
          "`tests/server/test_answers.py`", "ReqState ReqState.dispatched print_exception_wrapper"),
    _subclassed(
        "managers.tokenizer_manager.SignalHandler", "manager.processes.TrbSignalHandler", "a server ends in time",
        "`tests/server/deaths.py`", "sigterm_handler running_phase_sigquit_handler tokenizer_manager",
    ),
    _replaced(
        "utils.watchdog.SubprocessWatchdog", "manager.processes.TrbWatchdog",
        "a server ends as soon as one of its processes dies",
        "start _monitor_loop _names _processes _stop_event", f"{STARTUP}; `tests/server/deaths.py`",
    ),
    _wrapped(
        "entrypoints.engine.Engine._launch_scheduler_processes", "manager.processes.launched_deaf",
        "a signal to the whole group stops the main process, which ends the others",
        f"{STARTUP}; `tests/server/deaths.py`",
    ),
    _wrapped(
        "entrypoints.engine.Engine._launch_detokenizer_subprocesses", "manager.processes.launched_deaf",
        "a signal to the whole group stops the main process, which ends the others",
        f"{STARTUP}; `tests/server/deaths.py`",
    ),
    _used(
        "managers.io_struct", "manager.tokenizer_manager", "the messages between the processes",
        "`tests/server/test_weights.py` and `tests/server/test_bad_input.py`",
        """AbortReq BeginWeightUpdateReqInput BeginWeightUpdateReqOutput CheckWeightsReqInput CheckWeightsReqOutput
        EndWeightUpdateReqInput EndWeightUpdateReqOutput FlushCacheReqOutput InitWeightsUpdateGroupReqInput
        InitWeightsUpdateGroupReqOutput ProfileReq ProfileReqOutput UpdateWeightFromDiskReqInput
        UpdateWeightFromDiskReqOutput UpdateWeightsFromDistributedReqInput UpdateWeightsFromDistributedReqOutput
        UpdateWeightsFromTensorReqInput UpdateWeightsFromTensorReqOutput""",
    ),
    _used("constants.HEALTH_CHECK_RID_PREFIX", "manager.tokenizer_manager", "tells a health probe from a request",
          "`tests/server/test_weights.py` probes a server during an update"),
)  # fmt: skip

_HTTP = (
    _point(
        "entrypoints.http_server._setup_and_run_http_server", How.PRECEDED, "http.app.add_routes",
        "our routes; each body is checked; who may call what",
        f"{STARTUP}; `tests/unit/test_routes.py` names each route",
    ),
    _used("entrypoints.http_server", "http.app", "the application and what it serves",
          "`tests/unit/test_routes.py`", "app get_global_state _GlobalState"),
    _replaced(
        "entrypoints.openai.serving_completions.OpenAIServingCompletion", "http.openai.TrbServingCompletion",
        "`choices[i].trb`", "_build_completion_response _generate_completion_stream",
    ),
    _replaced(
        "entrypoints.openai.serving_chat.OpenAIServingChat", "http.openai.TrbServingChat", "`choices[i].trb`",
        "_build_chat_response _generate_chat_stream _handle_non_streaming_request create_error_response",
    ),
    _subclassed(
        "entrypoints.openai.protocol.CompletionResponseChoice", "http.openai.TrbCompletionChoice", "`choices[i].trb`",
        "`tests/server/test_answers.py`", "_serialize",
    ),
    _subclassed("entrypoints.openai.protocol.CompletionResponse", "http.openai.TrbCompletionResponse",
                "`choices[i].trb`", "`tests/server/test_answers.py`", "choices"),
    _subclassed(
        "entrypoints.openai.protocol.ChatCompletionResponseChoice", "http.openai.TrbChatChoice", "`choices[i].trb`",
        "`tests/server/test_answers.py`", "_serialize",
    ),
    _subclassed("entrypoints.openai.protocol.ChatCompletionResponse", "http.openai.TrbChatResponse",
                "`choices[i].trb`", "`tests/server/test_answers.py`", "choices"),
    _replaced(
        "entrypoints.anthropic.serving.AnthropicServing", "http.anthropic.TrbAnthropicServing",
        "`custom_params` and `trb` of `/v1/messages`",
        "handle_messages _convert_to_chat_completion_request _convert_response _generate_anthropic_stream",
    ),
    _subclassed("entrypoints.anthropic.protocol.AnthropicMessagesRequest", "http.anthropic.TrbMessagesRequest",
                "`custom_params` of `/v1/messages`", "`tests/server/test_answers.py`"),
    _subclassed("entrypoints.anthropic.protocol.AnthropicMessagesResponse", "http.anthropic.TrbMessagesResponse",
                "`trb` of `/v1/messages`", "`tests/server/test_answers.py`"),
    _used("entrypoints.warmup.warmup", "http.app", "looks at the teacher before the first request",
          "`tests/server/test_info.py`"),
    _used("utils.auth", "http.routes", "who may call a route",
          "`tests/server/test_routes.py` asks every route for its key", "AuthLevel auth_level"),
    _wrapped("utils.auth.decide_request_auth", "http.keys.decide", "it cannot compare letters beyond ASCII",
             f"{STARTUP}; `tests/server/test_routes.py`"),
    _used("managers.io_struct.GenerateReqInput", "manager.tokenizer_manager", "the fields of a request", _FIELDS),
    _used("sampling.sampling_params.SamplingParams", "manager.tokenizer_manager", "the fields of a request", _FIELDS),
    _used(
        "entrypoints.openai.protocol", "http.request_routes", "the fields of OpenAI's bodies", _FIELDS,
        "CompletionRequest ChatCompletionRequest TokenizeRequest DetokenizeRequest",
    ),
)  # fmt: skip

_CONFIGURATION = (
    _wrapped("server_args.ServerArgs.resolve_once", "options.resolve_and_check",
             "a server that cannot blend does not start", f"{STARTUP}; `tests/server/test_refusals.py`"),
    _wrapped("server_args.ServerArgs.resolved_dict", "http.keys.hide_in_options", "keys are shown nowhere",
             f"{STARTUP}; `tests/server/test_routes.py`"),
    _wrapped("arg_groups.platform_hook.handle_cpu_backends", "options.keep_backends_on_cpu",
             "on a CPU it resolves every sampling backend to `pytorch`, and attention to sglang-kernel's",
             f"{STARTUP}; `options.check` reads the resolved options"),
    _used("server_args", "launcher", "SGLang's own reading of options", _OPTIONS,
          "ServerArgs ServerArgs.add_cli_args ServerArgs.launch_command prepare_server_args"),
    _used("arg_groups.overrides", "options", "options that are set for the pair", _OPTIONS,
          "declare_resolution resolving_view"),
    _used("environ", "options", "post-capture KV sizing would grow the student's pool alone", _OPTIONS,
          "envs Envs.SGLANG_ENABLE_POST_CAPTURE_KV_SIZING"),
    _used("arg_groups.fields.device.Device", "options", "options that a pair needs", _OPTIONS,
          "use_ray custom_sigquit_handler"),
    _used("arg_groups.fields.disagg.Disagg", "options", "options that a pair needs", _OPTIONS,
          "disaggregation_mode enable_pdmux encoder_only"),
    _used(
        "arg_groups.fields.exec_", "options", "options that a pair needs", _OPTIONS,
        """ExecFeatures ExecKernel ExecKernel.sampling_backend ExecKernel.grammar_backend ExecGraph ExecComm ExecMoe
        ExecOverlap ExecOffload ExecDllm ExecDeterministic""",
    ),
    _used("arg_groups.fields.lora.Lora", "options", "options that a pair needs", _OPTIONS, "enable_lora"),
    _used(
        "arg_groups.fields.memory.Memory", "options", "options that a pair needs", _OPTIONS,
        """enable_hierarchical_cache enable_lmcache enable_flexkv enable_unified_cache_external_linker enable_hisparse
        enable_unified_memory""",
    ),
    _used(
        "arg_groups.fields.model.Model", "options", "options that a pair needs", _OPTIONS,
        """weight_cache_mode startup_weight_load_mode decrypted_config_file decrypted_draft_config_file
        quantization_param_path json_model_override_args is_embedding download_dir context_length revision quantization
        load_format dtype""",
    ),
    _used("arg_groups.fields.observability.Observability", "options", "options that a pair needs", _OPTIONS,
          "crash_dump_folder enable_metrics tokenizer_metrics_allowed_custom_labels"),
    _used("arg_groups.fields.parallel.Parallel", "options", "options that a pair needs", _OPTIONS,
          "tp_size pp_size dcp_size enable_dp_attention"),
    _used("arg_groups.fields.schedule.Schedule", "options", "options that a pair needs", _OPTIONS,
          "max_total_tokens max_running_requests mem_fraction_static"),
    _used(
        "arg_groups.fields.serving.Serving", "options", "options that a pair needs", _OPTIONS,
        """sampling_defaults tokenizer_worker_num smg_grpc_mode grpc_port tokenizer_path warmups api_key admin_api_key
        ssl_keyfile_password weight_version""",
    ),
    _used(
        "arg_groups.fields.spec.Spec", "options", "the teacher is the draft model without an algorithm", _OPTIONS,
        """speculative_algorithm speculative_draft_model_path speculative_draft_model_revision
        speculative_draft_model_quantization speculative_draft_attention_backend speculative_draft_kv_cache_dtype
        speculative_draft_load_format speculative_draft_window_size speculative_draft_sink_size""",
    ),
    _used("runtime_context", "backend", "the configuration in force in a process",
          "every process reads it before it serves",
          """get_device get_exec get_model get_observability get_parallel get_schedule get_serving get_spec"""),
)  # fmt: skip

_LAUNCH = (
    _used("plugins", "launcher", "loads this plug-in", STARTUP, "load_plugins load_plugins_by_group"),
    _used("plugins.hook_registry", "hooks", "puts the hooks in place", STARTUP,
          "HookType HookRegistry HookRegistry.register HookRegistry.apply_hooks HookRegistry._apply_target _wrap_fn"),
    _used("utils.server_args_config_parser.ConfigArgumentMerger", "launcher", "reads `--config`", _OPTIONS,
          "__init__ merge_config_with_args"),
    _used("utils.kill_process_tree", "launcher", "ends SGLang's processes", "`tests/server/deaths.py`"),
    _used("entrypoints.engine.Engine", "launcher", "serves in this process, for `trb generate`",
          "`tests/unit/test_cli.py` starts one", "__init__ generate __enter__ __exit__ tokenizer_manager"),
    TouchPoint("launch_server.run_server", How.USED, "launcher", "SGLang's own launch", "every server test"),
)  # fmt: skip

_PLAIN_CPU = (
    _subclassed(
        "platforms.interface.SRTPlatform", "cpu.platform.PlainCpuPlatform", "serving without sglang-kernel",
        "every server test runs on it; `trb doctor` shows its entry point",
        """_enum get_default_attention_backend init_backend get_mha_kv_pool_cls get_paged_allocator_cls
        get_torch_profiler_activity get_torch_profiler_activity_str""",
    ),
    _subclassed(
        "layers.attention.torch_native_backend.TorchNativeAttnBackend", "cpu.attention.BatchedAttention",
        "a batch's requests together", "`tests/unit/test_cpu_attention.py` compares it with the base",
        """init_forward_metadata forward_extend forward_decode support_triton req_to_token_pool token_to_kv_pool
        use_sliding_window_kv_pool""",
    ),
    _used("layers.attention.attention_registry.register_attention_backend", "cpu.attention", "its name as an option",
          "every server test runs on it"),
    _used("layers.radix_attention", "cpu.attention", "what a layer is", "`tests/unit/test_cpu_attention.py`",
          "AttentionType AttentionType.ENCODER_ONLY RadixAttention"),
    _used("platforms.current_platform", "options", "whether this is that CPU", _OPTIONS),
    _used("server_args.add_attention_backend_choices", "plugin", "the backend's name as an option", _OPTIONS),
    _used("mem_cache.memory_pool.KVWriteLoc", "cpu.attention", "where new keys and values go",
          "`tests/unit/test_cpu_attention.py`"),
    _wrapped("utils.common.support_triton", "cpu.no_triton.support_triton", "no Triton kernel can be launched there",
             f"{STARTUP}; every server test runs on it"),
    _wrapped("mem_cache.allocation.get_last_loc", "cpu.no_triton.get_last_loc",
             "no Triton kernel can be launched there", f"{STARTUP}; `test_modes.py` serves with pages of 4"),
    _used("mem_cache.allocation.get_last_loc_torch", "cpu.no_triton", "the same in plain torch",
          "`test_modes.py` serves with pages of 4"),
    _used("runtime_context.attention_backends", "cpu.no_triton", "which backends a server has",
          "`test_modes.py` serves with pages of 4"),
    _used("platforms.cpu.CpuDeviceMixin", "cpu.platform", "SGLang's own CPU, without its kernels",
          "every server test runs on it", "_enum"),
    _used("platforms.device_mixin.PlatformEnum", "cpu.platform", "an out-of-tree platform",
          "every server test runs on it", "OOT"),
    _used("mem_cache.memory_pool.MHATokenToKVPool", "cpu.platform", "the KV pool", "every server test runs on it",
          "__init__ set_kv_buffer get_key_buffer get_value_buffer"),
    _subclassed(
        "mem_cache.allocator.PagedTokenToKVPoolAllocator", "cpu.allocator.TorchPagedAllocator",
        "Triton cannot launch there", "`tests/unit/test_cpu_platform.py` compares it with the base",
        "alloc_extend alloc_decode device free_pages merge_and_sort_free page_size",
    ),
    _used("mem_cache.allocator.alloc_extend_naive", "cpu.allocator", "the same in plain torch",
          "`tests/unit/test_cpu_platform.py`"),
    _used("utils.get_num_new_pages", "cpu.allocator", "counts pages", "`tests/unit/test_cpu_platform.py`"),
)  # fmt: skip

TOUCH_POINTS = (*_SCHEDULER, *_WORKER, *_MAIN_PROCESS, *_HTTP, *_CONFIGURATION, *_LAUNCH, *_PLAIN_CPU)

HOOKS = {point.target: point for point in TOUCH_POINTS if point.how in HOOKED}
"""What start-up puts in place, by its full name."""
