"""Two checkpoints as one pair: do they share a vocabulary, which ids end an answer, is the teacher sound."""
