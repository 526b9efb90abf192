"""Draws the rollouts of one step from all servers, each rollout once, whatever fails meanwhile.

What is drawn depends on the requests alone: neither which server answers, nor when, nor how often it was asked.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

from trainer.errors import TrainerError
from trainer.rollouts.client import Faulty, Refused, TookTooLong, TrbClient, Unreachable
from trainer.rollouts.journal import StepJournal
from trainer.rollouts.rollout import Refusal, Rollout, RolloutKey, RolloutRequest, UntrustedRollout, parse_rollout
from trainer.rollouts.servers import ServerPool, ServersGone


class CollectionFailed(TrainerError, RuntimeError):
    """A step's rollouts could not be collected; those that were are in the journal."""


class Collector:
    """Collects steps.

    Args:
        pool: the servers.
        max_in_flight: requests under way at one server.
        request_timeout_s: a request that takes longer is cancelled, its partial response dropped, the rollout queued
            again: a straggler never becomes a short or zero-reward row.
        max_attempts: how often one rollout may time out or come back unusable, before it counts as refused.
        on_progress: called with (finished, wanted, generated tokens) after each.
    """

    def __init__(
        self,
        pool: ServerPool,
        *,
        max_in_flight: int,
        request_timeout_s: float,
        max_attempts: int,
        on_progress: Callable[[int, int, int], None] = lambda done, wanted, tokens: None,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.pool = pool
        self._max_in_flight, self._timeout_s, self._max_attempts = max_in_flight, request_timeout_s, max_attempts
        self._on_progress, self._note = on_progress, note

    async def collect(self, requests: Sequence[RolloutRequest], journal: StepJournal, max_refused_share: float) -> None:
        """Draw what the journal lacks, journal it as it comes.

        Args:
            requests: what is wanted.
            journal: open.
            max_refused_share: of the requests that may be refused. Those of one prompt always may: no single problem
                ends a run.

        Raises:
            CollectionFailed: more were refused; names one and the reason.
            OtherPolicy: a server draws from another policy than it was asked for.
            ServersGone: no server is left.
            OSError: the journal cannot be written.
        """
        step = _Step(requests, journal, max_refused_share, self._on_progress)
        if step.queue.empty():
            return
        await self._forget_prefixes()
        workers = [
            asyncio.create_task(self._work(client, step))
            for client in self.pool.clients
            for _ in range(min(self._max_in_flight, step.queue.qsize()))
        ]
        finished = asyncio.create_task(step.complete.wait())
        try:
            await self._until_complete(workers, finished)
        finally:
            for task in (*workers, finished):
                task.cancel()
            await asyncio.gather(*workers, finished, return_exceptions=True)
            if not step.complete.is_set():
                journal.forget_refusals()  # what made a server refuse may be mended before the next try

    async def _forget_prefixes(self) -> None:
        """Start every collection alike: a cached prefix was computed in another batch and differs in its last bits."""
        for client in self.pool.clients:
            if self.pool.is_ready(client):
                try:
                    await client.flush_cache()
                except (Unreachable, TookTooLong, Faulty) as error:
                    self.pool.lost(client, str(error))

    async def _until_complete(self, workers: list[asyncio.Task], finished: asyncio.Task) -> None:
        """Raises what a worker raised, but puts up with lost servers while others are at work."""
        pending = {*workers, finished}
        while not finished.done():
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            failures = [task.exception() for task in done if task is not finished]
            for failure in failures:
                if failure is not None and not (isinstance(failure, ServersGone) and len(pending) > 1):
                    raise failure

    async def _work(self, client: TrbClient, step: _Step) -> None:
        while True:
            await self.pool.ready(client)
            request = await step.queue.get()
            try:
                entry = await self._draw(client, request)
            except Unreachable as error:
                self.pool.lost(client, str(error))
                step.queue.put_nowait(request)
            except TookTooLong as error:
                self._count_failure(step, request, error)
            except (Faulty, UntrustedRollout) as error:
                # Whatever made it answer so, it must prove its weights before it is asked again.
                self.pool.lost(client, f"{client.url}: {error}")
                self._count_failure(step, request, error)
            else:
                step.finish(entry)

    async def _draw(self, client: TrbClient, request: RolloutRequest) -> Rollout | Refusal:
        try:
            answer = await client.generate(request.body(), self._timeout_s)
        except Refused as error:
            return Refusal(request.key, str(error))
        return parse_rollout(request, answer)

    def _count_failure(self, step: _Step, request: RolloutRequest, error: Exception) -> None:
        step.failures[request.key] += 1
        count = step.failures[request.key]
        self._note(f"rollout {request.key} failed ({count} of {self._max_attempts}): {error}")
        if count < self._max_attempts:
            step.queue.put_nowait(request)
        else:
            step.finish(Refusal(request.key, f"failed {count} times, the last time: {error}"))


class _Step:
    """What is still to be drawn, and what failed how often."""

    def __init__(
        self,
        requests: Sequence[RolloutRequest],
        journal: StepJournal,
        max_refused_share: float,
        on_progress: Callable[[int, int, int], None],
    ) -> None:
        self.journal, self.wanted = journal, len(requests)
        self.queue: asyncio.Queue[RolloutRequest] = asyncio.Queue()
        for request in requests:
            if request.key not in journal.entries:
                self.queue.put_nowait(request)
        self.failures: Counter[RolloutKey] = Counter()
        self.complete = asyncio.Event()
        self._missing = self.queue.qsize()
        self._max_refused_share, self._on_progress = max_refused_share, on_progress
        self._tokens = sum(len(entry) for entry in journal.entries.values() if isinstance(entry, Rollout))

    def finish(self, entry: Rollout | Refusal) -> None:
        """Keep it, and see whether that was all.

        Raises:
            CollectionFailed: too many were refused.
        """
        self.journal.append(entry)
        self._missing -= 1
        self._tokens += len(entry) if isinstance(entry, Rollout) else 0
        self._on_progress(self.wanted - self._missing, self.wanted, self._tokens)
        if isinstance(entry, Refusal):
            self._check_refusals(entry)
        if self._missing == 0:
            self.complete.set()

    def _check_refusals(self, last: Refusal) -> None:
        refused = [refusal.key.prompt for refusal in self.journal.refusals()]
        if len(refused) > self._max_refused_share * self.wanted and len(set(refused)) > 1:
            raise CollectionFailed(
                f"{len(refused)} of {self.wanted} rollouts were refused (rollouts.max_refused_share: "
                f"{self._max_refused_share:g}); {last.key}: {last.reason}"
            )
