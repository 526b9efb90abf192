"""A run between two updates: its folder, its checkpoints, its records, and the screen that shows it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sglang_trb.errors import TrbError
from trainer.atomic import new_folder
from trainer.config.run import RunConfig
from trainer.learner.checkpoints import ENGINE, STATE, STUDENT, Best, CheckpointBroken, CheckpointStore
from trainer.learner.learner import Learner
from trainer.learner.processes import Processes
from trainer.learner.student_folder import write_student
from trainer.learner.update_check import Skips
from trainer.records import (
    EVALUATIONS,
    METRICS_FILE,
    MetricsLog,
    Row,
    RunRecords,
    TensorBoardSink,
    WandbSink,
    fields,
    read_rows,
    write_memory,
    write_settings,
)
from trainer.records.sinks import Sink
from trainer.run.folder import check_continues, claimed, write_provenance
from trainer.run.leader import Leader
from trainer.run.memory import server_memory
from trainer.run.pending_evaluations import PendingEvaluations
from trainer.run.phases import Phases
from trainer.run.progress import TrainingProgress
from trainer.run.rollout_source import journal_path

REPORT = "report"
"""The run's page, in its folder."""


class RunState(contextlib.AbstractContextManager):
    """Use as a context manager; entering claims the run's folder. Every process calls every method.

    Args:
        config: the run.
        processes: of the run.
        quiet: show notes only.

    Attributes:
        phases: what the run is doing, and for how long.
        step: updates that the newest checkpoint holds, once `resume` was called.
        pending_row: the row of ``step``, if no process has recorded it yet: its evaluation is to be made.
        pending_evaluations: steps whose rows are recorded without the evaluations that were made beside the training.

    Raises:
        FolderInUse: another process is at work there.
        OtherRun: the folder holds a run with other settings.
    """

    def __init__(self, config: RunConfig, processes: Processes, *, quiet: bool = False) -> None:
        self._config, self._processes, self._quiet = config, processes, quiet
        self._folder = config.run_folder
        self._store = CheckpointStore(self._folder / "checkpoints", config.checkpoints.keep_last)
        self._screen: TrainingProgress | None = None
        self._records: RunRecords | None = None
        self._leader: Leader | None = None
        self._stack = contextlib.ExitStack()
        self.phases = Phases(self._show_phase)
        self.step = 0
        self.pending_row: Row | None = None
        self.pending_evaluations: list[int] = []
        self._pending = PendingEvaluations(self._folder)

    def __enter__(self) -> RunState:
        with self._stack as stack, self._processes.together():
            if self._processes.leads:
                metrics = self._folder / METRICS_FILE
                history = read_rows(metrics) if metrics.is_file() else []
                screen = TrainingProgress(self._config.steps, history=history, quiet=self._quiet)
                self._screen = stack.enter_context(screen)
                stack.enter_context(claimed(self._folder))
                check_continues(self._folder, self._config)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)

    def note(self, text: str) -> None:
        """Say something that people must see; the leader does."""
        if self._screen is not None:
            self._screen.note(text)

    def rollout_progress(self, done: int, wanted: int, tokens: int) -> None:
        """`TrainingProgress.rollout_progress`."""
        if self._screen is not None:
            self._screen.rollout_progress(done, wanted, tokens)

    def resume(self, learner: Learner) -> None:
        """Go back to the newest checkpoint, if there is one.

        Raises:
            CheckpointBroken: it, or the record of the best, is damaged.
        """
        if self._processes.leads:
            self._store.remove_leftovers()
            self._store.best()  # a damaged record is said now, not after the next evaluation
            self._forget_evaluations()
        latest = self._store.latest()
        self.step = self._processes.share(0 if latest is None else latest.step)
        if self.step > 0:
            checkpoint = next(c for c in self._store.all() if c.step == self.step)
            learner.skips = Skips(**checkpoint.state().get("skipped", {}))
            learner.load(checkpoint.engine)
        with self._processes.together():
            pending = self._pending_row() if self._processes.leads else None
            evaluations = self._pending_evaluations(pending) if self._processes.leads else []
        self.pending_row, self.pending_evaluations = self._processes.share((pending, evaluations))

    def is_complete(self) -> bool:
        """Whether nothing is left to do; then says so."""
        if self.step < self._config.steps or self.pending_row is not None or self.pending_evaluations:
            return False
        self.note(f"all {self._config.steps} updates are made; the newest checkpoint holds {self.step}")
        if not (self._folder / REPORT).is_dir():  # the process ended after its last row
            self.report()
        return True

    def begin(self, leader: Leader | None) -> None:
        """Open the records, and write down what the run is made with."""
        with self._processes.together():  # the others must not start a collective that waits for this
            if leader is not None:
                self._leader = leader
                self._records = self._open_records()
                self._stack.callback(self._records.close)
                write_provenance(self._folder, self._config, leader.pair)
                if memory := server_memory(self._config.models, leader.servers.account()):
                    write_memory(self._folder, memory)

    def checkpoint_if_due(self, step: int, learner: Learner, row: Row) -> None:
        """Keep the run after ``step`` updates, with the row of the last of them: every so many, and at the end."""
        if step % self._config.checkpoints.every != 0 and step != self._config.steps:
            return
        row = row | self.phases.row()
        with self.phases("checkpoint"), contextlib.ExitStack() as stack:
            weights = learner.weights()
            with self._processes.together():
                if self._leader is not None:
                    folder = stack.enter_context(new_folder(self._store.path(step)))
                    write_student(folder / STUDENT, weights or {}, self._config.models.student)
                    (folder / ENGINE).mkdir()
                    state = {"step": step, "weight_version": self._leader.weight_version(step), "metrics": row}
                    state["prompts"] = step * self._config.rollouts.prompts_per_step
                    state["skipped"] = dataclasses.asdict(learner.skips)
                    (folder / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
            unfinished = self._processes.share(os.fspath(folder) if self._leader is not None else None)
            with self._processes.together():
                learner.save(Path(unfinished) / ENGINE)
        if self._leader is not None:
            self._tidy(step)

    def student_of(self, step: int) -> str | Path:
        """The checkpoint of the student after so many updates; 0 is the configuration's.

        Raises:
            CheckpointBroken: it is gone.
        """
        if step == 0:
            return self._config.models.student
        folder = self._store.path(step) / STUDENT
        if not folder.is_dir():
            raise CheckpointBroken(f"{folder}: it is gone, and still to be evaluated; {self._pending.remedy}")
        return folder

    def record(self, step: int, row: Row, evaluated: Row) -> None:
        """Record and show update ``step``, with the evaluation after it, if there was one; it may be due, and late."""
        if self._records is not None and self._screen is not None:
            if evaluated:
                self._note_best(step, evaluated)
            elif self._config.evaluation.is_due(step, self._config.steps):
                self._pending.add(step)
            row = {"step": step, **row, **evaluated, **self._times(row)}
            self._records.append(row)
            self._screen.step_done(row)
        self.phases.forget()

    def record_late(self, evaluations: Sequence[tuple[int, Row]]) -> None:
        """Add evaluations to the rows of their steps, which are recorded."""
        for step, evaluated in evaluations:
            if self._records is not None and self._screen is not None:
                recorded = next(row for row in read_rows(self._records.log.path) if row["step"] == step)
                self._note_best(step, evaluated)
                self._records.amend(step, evaluated | self._times(recorded))
                self._pending.remove(step)
                self._store.prune(self._pending.steps())
                self._screen.evaluated({"step": step, **evaluated})
            self.phases.forget()

    def report(self) -> None:
        """Write the run's page."""
        if not self._processes.leads:
            return
        from trainer.report import write_report

        try:
            self.note(f"report: {write_report([self._folder], self._folder / REPORT)}")
        except (TrbError, OSError) as error:
            self.note(f"the report could not be written: {error}")

    def _show_phase(self, name: str) -> None:
        if self._screen is not None:
            self._screen.phase(name)

    def _times(self, row: Row) -> Row:
        """Of the phases since the last row, and those that an earlier process, or this one before, left in the row."""
        return {name: value + row.get(name, 0.0) for name, value in self.phases.row().items()}

    def _tidy(self, step: int) -> None:
        """Remove what is no longer needed once a checkpoint is there."""
        self._store.prune(self._pending.steps())
        if not self._config.checkpoints.keep_journals:
            newest = journal_path(self._folder, step)
            for path in newest.parent.glob("*.rollouts"):
                if path < newest:
                    path.unlink()

    def _note_best(self, step: int, row: Row) -> None:
        """Of the checkpoints that were evaluated."""
        scores = [value for name, value in row.items() if fields.PASS_AT_1.member(name) is not None]
        if scores and self._store.path(step).is_dir():
            self._store.record_best(Best(step, float(np.mean(scores))))
            self._store.prune(self._pending.steps())

    def _pending_row(self) -> Row | None:
        """The row of the newest checkpoint's update, if the process ended before it was recorded: in its evaluation.

        Row 0, of the untrained student, has nothing but its evaluation.
        """
        if self.step == 0:
            return {} if self._config.evaluation.is_due(0, self._config.steps) else None
        checkpoint, log = self._store.latest(), MetricsLog(self._folder / METRICS_FILE)
        if checkpoint is None or any(row["step"] == checkpoint.step for row in read_rows(log.path)):
            return None
        return checkpoint.state()["metrics"]

    def _pending_evaluations(self, pending_row: Row | None) -> list[int]:
        """Those of rows that stay; with a row that is made again its evaluation is, too."""
        made = self.step if pending_row is None else self.step - 1
        steps = [step for step in self._pending.steps() if self.step > 0 and step <= made]
        self._pending.replace(steps)
        return steps

    def _forget_evaluations(self) -> None:
        """Those after the checkpoint: the updates up to them are made again, on a GPU not to the last bit."""
        checkpoint = self._store.latest()
        start = 0 if checkpoint is None else checkpoint.step
        for folder in (self._folder / EVALUATIONS).glob("step-*"):
            if int(folder.name.removeprefix("step-")) > start:
                shutil.rmtree(folder)

    def _open_records(self) -> RunRecords:
        settings = self._config.model_dump(mode="json")
        write_settings(self._folder, settings)
        log = MetricsLog(self._folder / METRICS_FILE)
        # Row 0 is made again, from its journal.
        log.rewind(self.step if self.step > 0 else -1)
        if self.step > 0:
            self.note(f"going on after step {self.step}")
        sinks: list[Sink] = []
        records = self._config.records
        if records.tensorboard:
            sinks.append(TensorBoardSink(self._folder / "tensorboard", self.step + 1 if self.step else 0))
        if records.wandb_project is not None:
            sinks.append(WandbSink(records.wandb_project, self._config.name, self._folder, settings))
        return RunRecords(log, sinks, self.note)
