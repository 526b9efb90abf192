"""The main process's side of blending: checks requests, gives them seeds, guards weight updates, writes the answers."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from http import HTTPStatus
from typing import Any

from fastapi import HTTPException
from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX
from sglang.srt.managers import io_struct
from sglang.srt.managers.tokenizer_manager import ReqState
from sglang.srt.runtime_context import get_exec, get_observability

from sglang_trb.engine import metrics
from sglang_trb.engine.manager.operation import OperatedManager
from sglang_trb.engine.update_guard import BUSY, UNTOUCHED
from sglang_trb.engine.worker.paired_worker import served_pair
from sglang_trb.errors import InvalidParameter
from sglang_trb.pair.teacher_health import TeacherHealth
from sglang_trb.requests.field_types import MAX_BIAS
from sglang_trb.requests.fields import ServerFacts
from sglang_trb.requests.generate import GenerateFields, SamplingFields
from sglang_trb.wire.params import PREFIX, BlendParams
from sglang_trb.wire.seeds import sample_seed
from sglang_trb.wire.trace import FinishedTrace

DRAIN_SECONDS = 30.0
"""How long an update waits for the scheduler's last step to end, once no request is unanswered."""

NATIVE = ("/generate", "/vertex_generate")
"""Routes whose streams have begun, with status 200, before the request is looked at."""

_SAMPLE_INDEX = "trb_next_sample"
"""Key of the private counter that the copies of an n > 1 request share until each is sent."""


class RefusedInStream(ValueError):
    """What SGLang writes into a stream as its last event, with the code; another exception would cut it off."""

    def __init__(self, refusal: HTTPException) -> None:
        super().__init__(refusal.detail)
        self.status_code = refusal.status_code


