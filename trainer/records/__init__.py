"""What a run records: one row an optimiser step, in ``metrics.jsonl``, copied to TensorBoard and wandb.

A row says what update number ``step`` did: ``step`` counts completed updates, so the first update is step 1 and was
made from the rollouts of k = 0 (METHODS section 2). Row 0, if there is one, holds the evaluation of the untrained
student. A value that a step did not measure is left out of its row.

| field | unit | meaning |
|---|---|---|
| ``train/loss``, ``train/grad_norm``, ``train/lr`` | | of the update; the norm before clipping |
| ``rollout/epsilon`` | nats | the budget ε_k per token |
| ``rollout/mean_beta`` | 0–1 | mean over tokens of the teacher's exponent |
| ``rollout/mean_kl``, ``rollout/sum_kl`` | nats | KL(μ‖student): mean over tokens; mean over rollouts of the sum |
| ``rollout/reverse_kl`` | nats | KL(student‖teacher) over the support, mean over tokens |
| ``rollout/student_entropy``, ``rollout/teacher_entropy`` | nats | mean over tokens |
| ``rollout/support_mass_student``, ``rollout/support_mass_teacher`` | 0–1 | probability on the student's top 16 |
| ``rollout/response_length`` | tokens | mean over rollouts |
| ``rollout/finished_share`` | 0–1 | rollouts that ended with a stop token |
| ``rollout/reward`` | 0–1 | share of verified answers |
| ``rollout/tokens_per_s`` | 1/s | generated, by the wall clock |
| ``drift/mean_abs``, ``drift/max_abs`` | nats | \\|trainer − server\\| student log-probability of drawn tokens |
| ``time/rollout_s``, ``time/train_s``, ``time/push_s``, ``time/eval_s`` | s | by the wall clock |
| ``eval/<benchmark>/pass_at_1``, ``…_low``, ``…_high`` | 0–1 | of the student after the update, with its interval |
"""

from trainer.records.files import METRICS_FILE, SETTINGS_FILE, read_settings, write_settings
from trainer.records.metrics import MetricsLog, RecordsBroken, Row, curve, read_rows
from trainer.records.run import RunRecords
from trainer.records.sinks import Sink, SinkFailed, SinkUnavailable, TensorBoardSink, WandbSink

__all__ = [
    "METRICS_FILE",
    "SETTINGS_FILE",
    "MetricsLog",
    "RecordsBroken",
    "Row",
    "RunRecords",
    "Sink",
    "SinkFailed",
    "SinkUnavailable",
    "TensorBoardSink",
    "WandbSink",
    "curve",
    "read_rows",
    "read_settings",
    "write_settings",
]
