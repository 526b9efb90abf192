"""The update: batches, the student, DeepSpeed, checkpoints."""
