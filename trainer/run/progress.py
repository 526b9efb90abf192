"""What a training run shows while it runs: a live display in a terminal, one line a step everywhere else."""

from __future__ import annotations

import collections
import itertools
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sglang_trb.display.completions import visible
from sglang_trb.errors import InvalidParameter
from trainer.records import fields
from trainer.text import duration

PHASES = ("rollout", "train", "push", "evaluate", "checkpoint")
DRAWING = ("rollout", "evaluate")
SHOWN = tuple(metric for metric in fields.METRICS.values() if metric.label)
"""What the display and a line have of a step, in this order."""

SIGN_OF_LIFE_S = 60.0
"""In a log, a long phase says how far it is when nothing was written for this long."""
RECENT_STEPS = 40
"""The time left is estimated from this many steps: two of the paper's evaluations are among them."""
REFRESHES_PER_S = 4
TIMES = ("rollout", "train", "push", "eval")
"""The order of the time split; others follow as they come."""

_BLOCKS = "▁▂▃▄▅▆▇█"


class TrainingProgress:
    """Shows a run; use it as a context manager around all of it.

    Calls may come from any thread.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        history: Sequence[Mapping[str, float]] = (),
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare the display; nothing is shown yet.

        Args:
            total_steps: optimiser updates of the whole run.
            history: the rows recorded before this process, when a run is resumed.
            quiet: show notes only.
            stream: where to, standard output if None. The live display needs a terminal that writes UTF-8.
            clock: seconds, monotonic.
        """
        self._stream = stream or sys.stdout
        self._quiet = quiet
        self._clock = clock
        self._lock = threading.RLock()
        self._live: Live | None = None
        self._state = _State(total_steps, history, clock)
        self._last_line = clock()

    def __enter__(self) -> TrainingProgress:
        if not self._quiet and _can_draw(self._stream):
            console = Console(file=self._stream)
            self._live = Live(get_renderable=self._render, console=console, refresh_per_second=REFRESHES_PER_S)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def phase(self, name: str) -> None:
        """Say what the run is doing now: one of `PHASES`."""
        if name not in PHASES:
            raise InvalidParameter("phase", name, ", ".join(PHASES))
        with self._lock:
            self._state.start_phase(name)

    def rollout_progress(self, done: int, total: int, tokens: int) -> None:
        """How far the current phase is, if it is one that draws (rollout or evaluate).

        Args:
            done, total: finished responses, and how many are wanted.
            tokens: generated since the phase began.
        """
        with self._lock:
            if self._state.phase not in DRAWING:
                return
            self._state.counts = (done, total, tokens)
            text = self._state.phase_text()
        if not self._live and not self._quiet and self._clock() - self._last_line >= SIGN_OF_LIFE_S:
            self._line(f"{self._state.phase} {text}")

    def step_done(self, row: Mapping[str, float]) -> None:
        """Show a finished step: the row that is recorded for it; row 0 is the evaluation of the untrained student."""
        with self._lock:
            self._state.add(row, self._clock())
            text = _step_line(row, self._state)
        if not self._live and not self._quiet:
            self._line(text)

    def evaluated(self, row: Mapping[str, float]) -> None:
        """Show the evaluation of a step that was shown without it."""
        with self._lock:
            self._state.keep_evaluations(row)
        if not self._live and not self._quiet:
            self._line(" | ".join([f"evaluated step {row['step']}", *_scores(row)]))

    def note(self, text: str) -> None:
        """Say something that must be seen, also when quiet: a wait, a warning. Untrusted text is made harmless."""
        self._line(visible(text))

    def _line(self, text: str) -> None:
        self._last_line = self._clock()
        stamped = f"{time.strftime('%H:%M:%S')} {text}"
        if self._live:
            self._live.console.print(Text(stamped))
            return
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        print(stamped.encode(encoding, "backslashreplace").decode(encoding), file=self._stream, flush=True)

    def _render(self) -> Group:
        with self._lock:
            return _display(self._state, self._live.console.width if self._live else 80)


class _State:
    """The numbers behind what is shown."""

    def __init__(self, total: int, history: Iterable[Mapping[str, float]], clock: Callable[[], float]) -> None:
        self.total = total
        self.step = 0
        self.series: dict[str, list[float]] = {}
        self.evaluations: dict[str, list[tuple[int, Mapping[str, float]]]] = {}
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self.phase: str = ""
        self.counts: tuple[int, int, int] | None = None
        self.clock = clock
        self.started = self._phase_started = self._step_started = clock()
        self._durations: collections.deque[float] = collections.deque(maxlen=RECENT_STEPS)
        for row in history:
            self.keep(row)

    def start_phase(self, name: str) -> None:
        self.phase, self.counts, self._phase_started = name, None, self.clock()

    def add(self, row: Mapping[str, float], now: float) -> None:
        if row["step"] > self.step:
            self._durations.append(now - self._step_started)
        self._step_started = now
        self.keep(row)

    def keep(self, row: Mapping[str, float]) -> None:
        self.step = int(row["step"])
        for name, value in row.items():
            if name in SHOWN:
                self.series.setdefault(name, []).append(value)
            if phase := fields.TIME.member(name):
                self.seconds[phase] += value
        self.keep_evaluations(row)

    def keep_evaluations(self, row: Mapping[str, float]) -> None:
        for benchmark in filter(None, map(fields.PASS_AT_1.member, row)):
            self.evaluations.setdefault(benchmark, []).append((int(row["step"]), row))

    def phase_text(self) -> str:
        seconds = self.clock() - self._phase_started
        if not self.counts:
            return duration(seconds)
        done, total, tokens = self.counts
        speed = f", {tokens / seconds:.0f} tokens/s" if tokens and seconds > 0 else ""
        return f"{done}/{total}{speed}, {duration(seconds)}"

    def left(self) -> float | None:
        """Estimated seconds to the end, None before the first step of this process."""
        if not self._durations:
            return None
        return sum(self._durations) / len(self._durations) * max(self.total - self.step, 0)


