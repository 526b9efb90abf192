"""Log-probabilities of a few tokens per position, without the logits of all positions ever existing.

The distribution is the aligned one at temperature 1 (docs/methods.md#stop-id-alignment): ids beyond the tokenizer and
the stop ids of the teacher alone are left out, the student's stop ids are one event at the canonical id.

Legend: _N positions, _C positions of a chunk, _H hidden size, _V valid vocabulary, _K asked ids.
"""

from __future__ import annotations

from typing import Any

import torch

from sglang_trb.pair.pair import Pair

DEFAULT_CHUNK = 256


def gathered_log_probs(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    ids_NK: torch.Tensor,
    pair: Pair,
    chunk: int = DEFAULT_CHUNK,
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(id) = h·W[id] - logsumexp(h Wᵀ), aligned.

    Args:
        hidden_NH: last hidden states, float32, bfloat16 or float64.
        weight_VH: the output head, of the same dtype; at least ``pair.vocab_size`` rows.
        ids_NK: int64, each >= 0.
        chunk: positions whose logits exist at a time.

    Returns:
        log_probs_NK in nats, float32 (float64 for float64 inputs), differentiable in ``hidden_NH`` and ``weight_VH``;
        -inf for ids that have no probability (masked by alignment, or beyond the pair), and whatever gradient
        arrives there, NaN included, counts 0. entropy_N, nats, without gradient. Logits are recomputed
        in the backward pass: the memory is that of one chunk's.
    """
    assert len(hidden_NH) == len(ids_NK), f"{len(hidden_NH)} positions, ids for {len(ids_NK)}"
    return _GatheredLogProbs.apply(hidden_NH, weight_VH, ids_NK, pair, chunk)


class _GatheredLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        ids_NK: torch.Tensor,
        pair: Pair,
        chunk: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = _working_dtype(hidden_NH)
        log_probs_NK = torch.empty(ids_NK.shape, dtype=dtype, device=hidden_NH.device)
        log_total_N, log_stop_N, entropy_N = (log_probs_NK.new_empty(len(hidden_NH)) for _ in range(3))
        is_stop_NK = ids_NK == pair.alignment.canonical_id
        impossible_NK = _impossible(ids_NK, pair)
        ids_NK = ids_NK.masked_fill(impossible_NK, 0)  # any id that can be looked up
        for rows in _chunks(len(hidden_NH), chunk):
            logits_CV = _logits(hidden_NH[rows], weight_VH, pair)
            log_stop_C = logits_CV[:, list(pair.alignment.student_ids)].logsumexp(1)
            log_total_C = logits_CV.logsumexp(1)
            chosen_CK = logits_CV.gather(1, ids_NK[rows])
            chosen_CK = torch.where(is_stop_NK[rows], log_stop_C[:, None], chosen_CK)
            log_probs_NK[rows] = chosen_CK - log_total_C[:, None]
            log_total_N[rows], log_stop_N[rows] = log_total_C, log_stop_C
            entropy_N[rows] = _entropy(logits_CV, log_total_C, log_stop_C, pair)
        log_probs_NK.masked_fill_(impossible_NK, float("-inf"))
        ctx.save_for_backward(hidden_NH, weight_VH, ids_NK, is_stop_NK, impossible_NK, log_total_N, log_stop_N)
        ctx.pair, ctx.chunk = pair, chunk
        ctx.mark_non_differentiable(entropy_N)
        return log_probs_NK, entropy_N

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_NH, weight_VH, ids_NK, is_stop_NK, impossible_NK, log_total_N, log_stop_N = ctx.saved_tensors
        pair: Pair = ctx.pair
        gradient_NK = gradients[0].masked_fill(impossible_NK, 0.0)
        of_stop_N1 = (gradient_NK * is_stop_NK).sum(1, keepdim=True)
        of_others_NK = gradient_NK.masked_fill(is_stop_NK, 0.0)
        hidden_gradient_NH = torch.zeros_like(hidden_NH)
        weight_gradient_VH = torch.zeros_like(weight_VH, dtype=log_total_N.dtype)
        for rows in _chunks(len(hidden_NH), ctx.chunk):
            logits_CV = _logits(hidden_NH[rows], weight_VH, pair)
            stops = logits_CV[:, list(pair.alignment.student_ids)]
            within_stop = (stops - log_stop_N[rows, None]).exp()  # the student's stop ids share their event
            gradient_CV = logits_CV.sub_(log_total_N[rows, None]).exp_()
            gradient_CV.mul_(-gradient_NK[rows].sum(1, keepdim=True))
            gradient_CV.scatter_add_(1, ids_NK[rows], of_others_NK[rows])
            gradient_CV[:, list(pair.alignment.student_ids)] += of_stop_N1[rows] * within_stop
            hidden_gradient_NH[rows] = gradient_CV.to(weight_VH.dtype) @ weight_VH[: pair.vocab_size]
            weight_gradient_VH[: pair.vocab_size].addmm_(gradient_CV.t(), hidden_NH[rows].to(gradient_CV.dtype))
        return hidden_gradient_NH, weight_gradient_VH.to(weight_VH.dtype), None, None, None


def _logits(hidden_CH: torch.Tensor, weight_VH: torch.Tensor, pair: Pair) -> torch.Tensor:
    """Logits of the valid ids in the working precision, -inf at strangers."""
    weight_VH = weight_VH[: pair.vocab_size]
    if hidden_CH.dtype == torch.bfloat16 and hidden_CH.is_cuda:
        logits_CV = torch.mm(hidden_CH, weight_VH.t(), out_dtype=torch.float32)
    else:
        dtype = _working_dtype(hidden_CH)
        logits_CV = hidden_CH.to(dtype) @ weight_VH.to(dtype).t()
    if list(pair.alignment.teacher_only_ids):
        logits_CV[:, list(pair.alignment.teacher_only_ids)] = float("-inf")
    return logits_CV


def _impossible(ids_NK: torch.Tensor, pair: Pair) -> torch.Tensor:
    masked = torch.tensor(pair.alignment.masked_ids, device=ids_NK.device, dtype=ids_NK.dtype)
    return torch.isin(ids_NK, masked) | (ids_NK >= pair.vocab_size)


def _entropy(logits_CV: torch.Tensor, log_total_C: torch.Tensor, log_stop_C: torch.Tensor, pair: Pair) -> torch.Tensor:
    """Entropy of the aligned distribution; destroys the logits."""
    log_probs_CV = logits_CV.sub_(log_total_C[:, None])
    log_probs_CV[:, list(pair.alignment.student_ids)] = float("-inf")
    log_probs_CV[:, pair.alignment.canonical_id] = log_stop_C - log_total_C
    floored_CV = log_probs_CV.clamp_(min=-1e4)  # 0 log 0 = 0: the exponential of the floor is 0
    return -floored_CV.exp().mul_(floored_CV).sum(1)


def _working_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _chunks(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]
