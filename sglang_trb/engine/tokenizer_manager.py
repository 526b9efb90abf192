"""The main process's side of blending: checks requests, gives them seeds, guards weight updates, writes the answers."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from http import HTTPStatus
from typing import Any

from fastapi import HTTPException
from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX
from sglang.srt.managers import io_struct
from sglang.srt.managers.tokenizer_manager import ReqState, TokenizerManager
from sglang.srt.runtime_context import get_exec

from sglang_trb.engine import metrics, plugin
from sglang_trb.engine.pair import Pair
from sglang_trb.engine.update_guard import BUSY, UNTOUCHED, UpdateGuard
from sglang_trb.errors import InvalidParameter
from sglang_trb.params import PREFIX, BlendParams
from sglang_trb.seeds import sample_seed
from sglang_trb.trace import FinishedTrace

MAX_SAMPLES = 1024
"""Largest n of one request."""

DRAIN_SECONDS = 30.0
"""How long an update waits for the scheduler's last step to end, once no request is unanswered."""

_SAMPLE_INDEX = "trb_next_sample"
"""Key of the private counter that the copies of an n > 1 request share until each is sent."""

_UNSUPPORTED_FIELDS = {
    "input_embeds": "embeddings are the student's, the teacher has its own: send text or input_ids",
    "positional_embed_overrides": "embeddings are the student's, the teacher has its own",
    "image_data": "the pair is text-only",
    "video_data": "the pair is text-only",
    "audio_data": "the pair is text-only",
    "lora_path": "adapters are not supported on a blending server",
    "custom_logit_processor": "it would change the law after the budget was checked, and it unpickles code",
    "return_sampling_mask": "use custom_params.trb_return",
}
"""Request fields that a blending server refuses, and why."""


class TrbTokenizerManager(TokenizerManager):
    """SGLang's tokenizer manager; its additions sleep unless the server runs with ``--sampling-backend trb``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.blends = get_exec().kernel.sampling_backend == plugin.BACKEND
        if self.blends:
            plugin.require_in_force()
            self.pair = Pair.configured()
            self.blend_default = BlendParams.from_wire((self.preferred_sampling_params or {}).get("custom_params"))
            self.update_guard = UpdateGuard()

    # Requests

    async def generate_request(self, obj: Any, request: Any = None) -> AsyncIterator[dict]:
        """As SGLang's, for checked requests; keeps each finished sample's ``trb`` object on ``obj`` for OpenAI routes.

        Raises:
            InvalidParameter (a ValueError: HTTP 400): names the field, what came and what is allowed.
            HTTPException: 503 while weights are being updated or after an update that failed half-way.
        """
        if self.blends:
            self._check_request(obj)
            obj.trb_results = {}
        async with contextlib.aclosing(super().generate_request(obj, request)) as outputs:
            async for output in outputs:
                if self.blends:
                    self._keep_results(obj, output)
                yield output

    def _check_request(self, obj: Any) -> None:
        try:
            if not isinstance(obj, io_struct.GenerateReqInput):
                raise InvalidParameter("route", type(obj).__name__, "generation requests only on a blending server")
            for field, reason in _UNSUPPORTED_FIELDS.items():
                if getattr(obj, field, None):
                    raise InvalidParameter(field, "a value", f"nothing: {reason}")
            for sampling_params in _each(obj.sampling_params):
                self._check_sampling_params(sampling_params)
        except InvalidParameter:
            metrics.observe_rejected("invalid")
            raise

    def _check_sampling_params(self, sampling_params: dict[str, Any]) -> None:
        if not isinstance(sampling_params, dict):
            raise InvalidParameter("sampling_params", sampling_params, "an object")
        BlendParams.from_wire(sampling_params.get("custom_params"), self.blend_default)
        n = sampling_params.get("n")
        if n is not None and (type(n) is not int or not 1 <= n <= MAX_SAMPLES):
            raise InvalidParameter("n", n, f"an integer from 1 to {MAX_SAMPLES}")
        if sampling_params.get("beam_width") is not None:
            raise InvalidParameter("beam_width", sampling_params["beam_width"], "nothing: beams are not drawn from mu")
        masked = set(self.pair.alignment.masked_ids)
        hidden = sorted(masked & {i for i in sampling_params.get("stop_token_ids") or () if type(i) is int})
        if hidden:
            raise InvalidParameter(
                "stop_token_ids",
                hidden,
                f"ids that can be drawn: alignment maps {sorted(masked)} to {self.pair.alignment.canonical_id}",
            )

    def _validate_one_request(self, obj: Any, input_ids: list[int]) -> None:
        super()._validate_one_request(obj, input_ids)
        if self.blends and input_ids:
            outside = max(input_ids) if max(input_ids) >= self.pair.vocab_size else min(input_ids)
            if not 0 <= outside < self.pair.vocab_size:
                raise InvalidParameter("input_ids", outside, f"ids from 0 to {self.pair.vocab_size - 1}")

    def _create_tokenized_object(self, obj: Any, *args: Any, **kwargs: Any) -> Any:
        tokenized = super()._create_tokenized_object(obj, *args, **kwargs)
        if self.blends:
            params = tokenized.sampling_params
            given = params.custom_params or {}
            others = {key: value for key, value in given.items() if not key.startswith(PREFIX)}
            blend = BlendParams.from_wire(obj.sampling_params.get("custom_params"), self.blend_default)
            params.custom_params = others | blend.to_wire() | {_SAMPLE_INDEX: 0}
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
        if not self.blends:
            return await super().update_weights_from_disk(obj, request)
        obj.flush_cache = True
        result = await self._when_idle(lambda: super(TrbTokenizerManager, self).update_weights_from_disk(obj, request))
        self.update_guard.replaced(*result[:2])
        return result

    async def begin_weight_update(self, obj: Any, request: Any = None) -> tuple[bool, str]:
        if not self.blends:
            return await super().begin_weight_update(obj, request)
        result = await self._when_idle(lambda: super(TrbTokenizerManager, self).begin_weight_update(obj, request))
        if result[0]:
            self.update_guard.begun()
        return result

    async def end_weight_update(self, obj: Any, request: Any = None) -> tuple[bool, str]:
        result = await super().end_weight_update(obj, request)
        if self.blends and result[0]:
            self.update_guard.ended()
        return result

    async def abandon_weight_update(self) -> tuple[bool, str]:
        """Close the session of a writer that is gone; the student is half-way if a part of it was written."""
        result = await super().end_weight_update(io_struct.EndWeightUpdateReqInput())
        if result[0]:
            self.update_guard.abandoned()
        return result

    async def update_weights_from_tensor(self, obj: Any, request: Any = None) -> tuple[bool, str]:
        return await self._session_write(super().update_weights_from_tensor(obj, request), obj)

    async def update_weights_from_distributed(self, obj: Any, request: Any = None) -> tuple[bool, str]:
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


def _each(value: Any) -> Iterator[Any]:
    """The items of a list, or the value alone; nothing for None."""
    if value is not None:
        yield from value if isinstance(value, list) else [value]