def sparkline(values: Sequence[float], width: int) -> str:
    """Values in order as ``width`` block characters, from the lowest to the highest; repeated or averaged to fit.

    A value that is not finite is a blank.
    """
    starts = [i * len(values) // width for i in range(width + 1)]
    groups = [values[start : max(end, start + 1)] for start, end in itertools.pairwise(starts)]
    means = [sum(group) / len(group) for group in groups]
    finite = [mean for mean in means if math.isfinite(mean)]
    low = min(finite, default=0.0)
    scale = (len(_BLOCKS) - 1) / ((max(finite, default=0.0) - low) or 1.0)
    return "".join(_BLOCKS[round((mean - low) * scale)] if math.isfinite(mean) else " " for mean in means)


def _can_draw(stream: TextIO) -> bool:
    console = Console(file=stream)  # FORCE_COLOR makes rich take a pipe for a terminal: ask the stream itself
    encoding = (getattr(stream, "encoding", None) or "").lower().replace("-", "")
    return stream.isatty() and not console.is_dumb_terminal and encoding == "utf8"


def _shares(seconds: Mapping[str, float]) -> str:
    total = sum(seconds.values())
    known = [name for name in TIMES if name in seconds]
    names = known + [name for name in seconds if name not in TIMES]
    return ", ".join(f"{name} {seconds[name] / total:.0%}" for name in names) if total > 0 else ""


def _evaluation(benchmark: str, row: Mapping[str, float]) -> str:
    low, high = row.get(fields.PASS_AT_1_LOW.of(benchmark)), row.get(fields.PASS_AT_1_HIGH.of(benchmark))
    interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return f"{row[fields.PASS_AT_1.of(benchmark)]:.3f}{interval}"


def _scores(row: Mapping[str, float]) -> list[str]:
    evaluated = filter(None, map(fields.PASS_AT_1.member, row))
    return [f"pass@1 {benchmark} {_evaluation(benchmark, row)}" for benchmark in evaluated]


def _step_line(row: Mapping[str, float], state: _State) -> str:
    values = [f"{metric.log} {row[metric]:{metric.shown}}" for metric in SHOWN if metric in row]
    seconds = {phase: value for name, value in row.items() if (phase := fields.TIME.member(name))}
    parts = [f"step {state.step}/{state.total}", " ".join(values)]
    if seconds:
        parts.append(f"{sum(seconds.values()):.1f} s: {_shares(seconds)}")
    left = state.left()
    parts += [*_scores(row), "" if left is None else f"{duration(left)} left"]
    return " | ".join(part for part in parts if part)


def _display(state: _State, width: int) -> Group:
    bar = max(8, min(48, width - 52))
    # What has been done of the run is as wide in the traces as in the bar above them.
    done = max(1, round(bar * min(state.step / state.total, 1)))
    rows: list[tuple[str, RenderableType, RenderableType]]
    rows = [("step", _bar(state.step, state.total, bar), _run_text(state))]
    if state.phase:
        phase_bar = _bar(*state.counts[:2], bar) if state.counts else ProgressBar(None, width=bar, pulse=True)
        rows.append((state.phase, phase_bar, state.phase_text()))
    for metric in SHOWN:
        if values := state.series.get(metric):
            last = Text(f"{values[-1]:{metric.shown}}", "bold")
            rows.append((metric.label, Text(sparkline(values, done), "cyan"), last))
    for benchmark, scores in state.evaluations.items():
        step, row = scores[-1]
        trace = sparkline([past[fields.PASS_AT_1.of(benchmark)] for _, past in scores], done)
        text = Text.assemble((_evaluation(benchmark, row), "bold"), f" at step {step}")
        rows.append((f"pass@1 {benchmark}", Text(trace, "green"), text))
    labels = max(len(label) for label, _, _ in rows)
    grid = Table.grid(padding=(0, 1, 0, 0))
    for options in ({"style": "dim", "width": labels}, {"width": bar}, {"overflow": "ellipsis"}):
        grid.add_column(no_wrap=True, **options)
    for label, trace_or_bar, value in rows:
        grid.add_row(Text(label), trace_or_bar, value)
    split = _shares(state.seconds)
    return Group(grid, *([Text.assemble(("time".ljust(labels + 1), "dim"), split)] if split else []))


def _run_text(state: _State) -> str:
    left = state.left()
    estimate = "" if left is None else f", {duration(left)} left"
    return f"{state.step}/{state.total} after {duration(state.clock() - state.started)}{estimate}"


def _bar(done: int, total: int, width: int) -> ProgressBar:
    return ProgressBar(total, done, width, complete_style="cyan", finished_style="green")
