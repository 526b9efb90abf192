"""The pair's attention plans on a simulated device that runs late: no plan is overwritten before it was copied.

`Stream` is the device: operations queue up, and run only when somebody waits for an event behind them. Each stub runner
plans as FlashInfer does, into one staging buffer from which a queued operation copies. The workers and the fence are
the real ones; the loop is SGLang's overlap loop as far as it waits.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.managers.tp_worker import TpModelWorker

from sglang_trb.engine.worker import paired_worker as pair
from sglang_trb.engine.worker import plan_fence

STEPS = 6


class Stream:
    """Runs its operations in order, as late as it may."""

    def __init__(self) -> None:
        self.waiting: collections.deque[Callable[[], None]] = collections.deque()
        self.queued = self.done = 0

    def queue(self, operation: Callable[[], None]) -> None:
        self.waiting.append(operation)
        self.queued += 1

    def run_until(self, position: int) -> None:
        while self.done < position:
            self.waiting.popleft()()
            self.done += 1

    def Event(self) -> Event:
        return Event(self)


class Event:
    def __init__(self, stream: Stream) -> None:
        self.stream, self.position = stream, 0

    def record(self) -> None:
        self.position = self.stream.queued

    def synchronize(self) -> None:
        self.stream.run_until(self.position)


class Backend:
    """FlashInfer's way to plan: the host's one staging buffer, then a copy that the stream makes when it gets there."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.staging, self.on_device = stream, -1, -1

    def init_forward_metadata_out_graph(self, step: int, in_capture: bool = False) -> None:
        self.staging = step

        def copy() -> None:
            self.on_device = self.staging

        self.stream.queue(copy)

    init_forward_metadata = init_forward_metadata_out_graph


class Runner:
    """A model runner whose forward notes which step's plan it found on the device."""

    device = "simulated"

    def __init__(self, stream: Stream, name: str) -> None:
        self.prefill_attention_backend_str = self.decode_attention_backend_str = name
        self.attn_backend, self.stream = Backend(stream), stream
        self.plans_found: list[int] = []

    def forward(self, forward_batch: SimpleNamespace) -> SimpleNamespace:
        self.attn_backend.init_forward_metadata_out_graph(forward_batch.step)
        self.stream.queue(lambda: self.plans_found.append(self.attn_backend.on_device))
        return SimpleNamespace(logits_output=SimpleNamespace(next_token_logits=torch.zeros(1, 1)))


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    stream = Stream()
    monkeypatch.setattr(torch, "get_device_module", lambda device: stream)
    step_of = lambda batch, runner, **_: SimpleNamespace(step=batch.step)  # noqa: E731
    monkeypatch.setattr(pair.ForwardBatch, "init_new", step_of)
    # The base's own forward wants a published configuration; what matters here is that it plans and runs the student.
    monkeypatch.setattr(TpModelWorker, "forward_batch_generation", lambda self, batch: self.model_runner.forward(batch))
    return stream


def serve(stream: Stream, backend: str) -> tuple[Runner, Runner]:
    """STEPS steps of the pair in SGLang's overlap loop: a step is launched when the last but one has ended."""
    worker, teacher = pair.PairedWorker.__new__(pair.PairedWorker), pair.TeacherWorker.__new__(pair.TeacherWorker)
    worker._model_runner, teacher._model_runner = Runner(stream, backend), Runner(stream, backend)
    worker.teacher = teacher
    for runner in (worker.model_runner, teacher.model_runner):
        plan_fence.fence_plans(runner)
    ends = [stream.Event() for _ in range(STEPS)]
    for step in range(STEPS):
        if step >= 2:
            ends[step - 2].synchronize()
        info = SimpleNamespace(blend=SimpleNamespace(needs_teacher=lambda: True))
        worker.forward_batch_generation(SimpleNamespace(step=step, sampling_info=info))
        ends[step].record()
        assert step == 0 or stream.waiting, "the device still has work when the host goes on"
    ends[-1].synchronize()
    return worker.model_runner, teacher.model_runner


def test_each_forward_finds_its_own_plan(stream: Stream) -> None:
    student, teacher = serve(stream, "flashinfer")
    assert student.plans_found == teacher.plans_found == list(range(STEPS))


def test_the_simulated_device_would_show_the_race(stream: Stream) -> None:
    """A backend that needs no fence gets none; put on a host planner, that is the bug."""
    student, _ = serve(stream, "fa3")
    assert student.plans_found != list(range(STEPS))


def test_the_wait_leaves_the_device_its_queue(stream: Stream) -> None:
    """Waiting for the last plan's copy must not wait for the teacher's forward that was just launched."""
    backend = Backend(stream)
    runner = SimpleNamespace(attn_backend=backend, device="simulated")
    runner.prefill_attention_backend_str, runner.decode_attention_backend_str = "fa3", "flashinfer"
    plan_fence.fence_plans(runner)
    backend.init_forward_metadata_out_graph(0, in_capture=True)
    stream.queue(lambda: None)  # the rest of the step, and the teacher's next forward
    backend.init_forward_metadata(1)
    assert (stream.done, stream.queued) == (1, 3)


def test_the_teachers_logits_are_not_the_graphs_buffer(stream: Stream) -> None:
    """Graphs of one process write one logits buffer; the student's forward would overwrite the teacher's rows."""
    teacher = pair.TeacherWorker.__new__(pair.TeacherWorker)
    shared = torch.zeros(2, 3, device="meta")
    output = SimpleNamespace(logits_output=SimpleNamespace(next_token_logits=shared))
    teacher._model_runner = SimpleNamespace(forward=lambda batch: output)
    assert teacher.logits(SimpleNamespace(step=0)) is not shared


def test_the_pairs_runners_fence_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(pair.ModelRunner, "init_attention_backends", lambda self: calls.append("base"))
    monkeypatch.setattr(pair, "fence_plans", calls.append)
    runners = [cls.__new__(cls) for cls in (pair.StudentRunner, pair.TeacherRunner)]
    for runner in runners:
        runner.init_attention_backends()
    assert calls == ["base", runners[0], "base", runners[1]]