class TrbTokenizerManager(OperatedManager):
    """SGLang's tokenizer manager; its additions sleep unless the server runs with ``--sampling-backend trb``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.blends:
            self.pair = served_pair()
            preferred = self.preferred_sampling_params or {}
            self.blend_default = BlendParams.from_wire(preferred.get("custom_params"))
            self.facts = ServerFacts(
                vocab_size=self.pair.vocab_size,
                context_length=self.context_len,
                masked_ids=frozenset(self.pair.alignment.masked_ids),
                canonical_id=self.pair.alignment.canonical_id,
                grammar_backend=get_exec().kernel.grammar_backend,
                metric_labels=frozenset(get_observability().tokenizer_metrics_allowed_custom_labels or ()),
                blend_default=self.blend_default,
            )
            SamplingFields.check(preferred, self.facts)
            self.teacher_health: TeacherHealth | None = None

    # Requests

    async def generate_request(self, obj: Any, request: Any = None) -> AsyncIterator[dict]:
        """As SGLang's, for checked requests; keeps each finished sample's ``trb`` object on ``obj`` for OpenAI routes.

        Raises:
            InvalidParameter (a ValueError: HTTP 400): names the field, what came and what is allowed.
            HTTPException: 503 while weights are being updated or after an update that failed half-way.
        """
        if self.blends:
            if not _is_probe(obj, request):
                self._check_request(obj)
            obj.trb_results = {}
        try:
            async with contextlib.aclosing(super().generate_request(obj, request)) as outputs:
                async for output in outputs:
                    if self.blends:
                        self._keep_results(obj, output)
                    yield output
        except HTTPException as error:
            if self.blends and obj.stream and request is not None and request.url.path in NATIVE:
                raise RefusedInStream(error) from None
            raise

    def _check_request(self, obj: Any) -> None:
        try:
            if not isinstance(obj, io_struct.GenerateReqInput):
                raise InvalidParameter("route", type(obj).__name__, "generation requests only on a blending server")
            # What still has SGLang's default passes: the check is of what the request says.
            given = {f.name: getattr(obj, f.name) for f in dataclasses.fields(obj) if _given(obj, f)}
            fields = GenerateFields.check(given, self.facts)
            if taken := [rid for rid in fields.request_ids() if rid in self.rid_to_state]:
                raise InvalidParameter("rid", taken[0], "the id of no request in flight")
        except InvalidParameter:
            metrics.observe_rejected("invalid")
            raise

    def _validate_one_request(self, obj: Any, input_ids: list[int]) -> None:
        super()._validate_one_request(obj, input_ids)
        if self.blends:
            if not input_ids:
                raise InvalidParameter("text", obj.text, "a prompt of at least one token")
            outside = max(input_ids) if max(input_ids) >= self.pair.vocab_size else min(input_ids)
            if not 0 <= outside < self.pair.vocab_size:
                raise InvalidParameter("input_ids", outside, f"ids from 0 to {self.pair.vocab_size - 1}")
            if obj.logprob_start_len > len(input_ids):
                raise InvalidParameter(
                    "logprob_start_len", obj.logprob_start_len, f"at most {len(input_ids)}, the prompt"
                )

    def _create_tokenized_object(self, obj: Any, *args: Any, **kwargs: Any) -> Any:
        tokenized = super()._create_tokenized_object(obj, *args, **kwargs)
        if self.blends:
            params = tokenized.sampling_params
            given = params.custom_params or {}
            others = {key: value for key, value in given.items() if not key.startswith(PREFIX)}
            blend = BlendParams.from_wire(obj.sampling_params.get("custom_params"), self.blend_default)
            params.custom_params = others | blend.to_wire() | {_SAMPLE_INDEX: 0}
            if params.logit_bias:
                params.logit_bias = {i: -math.inf if b <= -MAX_BIAS else b for i, b in params.logit_bias.items()}
            if params.sampling_seed is None:
                params.sampling_seed = secrets.randbits(63)
        return tokenized

    async def _send_one_request(self, tokenized_obj: Any) -> None:
        self._seal(tokenized_obj)
        await super()._send_one_request(tokenized_obj)

    async def _send_batch_request(self, tokenized_objs: list[Any]) -> None:
        for tokenized_obj in tokenized_objs:
            self._seal(tokenized_obj)
        await super()._send_batch_request(tokenized_objs)

    def _seal(self, tokenized: Any) -> None:
        """Give one sequence its own key: seed and sample index; n copies of a request arrive here one by one."""
        shared = getattr(getattr(tokenized, "sampling_params", None), "custom_params", None)
        if not self.blends or not shared or _SAMPLE_INDEX not in shared:
            return
        params = tokenized.sampling_params = copy.copy(tokenized.sampling_params)
        params.sampling_seed = sample_seed(params.sampling_seed, shared[_SAMPLE_INDEX])
        params.custom_params = {key: value for key, value in shared.items() if key != _SAMPLE_INDEX}
        if params.max_new_tokens != 0:  # SGLang first sends one such copy to cache the common prefix
            shared[_SAMPLE_INDEX] += 1

    def abort_request(self, rid: str = "", abort_all: bool = False) -> None:
        """SGLang's, for this id alone."""
        # SGLang's scheduler aborts every request whose id begins with this one: then it had better run to its end.
        if self.blends and not abort_all and any(i.startswith(rid) and i != rid for i in self.rid_to_state):
            return
        super().abort_request(rid, abort_all)

    # Answers

    def update_request_meta_info(
        self, meta_info: dict, state: ReqState, customized_info: dict, index: int, finish_reason: dict | None
    ) -> None:
        traces = customized_info.pop("trb", None)
        super().update_request_meta_info(meta_info, state, customized_info, index, finish_reason)
        if traces is not None:
            customized_info["trb"] = traces  # the batch's other requests read it too
            trace: FinishedTrace | None = traces[index]
            if trace is not None:
                meta_info["trb"] = trace.to_wire()

    @staticmethod
    def _keep_results(obj: Any, output: dict | list[dict]) -> None:
        for position, item in enumerate(_each(output)):
            trb = item["meta_info"].get("trb")
            if trb is not None:
                obj.trb_results[item.get("index", position)] = trb

    # Weight updates

    async def _validate_and_resolve_lora(self, obj: Any) -> None:
        # SGLang calls this first thing under the lock that weight updates take, so no request slips between the two.
        if self.blends and self.update_guard.refusal is not None:
            if isinstance(obj.rid, str) and obj.rid.startswith(HEALTH_CHECK_RID_PREFIX):
                # SGLang's probe waits for any sign of life, not for this answer; a probe must not end an update.
                if self.update_guard.updating:
                    self.last_receive_tstamp = time.time()
            else:
                metrics.observe_rejected("updating")
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, self.update_guard.refusal)
        await super()._validate_and_resolve_lora(obj)

    async def update_weights_from_disk(self, obj: Any, request: Any = None) -> tuple[bool, str, int]:
        """SGLang's, once nothing runs; the guard and the teacher's hash see the outcome."""
        if not self.blends:
            return await super().update_weights_from_disk(obj, request)
        obj.flush_cache = True
        result = await self._when_idle(lambda: super(TrbTokenizerManager, self).update_weights_from_disk(obj, request))
        self.looked_at_teacher(result[1])
        self.update_guard.replaced(*result[:2])
        return result

    async def begin_weight_update(self, obj: Any, request: Any = None) -> tuple[bool, str]:
        """SGLang's, once nothing runs; requests are refused until the end."""
        if not self.blends:
            return await super().begin_weight_update(obj, request)
        result = await self._when_idle(lambda: super(TrbTokenizerManager, self).begin_weight_update(obj, request))
        if result[0]:
            self.update_guard.begun()
        return result

    async def end_weight_update(self, obj: Any, request: Any = None) -> tuple[bool, str]:
        """SGLang's; requests are taken again if it went well."""
        result = await super().end_weight_update(obj, request)
        if self.blends:
            self.looked_at_teacher(result[1])
            if result[0]:
                self.update_guard.ended()
        return result

    async def abandon_weight_update(self) -> tuple[bool, str]:
        """Close the session of a writer that is gone; the student is half-way if a part of it was written."""
        result = await super().end_weight_update(io_struct.EndWeightUpdateReqInput())
        self.looked_at_teacher(result[1])
        if result[0]:
            self.update_guard.abandoned()
        return result

    async def update_weights_from_tensor(self, obj: Any, request: Any = None) -> tuple[bool, str]:
        """SGLang's; a part of an update."""
        return await self._session_write(super().update_weights_from_tensor(obj, request), obj)

    async def update_weights_from_distributed(self, obj: Any, request: Any = None) -> tuple[bool, str]:
        """SGLang's; a part of an update."""
        return await self._session_write(super().update_weights_from_distributed(obj, request), obj)

    async def update_weights_from_ipc(self, obj: Any, request: Any = None) -> tuple[bool, str]:
        if self.blends:
            return False, f"{UNTOUCHED}a blending server has no IPC route; use disk, tensor or distributed"
        return await super().update_weights_from_ipc(obj, request)

    async def _session_write(self, write: Awaitable[tuple[bool, str]], obj: Any) -> tuple[bool, str]:
        if self.blends:
            obj.flush_cache = True
        result = await write
        if self.blends:
            self.update_guard.wrote(*result)
        return result

    async def _when_idle(self, update: Callable[[], Awaitable[tuple]]) -> tuple:
        """Run an update that the scheduler begins only when idle.

        SGLang's own lock drains the requests in flight first, unless generation is paused with some of them held
        back. The scheduler may need one more step after the last answer has left, so BUSY is asked again.

        Raises:
            HTTPException: 409 when requests are held back, or the scheduler stays busy for DRAIN_SECONDS.
        """
        deadline = asyncio.get_running_loop().time() + DRAIN_SECONDS
        while True:
            if self.is_pause and any(state.dispatched for state in self.rid_to_state.values()):
                raise HTTPException(HTTPStatus.CONFLICT, f"{UNTOUCHED}generation is paused and {BUSY}")
            result = await update()
            if result[0] or not result[1].startswith(BUSY):
                return result
            if asyncio.get_running_loop().time() > deadline:
                raise HTTPException(HTTPStatus.CONFLICT, f"{UNTOUCHED}{BUSY} for {DRAIN_SECONDS:.0f} s")
            await asyncio.sleep(0.02)


def _given(obj: Any, field: dataclasses.Field) -> bool:
    value = getattr(obj, field.name)
    return value is not field.default and not (type(value) is type(field.default) and value == field.default)


def _is_probe(obj: Any, request: Any) -> bool:
    """Whether this is SGLang's own health probe, whose id no client may use."""
    return request is not None and request.url.path in ("/health", "/health_generate")


def _each(value: Any) -> Iterator[Any]:
    """The items of a list, or the value alone; nothing for None."""
    if value is not None:
        yield from value if isinstance(value, list) else [value]
