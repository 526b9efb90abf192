"""Attention on a CPU, a whole batch at a time.

SGLang's own (`TorchNativeAttnBackend`) takes the requests of a batch one after another in every layer, and in a prefill
computes the queries of the cached prefix again. Here requests of like length are taken together: one gather of their
keys and values and one masked ``scaled_dot_product_attention`` a layer. What a step needs for that, slots and masks, is
made once a step, for all layers.

Paths in comments are inside ``sglang/srt``. Shapes: B requests of a group, Q new tokens and L tokens in all of its
longest; H heads of D numbers; T new tokens of the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from sglang.srt.layers.attention.attention_registry import register_attention_backend
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from torch.nn.functional import scaled_dot_product_attention

from sglang_trb.engine.cpu.platform import ATTENTION_BACKEND

_WORTH_A_GROUP = 256
"""Padded keys that a group of its own must save: below this, a call of its own costs more than the padding."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Group:
    """Requests that one call takes.

    Attributes:
        slots_BL: where their keys and values lie. Past a request's end, its own first slot: never another's, whose
            values may be NaN, which a mask does not keep out of a product.
        mask: [B, 1, Q, L] or [B, 1, 1, L], 0 or −inf, added to the scores; None: all is seen, or what is causal.
        causal: whether query i sees the keys 0 … i.
        queries_BQ: which of the batch's new tokens are the queries; past a request's end, any. None: all of them, in
            their order.
        answers: of the B·Q answers those that are of a token, and which token of the batch that is; None: all, in
            their order.
    """

    slots_BL: torch.Tensor
    mask: torch.Tensor | None
    causal: bool
    queries_BQ: torch.Tensor | None
    answers: tuple[torch.Tensor, torch.Tensor] | None


class BatchedAttention(TorchNativeAttnBackend):
    """SGLang's attention in torch, for all requests of a batch that are of like length at once.

    A layer with a sliding window, and one that sees an encoder's tokens, is left to SGLang's own.
    """

    groups: tuple[_Group, ...] = ()
    batch_size = 0

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Group the batch's requests, for all layers of this forward."""
        super().init_forward_metadata(forward_batch)
        total = forward_batch.seq_lens.tolist()
        new = [1] * len(total)
        if not forward_batch.forward_mode.is_decode_or_idle():
            new = forward_batch.extend_seq_lens.tolist()
        slots = self.req_to_token_pool.req_to_token
        self.groups = tuple(_groups(new, total, forward_batch.req_pool_indices, slots))

    def forward_extend(self, q, k, v, layer, forward_batch, save_kv_cache=True):
        """New tokens of every request, each with all before it."""
        return self._forward(super().forward_extend, q, k, v, layer, forward_batch, save_kv_cache)

    def forward_decode(self, q, k, v, layer, forward_batch, save_kv_cache=True):
        """One new token of every request."""
        return self._forward(super().forward_decode, q, k, v, layer, forward_batch, save_kv_cache)

    def _forward(self, loop, q, k, v, layer: RadixAttention, forward_batch: ForwardBatch, save_kv_cache: bool):
        if not _is_plain(layer) or self.use_sliding_window_kv_pool:
            return loop(q, k, v, layer, forward_batch, save_kv_cache)
        pool = self.token_to_kv_pool
        if save_kv_cache and k is not None and v is not None:
            pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, None), k, v)
        keys, values = pool.get_key_buffer(layer.layer_id), pool.get_value_buffer(layer.layer_id)
        query_THD = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        output_THD = query_THD.new_empty(len(query_THD), layer.tp_q_head_num, layer.v_head_dim)
        for group in self.groups:
            _attend(group, query_THD, keys, values, output_THD, layer.scaling)
        return output_THD.view(len(query_THD), -1)

    def support_triton(self) -> bool:
        """None of SGLang's Triton kernels runs here."""
        return False


@register_attention_backend(ATTENTION_BACKEND)
def _make(runner) -> BatchedAttention:
    return BatchedAttention(runner)


def _is_plain(layer: RadixAttention) -> bool:
    window = layer.sliding_window_size
    return (
        not layer.is_cross_attention
        and layer.attn_type is not AttentionType.ENCODER_ONLY
        and (window is None or window < 0)
    )


