"""From a step's rollouts to each process's micro-batches.

Every process gets the same number of micro-batches, as ZeRO's collectives need; where there are too few rollouts, some
have none. Sequences of like length come together, so little is padding.

Legend: _B sequences of a micro-batch, _T padded length, _N response tokens of its sequences one after the other,
_K the 16 ids of a support.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sglang_trb.wire.record import SUPPORT_SIZE, Support, TokenStatistics
from trainer.learner.grouping import deal_by_tokens
from trainer.losses import Aggregation, Loss, RolloutStatistics
from trainer.rollouts.rollout import Rollout, RolloutKey


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """Sequences of one forward, and the statistics that came with them.

    Attributes:
        input_ids_BT: int64, prompt and response, padded on the right with 0.
        prompt_lengths_B, response_lengths_B: int64; N is the sum of the latter.
        token_ids_N: int64, the response.
        support_ids_NK: int64, the student's top-16 at rollout time.
        teacher_logprob_NK, rollout_logprob_NK: float32 nats, both models' there.
        teacher_ids_NK, teacher_own_logprob_NK: the same for the teacher's top-16 (its own log-probabilities); None
            where the rollouts came without.
        rollout_logprob_N: float32, the server's student log-probability of each token.
        student_entropy_N, teacher_entropy_N: float32 nats, at rollout time.
        position_weight_N: float32 >= 0, what each position counts in the loss.
    """

    input_ids_BT: torch.Tensor
    prompt_lengths_B: torch.Tensor
    response_lengths_B: torch.Tensor
    token_ids_N: torch.Tensor
    support_ids_NK: torch.Tensor
    teacher_logprob_NK: torch.Tensor
    rollout_logprob_NK: torch.Tensor
    teacher_ids_NK: torch.Tensor | None
    teacher_own_logprob_NK: torch.Tensor | None
    rollout_logprob_N: torch.Tensor
    student_entropy_N: torch.Tensor
    teacher_entropy_N: torch.Tensor
    position_weight_N: torch.Tensor

    @property
    def padding(self) -> int:
        """How many tokens of ``input_ids_BT`` belong to no sequence."""
        return self.input_ids_BT.numel() - int(self.prompt_lengths_B.sum() + self.response_lengths_B.sum())

    def to(self, device: torch.device) -> MicroBatch:
        """The same on a device."""
        moved: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            moved[field.name] = None if value is None else value.to(device, non_blocking=True)
        return MicroBatch(**moved)


@dataclasses.dataclass(frozen=True)
class Weighted:
    """A rollout and what each of its positions counts; float32 [T]."""

    rollout: Rollout
    position_weight_T: np.ndarray

    @property
    def length(self) -> int:
        """Tokens of prompt and response."""
        return len(self.rollout.prompt_ids) + len(self.rollout)


def weighted(loss: Loss, rollouts: Sequence[Rollout]) -> list[Weighted]:
    """The rollouts of a global batch, each with what the loss says that its positions count."""
    statistics = [
        RolloutStatistics(tokens.student_entropy, support.student_logprob, support.teacher_logprob)
        for tokens, support in map(_said, rollouts)
    ]
    return [Weighted(*pair) for pair in zip(rollouts, loss.position_weights(statistics), strict=True)]


def shard_rollouts(
    rollouts: Sequence[Weighted], processes: int, micro_batch_size: int, aggregation: Aggregation = "token_mean"
) -> list[list[list[Weighted]]]:
    """Each process's micro-batches of a number of sequences, as lists; a function of the rollouts alone.

    Args:
        rollouts: of the whole step.
        aggregation: of the loss; what `micro_batch_mean` does to it is in the weights.

    Returns:
        [processes][micro-batches][<= micro_batch_size]. Dealt out in turn: the longest sequences first or, for
        ``micro_batch_mean``, in the order of their keys, so that lengths are mixed in every micro-batch.
    """
    order = sorted(rollouts, key=_key) if aggregation == "micro_batch_mean" else _longest_first(rollouts)
    micro_batches = math.ceil(math.ceil(len(rollouts) / processes) / micro_batch_size)
    shards: list[list[list[Weighted]]] = [[[] for _ in range(micro_batches)] for _ in range(processes)]
    for i, weighted in enumerate(order):
        turn, process = divmod(i, processes)
        shards[process][turn // micro_batch_size].append(weighted)
    return micro_batch_mean(shards) if aggregation == "micro_batch_mean" else shards


def shard_by_tokens(
    rollouts: Sequence[Weighted], processes: int, micro_batch_tokens: int
) -> list[list[list[Weighted]]]:
    """The same of a number of tokens, padding included: `grouping.deal_by_tokens`.

    A mean over all tokens is the same however they are dealt, so the weights stay: those of ``micro_batch_mean`` are of
    `shard_rollouts`.
    """
    order = _longest_first(rollouts)
    dealt = deal_by_tokens([weighted.length for weighted in order], processes, micro_batch_tokens)
    return [[[order[i] for i in part] for part in shard] for shard in dealt]


def micro_batch_mean(shards: Sequence[Sequence[Sequence[Weighted]]]) -> list[list[list[Weighted]]]:
    """Weights that make the mean over all tokens the mean over micro-batches of the mean over their tokens.

    A micro-batch counts by its sequences, over all processes: each of its t tokens counts T s / (S t), with s its
    sequences, S and T the sequences and tokens of all.
    """
    every = [weighted for shard in shards for part in shard for weighted in part]
    tokens_a_sequence = sum(len(weighted.rollout) for weighted in every) / max(len(every), 1)

    def weigh(part: Sequence[Weighted]) -> list[Weighted]:
        scale = np.float32(tokens_a_sequence * len(part) / max(sum(len(weighted.rollout) for weighted in part), 1))
        return [Weighted(weighted.rollout, weighted.position_weight_T * scale) for weighted in part]

    return [[weigh(part) for part in shard] for shard in shards]


def collate(part: Sequence[Weighted], *, teacher_support: bool = False) -> MicroBatch:
    """One micro-batch as tensors; without a rollout it is a single token without a response.

    Args:
        part: its sequences.
        teacher_support: whether the loss needs the teacher's top-16; the rollouts must have it then.
    """
    rollouts = [weighted.rollout for weighted in part]
    sequences = [np.concatenate([r.prompt_ids, r.token_ids_T]) for r in rollouts]
    missing = 0 if rollouts else 1
    sequences += [np.zeros(1, np.int32)] * missing
    longest = max(len(sequence) for sequence in sequences)
    input_ids_BT = np.zeros((len(sequences), longest), np.int64)
    for row, sequence in enumerate(sequences):
        input_ids_BT[row, : len(sequence)] = sequence
    tokens, supports = [_said(r)[0] for r in rollouts], [_said(r)[1] for r in rollouts]
    theirs = [r.teacher_support for r in rollouts if r.teacher_support is not None]
    of_support = (SUPPORT_SIZE,)
    return MicroBatch(
        input_ids_BT=torch.from_numpy(input_ids_BT),
        prompt_lengths_B=torch.tensor([len(r.prompt_ids) for r in rollouts] + [1] * missing),
        response_lengths_B=torch.tensor([len(r) for r in rollouts] + [0] * missing),
        token_ids_N=_joined([r.token_ids_T for r in rollouts], np.int64, ()),
        support_ids_NK=_joined([s.ids for s in supports], np.int64, of_support),
        teacher_logprob_NK=_joined([s.teacher_logprob for s in supports], np.float32, of_support),
        rollout_logprob_NK=_joined([s.student_logprob for s in supports], np.float32, of_support),
        teacher_ids_NK=_joined([s.ids for s in theirs], np.int64, of_support) if teacher_support else None,
        teacher_own_logprob_NK=(
            _joined([s.teacher_logprob for s in theirs], np.float32, of_support) if teacher_support else None
        ),
        rollout_logprob_N=_joined([t.student_logprob for t in tokens], np.float32, ()),
        student_entropy_N=_joined([t.student_entropy for t in tokens], np.float32, ()),
        teacher_entropy_N=_joined([t.teacher_entropy for t in tokens], np.float32, ()),
        position_weight_N=_joined([weighted.position_weight_T for weighted in part], np.float32, ()),
    )


def _longest_first(rollouts: Sequence[Weighted]) -> list[Weighted]:
    return sorted(rollouts, key=lambda weighted: (-weighted.length, _key(weighted)))


def _key(weighted: Weighted) -> RolloutKey:
    return weighted.rollout.key


def _said(rollout: Rollout) -> tuple[TokenStatistics[np.ndarray], Support[np.ndarray]]:
    """What the server said of a rollout that is trained on."""
    assert rollout.tokens is not None and rollout.support is not None, "drawn with trb_return support or more"
    return rollout.tokens, rollout.support


def _joined(arrays: Sequence[np.ndarray], dtype: type, trailing: tuple[int, ...]) -> torch.Tensor:
    joined = np.concatenate(arrays) if arrays else np.zeros((0, *trailing))
    return torch.from_numpy(joined.astype(dtype))
