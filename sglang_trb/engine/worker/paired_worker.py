"""Student and teacher in one worker: the teacher runs in lockstep on every batch, in the same slots of its own KV.

The scheduler sees one ordinary worker. It drafts nothing, so everything that works for plain decoding keeps working:
overlap scheduling, the radix cache, chunked and mixed prefill, retraction, paging, tensor parallelism. Weight updates
reach the student only: `weight_update_runners` is the base's, and there is no draft worker.

In SGLang's configuration the teacher is the draft model (``--speculative-draft-model-path``) without an algorithm.

Legend: _B requests of the batch, _V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.configs.hybrid_arch import mambaish_config
from sglang.srt.managers.tp_worker import TpModelWorker
from sglang.srt.mem_cache.kv_cache_configurator import KVCacheConfigurator
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.model_executor.pool_configurator import DefaultPoolConfigurator, MemoryPoolConfig
from sglang.srt.runtime_context import get_model, get_schedule, get_spec

from sglang_trb.checkpoints.folder import read_json
from sglang_trb.checkpoints.model_tensors import check_tensors
from sglang_trb.engine.worker.plan_fence import fence_plans
from sglang_trb.engine.worker.seal import Seal
from sglang_trb.errors import InvalidParameter, PairMismatch
from sglang_trb.footprint import step_bytes
from sglang_trb.pair.pair import Pair

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.managers.utils import GenerationBatchResult


def served_pair() -> Pair:
    """The pair of this server, once SGLang has published its configuration to the process."""
    return Pair.load(get_model().model_path, get_spec().speculative_draft_model_path)


class PairKVConfigurator(KVCacheConfigurator):
    """Sizes the KV pools of both models: as many slots as fit when a token costs both models' bytes.

    Exactly one of the two is set after construction: ``teacher_bytes_per_token`` on the student's configurator,
    ``student_config`` on the teacher's.
    """

    teacher_bytes_per_token = 0
    student_config: MemoryPoolConfig | None = None

    @classmethod
    def like(cls, base: KVCacheConfigurator) -> PairKVConfigurator:
        """One with the fields of SGLang's."""
        values = {field.name: getattr(base, field.name) for field in dataclasses.fields(base) if field.init}
        return cls(**values)

    def bytes_per_token(self) -> int:
        """KV bytes of one token of this configurator's model on this rank."""
        return DefaultPoolConfigurator(self)._cell_size

    def config_from_budget(self, budget_bytes: int, *, cap_tokens: int | None = None) -> MemoryPoolConfig:
        own = self.bytes_per_token()
        share = budget_bytes * own // (own + self.teacher_bytes_per_token)
        return super().config_from_budget(share, cap_tokens=cap_tokens)

    def _resolve_memory_pool_config(self, pre_model_load_memory: int) -> MemoryPoolConfig:
        # SGLang hands a draft runner the target's sizes only under a speculative algorithm.
        return self.student_config or super()._resolve_memory_pool_config(pre_model_load_memory)


class _PairRunner(ModelRunner):
    """What both runners share."""

    def init_attention_backends(self) -> None:
        super().init_attention_backends()
        fence_plans(self)

    def init_kv_cache_configurator(self) -> None:
        super().init_kv_cache_configurator()
        self.kv_cache_configurator = PairKVConfigurator.like(self.kv_cache_configurator)

    def check_weights(self, *args, **kwargs) -> dict | None:
        """SGLang's checksums wait for CUDA unconditionally; on a CPU there is nothing to wait for."""
        if self.device != "cpu":
            return super().check_weights(*args, **kwargs)
        synchronize, torch.cuda.synchronize = torch.cuda.synchronize, lambda *_: None
        try:
            return super().check_weights(*args, **kwargs)
        finally:
            torch.cuda.synchronize = synchronize


class StudentRunner(_PairRunner):
    """The student's runner: leaves the logits to `TrbSampler` and plans the KV pool for both models."""

    teacher_bytes_per_token = 0

    def init_kv_cache_configurator(self) -> None:
        """Sizes the pool for both models' bytes."""
        super().init_kv_cache_configurator()
        self.kv_cache_configurator.teacher_bytes_per_token = self.teacher_bytes_per_token

    def _preprocess_logits(self, logits_output, sampling_info, observer=None):
        """Only advance the grammar mask: the sampler needs the rows before and after penalties, masks and biases."""
        sampling_info.update_regex_vocab_mask()


class TeacherRunner(_PairRunner):
    """The teacher's runner: a KV pool with exactly the student's slots."""

    def init_kv_cache_configurator(self) -> None:
        """Sizes the pool as the student's."""
        super().init_kv_cache_configurator()
        self.kv_cache_configurator.student_config = self.memory_pool_config


class _RunnerWorker(TpModelWorker):
    """A worker with a model runner of our own class."""

    runner_class: type[ModelRunner]

    def _init_model_runner(self) -> None:
        self._model_runner = self.runner_class(
            model_config=self.model_config,
            mem_fraction_static=get_schedule().mem_fraction_static,
            gpu_id=self.gpu_id,
            nccl_port=self.nccl_port,
            server_args=self.server_args,
            is_draft_worker=self.is_draft_worker,
            req_to_token_pool=self.req_to_token_pool,
            token_to_kv_pool_allocator=self.token_to_kv_pool_allocator,
            memory_pool_config=self.memory_pool_config,
            draft_attention_backend=self.draft_attention_backend,
        )


