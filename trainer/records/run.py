"""A run's rows to its metrics file and its sinks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from trainer.records.metrics import MetricsLog
from trainer.records.sinks import Sink, SinkFailed


class RunRecords:
    """Writes each row to the metrics file first, then to the sinks.

    The metrics file must be written: what fails there is raised. A sink that fails is reported once and gets no more
    rows; the run goes on.
    """

    def __init__(self, log: MetricsLog, sinks: Sequence[Sink] = (), note: Callable[[str], None] = print) -> None:
        self.log = log
        self._sinks = list(sinks)
        self._note = note

    def append(self, row: Mapping[str, float]) -> None:
        """Record one step; see `MetricsLog.append` for what is allowed and raised."""
        self.log.append(row)
        self._show(row)

    def amend(self, step: int, values: Mapping[str, float]) -> None:
        """Add to the row of an earlier step; see `MetricsLog.amend` for what is allowed and raised."""
        self.log.amend(step, values)
        self._show({"step": step, **values})

    def _show(self, row: Mapping[str, float]) -> None:
        for sink in [*self._sinks]:
            try:
                sink.write(row)
            except SinkFailed as error:
                self._sinks.remove(sink)
                self._note(f"{error} (at step {row['step']}); it gets no more rows, {self.log.path.name} has them all")

    def close(self) -> None:
        """Close the sinks; the metrics file needs no closing."""
        for sink in self._sinks:
            try:
                sink.close()
            except SinkFailed as error:
                self._note(f"{error} (closing); {self.log.path.name} has every row")
        self._sinks = []
