"""Trains a study's runs one after the other on one server; several such workers may share a study's folder."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sglang_trb.launch.local_server import ADMIN_KEY_VARIABLE, LocalServer
from trainer.atomic import write_file
from trainer.config.file import dump_config
from trainer.rollouts.launch import WatchedServer
from trainer.study.pace import Pace, rows_of
from trainer.study.plan import Plan, PlannedRun
from trainer.study.queue import Queue, State
from trainer.text import duration

SAY_EVERY_SECONDS = 30.0
LOOK_AGAIN_SECONDS = 5.0
"""At runs that other workers have."""

CONFIG, LOG = "config.yaml", "train.log"
"""Of a run's folder."""
_POLL_SECONDS = 0.5
_END_SECONDS = 60.0
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


class Worker:
    """One process that works on a study.

    Args:
        plan: of the study.
        note: called with a line for people.

    Raises:
        OtherStudy: the folder holds another study.
    """

    def __init__(self, plan: Plan, note: Callable[[str], None]) -> None:
        self._plan, self._note = plan, note
        self._queue = Queue(plan)
        self._urls: tuple[str, ...] = ()
        self._key: str | None = None
        self._watch: Callable[[], None] = lambda: None
        # What failed before is tried once more; what fails from now on, here or elsewhere, is not.
        self._again = {run.name for run in plan.runs if self._queue.state(run) is State.FAILED}

    def work(self) -> list[tuple[PlannedRun, str]]:
        """Train until every run is done or has failed.

        Returns:
            The runs that failed, each with a line that says why.
        """
        if any(not self._is_settled(run) for run in self._plan.runs):
            with self._server():
                while left := [run for run in self._plan.runs if not self._is_settled(run)]:
                    if not sum(self._take(run) for run in left):
                        self._note(f"{len(left)} runs are with other workers; waiting for them")
                        self._wait(left)
        failed = [run for run in self._plan.runs if self._queue.state(run) is State.FAILED]
        return [(run, self._queue.why(run)) for run in failed]

    def _is_settled(self, run: PlannedRun) -> bool:
        state = self._queue.state(run)
        return state is State.DONE or (state is State.FAILED and run.name not in self._again)

    def _wait(self, left: list[PlannedRun]) -> None:
        """Until one of them is settled or free."""
        while True:
            time.sleep(LOOK_AGAIN_SECONDS)
            for run in left:
                if self._is_settled(run):
                    return
                with self._queue.taken(run) as free:
                    if free and self._may_start(run) is not None:
                        return

    def _take(self, run: PlannedRun) -> bool:
        """Train it, unless another worker does, or did, or what it starts from is not there yet."""
        with self._queue.taken(run) as free:
            if not free or self._is_settled(run):
                return False
            may_start = self._may_start(run)
            if may_start is None:
                return False
            self._again.discard(run.name)
            if may_start:
                self._train(run)
            else:
                self._queue.end(run, State.FAILED, f"{run.after} failed, from which it starts")
        return True

    def _may_start(self, run: PlannedRun) -> bool | None:
        """None: not yet."""
        before = next((other for other in self._plan.runs if other.name == run.after), None)
        if before is None or self._queue.state(before) is State.DONE:
            return True
        return False if self._is_settled(before) else None

    def _train(self, run: PlannedRun) -> None:
        folder = run.config.run_folder
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / CONFIG, dump_config(run.config))  # the base's file may change while the study goes on
        processes = self._plan.study.processes
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
        command = [sys.executable, "-m", *(launcher if processes > 1 else []), "sglang_trb.cli.main", "train"]
        command += ["--quiet", "--config", str(folder / CONFIG), f"server.urls=[{','.join(self._urls)}]"]
        environment = os.environ | ({self._plan.base.server.admin_key_variable: self._key} if self._key else {})
        self._note(f"{run.name}: begins at update {_made(run)} of {run.config.steps} (log: {folder / LOG})")
        with (folder / LOG).open("ab") as log:
            start = log.tell()
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches us alone, and we stop it in order
                preexec_fn=_end_with_parent,
            )
        try:
            status = self._follow(run, process)
        except BaseException:
            _stop(process)
            raise
        if status == 0:
            self._queue.end(run, State.DONE)
            self._note(f"{run.name}: done; {self._progress()}")
        else:
            why = _last_line(folder / LOG, start) or f"ended with status {status}"
            self._queue.end(run, State.FAILED, why)
            self._note(f"{run.name}: FAILED: {why}")

    def _follow(self, run: PlannedRun, process: subprocess.Popen) -> int:
        said = time.monotonic()
        while (status := process.poll()) is None:
            self._watch()
            if time.monotonic() - said > SAY_EVERY_SECONDS:
                said = time.monotonic()
                self._note(f"{run.name}: update {_made(run)} of {run.config.steps}; {self._progress()}")
            time.sleep(_POLL_SECONDS)
        return status

    def _progress(self) -> str:
        states = [self._queue.state(run) for run in self._plan.runs]
        failed = f", {states.count(State.FAILED)} failed" * (State.FAILED in states)
        left = Pace.of(self._plan.runs).left
        rest = "" if left is None else f"; about {duration(left)} left for one worker"
        return f"{states.count(State.DONE)} of {len(states)} runs done{failed}{rest}"

    @contextlib.contextmanager
    def _server(self) -> Iterator[None]:
        """The servers of the base run, or one of the study's own."""
        base, folder = self._plan.base, self._plan.study.study_folder
        self._key = base.server.admin_key()
        if base.server.launch is None:
            self._urls = base.server.urls
            with self._queue.servers(self._urls):
                yield
            return
        self._key = self._key or secrets.token_urlsafe()
        options = ["--model-path", base.models.student, "--speculative-draft-model-path", base.models.teacher]
        log = folder / f"server-{socket.gethostname()}-{os.getpid()}.log"
        local = LocalServer(
            base.server.launch,
            [*options, *base.server.launch_options],
            log=log,
            environment={ADMIN_KEY_VARIABLE: self._key},
        )
        server = WatchedServer(local, self._note)
        self._urls, self._watch = (local.address,), server.revive
        try:
            server.start()
            yield
        finally:
            server.stop()


def _made(run: PlannedRun) -> int:
    rows = rows_of(run.config.run_folder)
    return int(rows[-1]["step"]) if rows else 0


def _stop(process: subprocess.Popen) -> None:
    """SIGTERM, on which a training leaves its state in order; SIGKILL if it does not end."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_END_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _end_with_parent() -> None:
    """In the new process: SIGTERM when the worker is gone, even by SIGKILL."""
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _last_line(log: Path, start: int) -> str:
    """Of what was written from ``start`` on."""
    with log.open("rb") as stream:
        stream.seek(start)
        lines = [line.strip() for line in stream.read().decode("utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")
