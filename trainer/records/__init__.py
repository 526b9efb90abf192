"""What a run records: one row an optimiser step, in ``metrics.jsonl``, copied to TensorBoard and wandb.

`fields` says what a row holds; `evaluations` what was measured apart from the run.
"""

from trainer.records import fields
from trainer.records.evaluations import EVALUATIONS, Evaluation, read_evaluations, write_evaluation
from trainer.records.fields import undeclared
from trainer.records.files import METRICS_FILE, SETTINGS_FILE, read_settings, write_settings
from trainer.records.memory import MEMORY_FILE, PairMemory, ServerMemory, read_memory, write_memory
from trainer.records.metrics import MetricsLog, RecordsBroken, Row, curve, read_rows
from trainer.records.run import RunRecords
from trainer.records.scores import ProblemScores, read_scores, write_scores
from trainer.records.sinks import Sink, SinkFailed, SinkUnavailable, TensorBoardSink, WandbSink

__all__ = [
    "EVALUATIONS",
    "MEMORY_FILE",
    "METRICS_FILE",
    "SETTINGS_FILE",
    "Evaluation",
    "MetricsLog",
    "PairMemory",
    "ProblemScores",
    "RecordsBroken",
    "Row",
    "RunRecords",
    "ServerMemory",
    "Sink",
    "SinkFailed",
    "SinkUnavailable",
    "TensorBoardSink",
    "WandbSink",
    "curve",
    "fields",
    "read_evaluations",
    "read_memory",
    "read_rows",
    "read_scores",
    "read_settings",
    "undeclared",
    "write_evaluation",
    "write_memory",
    "write_scores",
    "write_settings",
]