class TeacherWorker(_RunnerWorker):
    """Runs the teacher on the student's batches."""

    runner_class = TeacherRunner

    def _init_model_config(self) -> None:
        super()._init_model_config()
        config = self.model_config
        own = (read_json(config.model_path, "config.json") or {}).get("architectures")
        if own and own != config.hf_config.architectures:
            raise PairMismatch(
                f"the teacher is a {own[0]}, which SGLang takes for its {config.hf_config.architectures[0]} when it is "
                "loaded as a draft model; sglang-trb does not pair it"
            )

    def logits(self, batch: ScheduleBatch) -> torch.Tensor:
        """Extend the teacher's KV cache by the batch's tokens and return its next-token logits [B, V]."""
        forward_batch = ForwardBatch.init_new(batch, self.model_runner, return_hidden_states_before_norm=False)
        forward_batch.return_logprob = False
        output = self.model_runner.forward(forward_batch)
        logits_BV = output.logits_output.next_token_logits
        # Graph runners of one process share a logits buffer (GraphSharedOutput): the student's forward writes it next.
        return logits_BV if logits_BV.device.type == "cpu" else logits_BV.clone()


class PairedWorker(_RunnerWorker):
    """The student's worker, which runs the teacher first and hands its logits to the sampler."""

    runner_class = StudentRunner

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.pair = served_pair()
        self.model_runner.sampler.pair = self.pair
        self.teacher = TeacherWorker(**kwargs, is_draft_worker=True, context_length=self.model_config.context_len)
        for name, runner in (("student", self.model_runner), ("teacher", self.teacher.model_runner)):
            _require_plain_attention(name, runner)
        self.teacher_seal = Seal(self.teacher.model_runner.model)

    def alloc_memory_pool(self, *args, **kwargs) -> None:
        teacher = self.teacher.model_runner
        teacher.init_kv_cache_configurator()
        self.model_runner.teacher_bytes_per_token = teacher.kv_cache_configurator.bytes_per_token()
        super().alloc_memory_pool(*args, **kwargs)
        slots, allocator = self.get_memory_pool()
        self.teacher.alloc_memory_pool(self.model_runner.memory_pool_config, slots, allocator)

    def init_attention_backends(self) -> None:
        super().init_attention_backends()
        self.teacher.init_attention_backends()

    def init_cuda_graphs(self, capture_decode_cuda_graph: bool = True) -> None:
        super().init_cuda_graphs(capture_decode_cuda_graph)
        self.teacher.init_cuda_graphs(capture_decode_cuda_graph)

    def forward_batch_generation(self, batch: ScheduleBatch, *args, **kwargs) -> GenerationBatchResult:
        """One step of both models, or of the student where the teacher has a part in no request of the batch.

        The teacher runs on every extend of a request in which it has a part, and such a request finds no prefix of
        another (`prefix_namespace`), so that no prefix is ever without its KV.
        """
        if batch.sampling_info.blend.needs_teacher():
            batch.sampling_info.teacher_logits_BV = self.teacher.logits(batch)
        return super().forward_batch_generation(batch, *args, **kwargs)

    def deserialize_own_rank(self, serialized_named_tensors: list) -> Any:
        """Read the tensor route's payload, and refuse it before it is loaded if it is not the student's."""
        count, ranks = len(serialized_named_tensors), self.model_runner.tp_size
        if count != ranks:
            raise InvalidParameter("serialized_named_tensors", f"{count} payloads", f"{ranks}, one for each rank")
        try:
            payload = super().deserialize_own_rank(serialized_named_tensors)
        except Exception as error:  # unpickling raises what it likes
            cause = f"{type(error).__name__}: {error}"
            raise InvalidParameter(
                "serialized_named_tensors", cause, "tensors serialised by SGLang's own means"
            ) from error
        if isinstance(payload, dict):  # load_format flattened_bucket
            described = [(meta.name, meta.shape) for meta in payload["metadata"]]
        else:
            described = [(name, tensor.shape) for name, tensor in payload if isinstance(tensor, torch.Tensor)]
        if problem := check_tensors(described, self.pair.student):
            raise InvalidParameter("serialized_named_tensors", problem, "tensors of the served student")
        return payload

    def memory_plan(self) -> dict[str, int]:
        """Eq. 4-6 as allocated on this rank: bytes of weights, and of a single one, KV bytes per token, and
        the tokens that fit; and the most that a step of the blend takes beside them."""
        runners = {"student": self.model_runner, "teacher": self.teacher.model_runner}
        plan = {}
        for name, runner in runners.items():
            plan[f"{name}_weight_bytes"] = sum(p.numel() * p.element_size() for p in runner.model.parameters())
            plan[f"{name}_element_bytes"] = max(p.element_size() for p in runner.model.parameters())
            plan[f"{name}_kv_bytes_per_token"] = runner.kv_cache_configurator.bytes_per_token()
        vocab = max(runner.model_config.vocab_size for runner in runners.values())
        step = step_bytes(self.model_runner.max_running_requests, vocab, torch.device(self.model_runner.device).type)
        return plan | {"max_total_tokens": self.model_runner.max_total_num_tokens, "step_bytes": step}


def _require_plain_attention(name: str, runner: ModelRunner) -> None:
    """Both pools are indexed by one allocator, which fits models with one KV row per token and layer."""
    unsupported = {
        "sliding-window attention": runner.is_hybrid_swa,
        "multi-head latent attention": runner.use_mla_backend,
        "recurrent (Mamba-like) layers": mambaish_config(runner.model_config) is not None,
    }
    for feature, present in unsupported.items():
        if present:
            raise PairMismatch(f"the {name} uses {feature}, which sglang-trb does not pair; plain attention is needed")
