"""The run: push, collect, update, checkpoint, evaluate; from wherever the last process was stopped.

A checkpoint holds the run after some updates. The rollouts of later steps are in journals, so a run that was killed
makes those updates again from the same rollouts, draws what is missing of the step it was at, and goes on: every prompt
is trained on once, in the order that the seed gives. An update is in its checkpoint before it is evaluated; the row of
an update whose evaluation was cut short is in the checkpoint too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sglang_trb.errors import TrbError
from sglang_trb.pair.pair import Pair
from trainer.atomic import new_folder
from trainer.config.run import RunConfig
from trainer.grading.grader import Grade, Verdict
from trainer.learner.batches import MicroBatch, collate, deal, micro_batches_per_process, weighted
from trainer.learner.checkpoints import ENGINE, STATE, STUDENT, Best, CheckpointStore
from trainer.learner.engine import TrainEngine, Update
from trainer.learner.processes import Processes
from trainer.learner.student import Student
from trainer.learner.student_folder import write_student
from trainer.learner.update_check import EnginesDisagree, Skips, check_update
from trainer.records import (
    EVALUATIONS,
    METRICS_FILE,
    MetricsLog,
    Row,
    RunRecords,
    TensorBoardSink,
    WandbSink,
    read_rows,
    write_settings,
)
from trainer.records.sinks import Sink
from trainer.rollouts.journal import step_path
from trainer.rollouts.rollout import Rollout
from trainer.rollouts.teacher_check import BrokenTeacher, check_teacher, teacher_row
from trainer.run.folder import check_continues, claimed, write_provenance
from trainer.run.leader import Leader, timed
from trainer.run.progress import TrainingProgress


def train(config: RunConfig, *, quiet: bool = False) -> None:
    """Run, or go on with, a training; every process of the run calls it."""
    processes = Processes()
    try:
        with contextlib.ExitStack() as stack:
            progress = _no_progress if not processes.leads else stack.enter_context(_progress(config, quiet))
            _Training(config, processes, progress, stack).run()
    finally:
        processes.leave()


def _progress(config: RunConfig, quiet: bool) -> TrainingProgress:
    metrics = config.run_folder / METRICS_FILE
    history = read_rows(metrics) if metrics.is_file() else []
    return TrainingProgress(config.steps, history=history, quiet=quiet)


_no_progress: Any = None


class _Training:
    def __init__(self, config: RunConfig, processes: Processes, progress: Any, stack: contextlib.ExitStack) -> None:
        self.config, self.processes, self.progress = config, processes, progress
        rollouts = config.rollouts
        with self._together():
            if processes.leads:
                stack.enter_context(claimed(config.run_folder))
                check_continues(config.run_folder, config)
        torch.manual_seed(config.seed)
        pair = Pair.load(config.models.student, config.models.teacher)
        settings = config.optimisation
        bf16 = config.models.dtype == "bfloat16"
        student = Student(
            config.models.student,
            pair,
            dtype=torch.bfloat16 if bf16 else torch.float32,
            gradient_checkpointing=settings.gradient_checkpointing,
            chunk=settings.logits_chunk,
        )
        sequences = rollouts.prompts_per_step * rollouts.samples_per_prompt
        self.micro_batches = micro_batches_per_process(sequences, processes.world, settings.micro_batch_size)
        self.engine = TrainEngine(student, settings, config.loss, processes, self.micro_batches, bf16=bf16)
        self.store = CheckpointStore(config.run_folder / "checkpoints", config.checkpoints.keep_last)
        self.served_step: int | None = None
        self.pair, self.skips = pair, Skips()
        self.start = self._resume()
        with self._together():
            unrecorded = self._unrecorded() if processes.leads else None
        self.unrecorded = processes.share(unrecorded)
        self.leader, self.records = None, None
        if self.start >= config.steps and self.unrecorded is None:
            if processes.leads:
                progress.note(f"all {config.steps} updates are made; the newest checkpoint holds {self.start}")
            return
        with self._together():  # the others must not start a collective that waits for this
            if processes.leads:
                self.leader = stack.enter_context(Leader(config, pair, progress.note, progress.rollout_progress))
                self.records = self._open_records()
                write_provenance(config.run_folder, config, pair)
                stack.callback(self.records.close)

    def run(self) -> None:
        evaluation = self.config.evaluation
        if self.start == 0 and evaluation.at_start and evaluation.every and evaluation.benchmarks:
            seconds: dict[str, float] = {}
            row = self._evaluate(0, seconds)
            self._record(0, row, seconds)
        if self.unrecorded is not None:
            self._evaluate_and_record(self.start, self.unrecorded, {})
        for step in range(self.start, self.config.steps):
            self._step(step)
        if self.processes.leads:
            self._report()

    def _report(self) -> None:
        from trainer.report import write_report

        folder = self.config.run_folder
        try:
            self.progress.note(f"report: {write_report([folder], folder / 'report')}")
        except (TrbError, OSError) as error:
            self.progress.note(f"the report could not be written: {error}")

    def _step(self, step: int) -> None:
        seconds: dict[str, float] = {}
        rollouts = self._collect(step, seconds)
        self._phase("train")
        with timed(seconds, "train"):
            hand, tokens = self._deal(rollouts)
            update = self.engine.update(hand, tokens, step)
        self._check(update, step)
        row = self._measured(step, rollouts, update, seconds) if self.leader else {}
        done = step + 1
        if done % self.config.checkpoints.every == 0 or done == self.config.steps:
            self._checkpoint(done, row | _times(seconds))
        self._evaluate_and_record(done, row, seconds)

    def _evaluate_and_record(self, done: int, row: Row, seconds: dict[str, float]) -> None:
        """After the checkpoint: what goes wrong in hours of evaluation costs no update."""
        evaluation = self.config.evaluation
        due = evaluation.every and evaluation.benchmarks and (done % evaluation.every == 0 or done == self.config.steps)
        evaluated = self._evaluate(done, seconds) if due else {}
        if evaluated:
            self._note_best(done, evaluated)
        self._record(done, row | evaluated, seconds)

    # Rollouts

    def _collect(self, step: int, seconds: dict[str, float]) -> list[Rollout]:
        """The step's rollouts, on the leader, none if all were refused; others get an empty list."""
        collected = self.processes.share(self.leader is not None and self.leader.is_collected(step))
        if not collected:
            self._serve(step, seconds)
        self._phase("rollout")
        rollouts: list[Rollout] = []
        with self._together(), timed(seconds, "rollout"):
            if self.leader is not None:
                rollouts = self.leader.collect(step)
                if rollouts:
                    self._check_teacher(step, rollouts)
        return rollouts

    def _check_teacher(self, step: int, rollouts: Sequence[Rollout]) -> None:
        assert self.leader is not None
        allowed = self.config.server.allow_broken_teacher
        try:
            check_teacher(
                rollouts, self.pair.vocab_size, allowed, lambda text: self.progress.note(f"step {step}: {text}")
            )
        except BrokenTeacher as error:
            raise BrokenTeacher(f"step {step}: {error}; {self._set_aside(step)}") from None

    def _serve(self, step: int, seconds: dict[str, float]) -> None:
        """Make the servers hold the student after ``step`` updates, which is the current one."""
        if self.served_step == step:
            return
        self._phase("push")
        with timed(seconds, "push"):
            weights = self.engine.weights()
            with self._together():
                if self.leader is not None:
                    assert weights is not None
                    self.leader.serve(weights, step)
        self.served_step = step

    def _deal(self, rollouts: Sequence[Rollout]) -> tuple[list[MicroBatch], int]:
        """This process's micro-batches, and the response tokens of all."""
        hands = None
        if self.leader is not None:
            size, loss = self.config.optimisation.micro_batch_size, self.config.loss
            hands = deal(weighted(loss, rollouts), self.processes.world, size, self.micro_batches, loss.aggregation)
        hand = self.processes.deal(hands)
        tokens = self.processes.share(sum(len(rollout) for rollout in rollouts))
        size, teacher_support = self.config.optimisation.micro_batch_size, self.config.loss.needs_teacher_support
        return [collate(part, size, teacher_support=teacher_support) for part in hand], tokens

    # What is measured

    def _measured(self, step: int, rollouts: Sequence[Rollout], update: Update, seconds: dict[str, float]) -> Row:
        assert self.leader is not None
        blend, temperature = self.config.sampling(step)
        row: Row = {
            "train/loss": update.loss,
            "train/grad_norm": update.grad_norm,
            "train/lr": update.learning_rate,
            "drift/mean_abs": update.drift_mean,
            "drift/max_abs": update.drift_max,
            "rollout/epsilon": blend.epsilon,
            "rollout/temperature": temperature,
            "rollout/refused": float(len(self.leader.refused)),
            "rollout/prompts_left_out": float(self.leader.prompts.left_out.total()),
            "train/skipped_updates": float(self.skips.total),
        }
        row |= {f"rollout/{name}": value for name, value in update.metrics.items()}
        if rollouts:
            row |= _drawn(rollouts, seconds["rollout"]) | teacher_row(rollouts)
        return row | _rewards(self.leader.grade(rollouts))

    def _check(self, update: Update, step: int) -> None:
        try:
            self.skips = check_update(update, self.skips, self.config.optimisation, step, self._note)
        except EnginesDisagree as error:
            raise EnginesDisagree(f"{error}; {self._set_aside(step)}") from None

    def _set_aside(self, step: int) -> str:
        """Keep rollouts that cannot be trusted out of the next process's way; says what will happen."""
        kept = "" if self.leader is None else f" are kept in {self.leader.set_aside(step).name} and"
        return f"its rollouts{kept} will be drawn anew, from servers that proved their weights"

    def _evaluate(self, step: int, seconds: dict[str, float]) -> Row:
        """pass@1 of the student after ``step`` updates; the leader's row."""
        self._serve(step, seconds)
        self._phase("evaluate")
        row: Row = {}
        with self._together(), timed(seconds, "eval"):
            if self.leader is not None:
                for benchmark in self.config.evaluation.benchmarks:
                    score, faults = self.leader.evaluate(benchmark, step)
                    name = f"eval/{benchmark.name}"
                    row |= {f"{name}/pass_at_1": score.mean, f"{name}/pass_at_1_low": score.low}
                    row |= {f"{name}/pass_at_1_high": score.high, f"{name}/faults": float(faults)}
        return row

    def _record(self, step: int, row: Row, seconds: dict[str, float]) -> None:
        if self.records is not None:
            row = {"step": step, **row, **_times(seconds)}
            self.records.append(row)
            self.progress.step_done(row)

    # Checkpoints

    def _checkpoint(self, step: int, row: Row) -> None:
        self._phase("checkpoint")
        weights = self.engine.weights()
        target = self.store.path(step)
        with contextlib.ExitStack() as stack:
            with self._together():
                if self.leader is not None:
                    folder = stack.enter_context(new_folder(target))
                    write_student(folder / STUDENT, weights or {}, self.config.models.student)
                    (folder / ENGINE).mkdir()
                    state = {"step": step, "weight_version": self.leader.weight_version(step), "metrics": row}
                    state["prompts"] = step * self.config.rollouts.prompts_per_step
                    state["skipped"] = dataclasses.asdict(self.skips)
                    (folder / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
            unfinished = self.processes.share(os.fspath(folder) if self.leader is not None else None)
            with self._together():
                self.engine.save(Path(unfinished) / ENGINE)
        if self.leader is not None:
            self._tidy(step)

    def _tidy(self, step: int) -> None:
        """Remove what is no longer needed once a checkpoint is there."""
        self.store.prune()
        if not self.config.checkpoints.keep_journals:
            for path in (self.config.run_folder / "journal").glob("*.rollouts"):
                if path < step_path(path.parent, step):
                    path.unlink()

    def _note_best(self, step: int, row: Row) -> None:
        """Of the checkpoints that were evaluated."""
        if self.store.path(step).is_dir():
            scores = [value for name, value in row.items() if name.endswith("/pass_at_1")]
            self.store.record_best(Best(step, float(np.mean(scores))))
            self.store.prune()

    def _resume(self) -> int:
        """Go back to the newest checkpoint; the number of updates that it holds."""
        if self.processes.leads:
            self.store.remove_leftovers()
            self.store.best()  # a damaged record is said now, not after the next evaluation
            self._forget_evaluations()
        checkpoint = self.store.latest()
        step = self.processes.share(0 if checkpoint is None else checkpoint.step)
        if step == 0:
            return 0
        checkpoint = next(c for c in self.store.all() if c.step == step)
        self.skips = Skips(**checkpoint.state().get("skipped", {}))
        self.engine.load(checkpoint.engine)
        return step

    def _unrecorded(self) -> Row | None:
        """The row of the newest checkpoint's update, if the process ended before it was recorded: in its evaluation."""
        checkpoint, log = self.store.latest(), MetricsLog(self.config.run_folder / METRICS_FILE)
        if checkpoint is None or any(row["step"] == checkpoint.step for row in read_rows(log.path)):
            return None
        return checkpoint.state()["metrics"]

    def _forget_evaluations(self) -> None:
        """Those after the checkpoint: the updates up to them are made again, on a GPU not to the last bit."""
        checkpoint = self.store.latest()
        start = 0 if checkpoint is None else checkpoint.step
        for folder in (self.config.run_folder / EVALUATIONS).glob("step-*"):
            if int(folder.name.removeprefix("step-")) > start:
                shutil.rmtree(folder)

    def _open_records(self) -> RunRecords:
        folder, records = self.config.run_folder, self.config.records
        settings = self.config.model_dump(mode="json")
        write_settings(folder, settings)
        log = MetricsLog(folder / METRICS_FILE)
        if self.start == 0:
            # Row 0 is the evaluation of the untrained student: it is made again, from its journal.
            log.rewind(-1)
        else:
            log.rewind(self.start)
            self.progress.note(f"going on after step {self.start}")
        sinks: list[Sink] = []
        if records.tensorboard:
            sinks.append(TensorBoardSink(folder / "tensorboard", self.start + 1 if self.start else 0))
        if records.wandb_project is not None:
            sinks.append(WandbSink(records.wandb_project, self.config.name, folder, settings))
        return RunRecords(log, sinks, self.progress.note)

    def _note(self, text: str) -> None:
        if self.leader is not None:
            self.progress.note(text)

    def _phase(self, name: str) -> None:
        if self.leader is not None:
            self.progress.phase(name)

    @contextlib.contextmanager
    def _together(self):
        """What fails in the block on one process is raised on all, after it."""
        error: BaseException | None = None
        try:
            yield
        except Exception as caught:  # handed to every process, and raised here
            error = caught
        self.processes.agree(error)


def _times(seconds: Mapping[str, float]) -> Row:
    return {f"time/{name}_s": value for name, value in seconds.items()}


def _drawn(rollouts: Sequence[Rollout], seconds: float) -> Row:
    """What a step's rollouts, at least one, were like."""
    tokens = {n: np.concatenate([r.tokens[n] for r in rollouts]).astype(np.float64) for n in ("beta", "kl")}
    lengths = np.array([len(rollout) for rollout in rollouts])
    return {
        "rollout/mean_beta": float(tokens["beta"].mean()),
        "rollout/mean_kl": float(tokens["kl"].mean()),
        "rollout/sum_kl": float(tokens["kl"].sum() / len(rollouts)),
        "rollout/response_length": float(lengths.mean()),
        "rollout/finished_share": float(np.mean([rollout.finish == "stop" for rollout in rollouts])),
        "rollout/tokens_per_s": float(lengths.sum() / seconds),
    }


def _rewards(grades: Sequence[Grade | None]) -> Row:
    known = [grade for grade in grades if grade is not None]
    verdicts = [grade.verdict for grade in known if grade.verdict is not Verdict.FAULT]
    if not known:
        return {}
    row: Row = {"rollout/grader_faults": float(len(known) - len(verdicts))}
    if verdicts:
        row["rollout/reward"] = float(np.mean([verdict is Verdict.RIGHT for verdict in verdicts]))
    return row
