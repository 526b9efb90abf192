"""The main process of a blending server as its operator sees it: watches the teacher, stops in time, waits for nobody.

What requests and weight updates need is in `tokenizer_manager.TrbTokenizerManager`, which builds on this.
"""

from __future__ import annotations

import asyncio
import signal
from http import HTTPStatus
from typing import Any

from fastapi import HTTPException
from sglang.srt.managers import io_struct
from sglang.srt.managers.tokenizer_manager import TokenizerManager, print_exception_wrapper

from sglang_trb.engine import hooks
from sglang_trb.engine.backend import blends
from sglang_trb.engine.joining import unreachable
from sglang_trb.engine.manager import processes
from sglang_trb.engine.update_guard import UNTOUCHED, UpdateGuard
from sglang_trb.engine.worker.weights import WATCH

WATCH_SECONDS = 10.0
"""From one look at a part of the teacher to the next."""

FLUSH_SECONDS = 60.0
"""How long a flush of the cache may wait for running requests: others wait behind it."""


class OperatedManager(TokenizerManager):
    """SGLang's tokenizer manager, unless the server runs with ``--sampling-backend trb``.

    Attributes:
        blends: it does.
        update_guard: whether requests may be answered; only when it blends.
        owns_process: it is the HTTP server's, and Ctrl-C is meant for it.
    """

    owns_process = False
    _watch: asyncio.Task | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.blends = blends()
        if self.blends:
            hooks.require_in_force()
            self.update_guard = UpdateGuard()
            self.signal_handler_class = processes.TrbSignalHandler

    def auto_create_handle_loop(self) -> None:
        """As SGLang's: called before each operation, it starts the background tasks once."""
        super().auto_create_handle_loop()
        if self.blends and self._watch is None:
            self._watch = self.event_loop.create_task(print_exception_wrapper(self._watch_teacher))
            self.asyncio_tasks.add(self._watch)
            if self.owns_process:  # Ctrl-C stops as SIGTERM does; uvicorn would wait for every request
                self.event_loop.add_signal_handler(signal.SIGINT, self.signal_handler_class(self).sigterm_handler)

    async def _watch_teacher(self) -> None:
        """Compare the teacher piece by piece with what was loaded; a change ends generation for good."""
        while self.update_guard.teacher_is_whole:
            await asyncio.sleep(WATCH_SECONDS)
            if self.update_guard.refusal is None:  # on a refusing server any answer would make a probe succeed
                request = io_struct.CheckWeightsReqInput(action=WATCH)
                for answer in await self.check_weights_communicator(request):
                    self.looked_at_teacher(answer.message)

    def looked_at_teacher(self, message: str) -> None:
        """An answer of the scheduler, which may have compared the teacher: a change ends all requests."""
        if self.update_guard.looked_at_teacher(message):
            self.abort_request(abort_all=True)

    def dump_requests_before_crash(self, *args: Any, **kwargs: Any) -> None:
        """SGLang's waits a minute for a core dump of the GPU, with its default options, while clients hang."""
        if not self.blends:
            super().dump_requests_before_crash(*args, **kwargs)

    async def sigterm_watchdog(self) -> None:
        """SGLang's, which waits for running requests; here for a bounded time."""
        if self.blends:
            await processes.drain(self)
        await super().sigterm_watchdog()

    async def flush_cache(self, timeout_s: float | None = None) -> io_struct.FlushCacheReqOutput:
        """SGLang's, refused where it cannot be served."""
        bounded = min(timeout_s, FLUSH_SECONDS) if self.blends and timeout_s else timeout_s
        return await super().flush_cache(bounded)

    async def _execute_profile(self, req: io_struct.ProfileReq) -> io_struct.ProfileReqOutput:
        try:
            return await super()._execute_profile(req)
        except RuntimeError as error:  # what the scheduler says; as an exception it would be answered 500
            if not self.blends:
                raise
            raise HTTPException(HTTPStatus.BAD_REQUEST, str(error)) from None

    async def init_weights_update_group(self, obj: Any, request: Any = None) -> tuple[bool, str]:
        """SGLang's, bounded in time: a peer that never comes holds up nobody."""
        if self.blends and (problem := await unreachable(obj.master_address, obj.master_port)):
            return False, UNTOUCHED + problem
        return await super().init_weights_update_group(obj, request)