def _attend(group: _Group, query_THD, keys, values, output_THD, scale: float) -> None:
    """Attention of a group's queries; writes their answers into ``output_THD``."""
    B, L = group.slots_BL.shape
    all_THD = query_THD if group.queries_BQ is None else query_THD[group.queries_BQ]
    query_BQHD = all_THD.view(B, -1, *query_THD.shape[1:])
    Q, H, D = query_BQHD.shape[1:]
    slots = group.slots_BL.flatten()
    key_BKLD, value_BKLD = (
        cache.index_select(0, slots).to(query_THD.dtype).view(B, L, *cache.shape[1:]).transpose(1, 2)
        for cache in (keys, values)
    )
    K = key_BKLD.shape[1]
    # Of one token, query heads that share a key head are its queries: nothing is repeated.
    query_BHQD = query_BQHD.view(B, K, H // K, D) if Q == 1 else query_BQHD.transpose(1, 2)
    answer_BHQD = scaled_dot_product_attention(
        query_BHQD, key_BKLD, value_BKLD, group.mask, is_causal=group.causal, scale=scale, enable_gqa=Q > 1 and K < H
    )
    if Q > 1:
        answer_BHQD = answer_BHQD.transpose(1, 2)
    answer = answer_BHQD.reshape(B * Q, H, -1)
    if group.answers is None:
        output_THD.copy_(answer)
    else:
        of, token = group.answers
        output_THD[token] = answer[of]


def _groups(
    new: Sequence[int], total: Sequence[int], pool_indices: torch.Tensor, slots: torch.Tensor
) -> Iterator[_Group]:
    """The batch as groups of requests of like length.

    Args:
        new, total: tokens of each request, new ones and all.
        pool_indices: [B], the request's row of ``slots``.
        slots: [rows, context], where each token's keys and values lie.
    """
    parts = list(_like(new, total))
    starts = torch.tensor([0, *new]).cumsum(0)
    for part in parts:
        whole = len(parts) == 1
        if whole:
            part = list(range(len(new)))  # in the batch's order, so that queries and answers need none
        new_B, total_B = torch.tensor([new[i] for i in part]), torch.tensor([total[i] for i in part])
        Q, L = int(new_B.max()), int(total_B.max())
        key_L, query_Q = torch.arange(L), torch.arange(Q)
        rows = pool_indices if whole else pool_indices[torch.tensor(part)]
        slots_BL = slots[rows, :L].long()
        slots_BL = torch.where(key_L < total_B[:, None], slots_BL, slots_BL[:, :1])
        ragged = int(new_B.min()) < Q
        causal = Q > 1 and bool((new_B == total_B).all())  # what pads lies behind, where no query sees it
        mask = None
        if not causal and (Q > 1 or int(total_B.min()) < L):
            last_BQ = (total_B - new_B)[:, None] + query_Q
            mask = torch.zeros(len(part), 1, Q, L).masked_fill_((key_L > last_BQ[..., None])[:, None], -torch.inf)
        queries_BQ = answers = None
        if ragged or not whole:
            start_B = starts[torch.tensor(part)]
            queries_BQ = start_B[:, None] + torch.minimum(query_Q, new_B[:, None] - 1)
            real = (query_Q < new_B[:, None]).flatten().nonzero().squeeze(1)
            answers = real, queries_BQ.flatten()[real]
        yield _Group(slots_BL, mask, causal, queries_BQ, answers)


def _like(new: Sequence[int], total: Sequence[int]) -> Iterator[list[int]]:
    """Indices of requests in groups: without a cached prefix or with one, each longest first.

    A group ends where its padding, in (queries × keys), would cost more than a call of its own for the rest.
    """
    order = sorted(range(len(new)), key=lambda i: (total[i] > new[i], new[i], total[i]), reverse=True)
    part: list[int] = []
    wasted = 0
    for i in order:
        if part:
            first = part[0]
            wasted += new[first] * max(total[first], total[i]) - new[i] * total[i]
            if wasted > _WORTH_A_GROUP or (total[i] > new[i]) != (total[first] > new[first]):
                yield part
                part, wasted = [], 0
        part.append(i)
    if part:
        yield part
