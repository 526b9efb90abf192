"""Attention of a whole batch on a CPU, against its definition, a request and a query at a time in float64."""

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from sglang_trb.engine.cpu import attention
from sglang_trb.engine.cpu.attention import BatchedAttention

SLOTS, CONTEXT, REQUESTS = 4096, 600, 40
LENGTHS = {
    "one": [(0, 7)],
    "one with a prefix": [(11, 7)],
    "equal": [(0, 9)] * 5,
    "ragged": [(0, 3), (0, 17), (0, 1), (0, 9)],
    "ragged, with prefixes": [(5, 3), (400, 17), (1, 1), (33, 9)],
    "prompts again": [(30 + i, 1) for i in range(12)],
    "everything": [(0, 300), (0, 5), (520, 1), (7, 40), (0, 1), (64, 64), (1, 2)],
}


class Pool:
    """Keys and values of random tokens; what belongs to no request is NaN, as a failed request may leave it."""

    def __init__(self, heads, dim, dtype):
        self.keys, self.values = (torch.full((SLOTS, heads, dim), torch.nan, dtype=dtype) for _ in range(2))

    def set_kv_buffer(self, layer, where, k, v):
        for cache, new in ((self.keys, k), (self.values, v)):
            cache[where.loc] = new.view(len(new), *cache.shape[1:]).to(cache.dtype)

    def get_key_buffer(self, layer_id):
        return self.keys

    def get_value_buffer(self, layer_id):
        return self.values


def make(cls, heads, kv_heads, dim=16, dtype=torch.float32):
    torch.manual_seed(heads)
    runner = SimpleNamespace(
        device="cpu",
        token_to_kv_pool=Pool(kv_heads, dim, dtype),
        req_to_token_pool=SimpleNamespace(req_to_token=torch.randint(SLOTS, (REQUESTS, CONTEXT), dtype=torch.int32)),
    )
    layer = SimpleNamespace(
        tp_q_head_num=heads, tp_k_head_num=kv_heads, tp_v_head_num=kv_heads, qk_head_dim=dim, v_head_dim=dim,
        scaling=dim**-0.5, layer_id=0, is_cross_attention=False, attn_type=AttentionType.DECODER,
        sliding_window_size=-1,
    )  # fmt: skip
    return cls(runner), layer


def batch_of(backend, layer, lengths):
    """(forward batch, q, k, v) of requests of (cached, new) tokens; slots are handed out without order."""
    pool, table = backend.token_to_kv_pool, backend.req_to_token_pool.req_to_token
    rows = torch.randperm(REQUESTS)[: len(lengths)]
    free, new_slots = torch.randperm(SLOTS), []
    for row, (cached, new) in zip(rows, lengths, strict=True):
        slots, free = free[: cached + new], free[cached + new :]
        table[row, : cached + new] = slots.int()
        for cache in (pool.keys, pool.values):
            cache[slots[:cached]] = torch.randn(cached, *cache.shape[1:]).to(cache.dtype)
        new_slots.append(slots[cached:])
    total = torch.tensor([cached + new for cached, new in lengths])
    new = torch.tensor([new for _, new in lengths])
    forward_batch = SimpleNamespace(
        forward_mode=ForwardMode.EXTEND,
        req_pool_indices=rows,
        seq_lens=total,
        extend_seq_lens=new.int(),
        extend_prefix_lens=(total - new).int(),
        encoder_lens=None,
        out_cache_loc=torch.cat(new_slots),
    )
    count = int(new.sum())
    q = torch.randn(count, layer.tp_q_head_num * layer.qk_head_dim)
    k, v = (torch.randn(count, layer.tp_k_head_num * layer.qk_head_dim) for _ in range(2))
    return forward_batch, q, k, v


def definition(backend, layer, forward_batch, q):
    """softmax(q·k / √D) v of each new token over all tokens up to it."""
    pool, group = backend.token_to_kv_pool, layer.tp_q_head_num // layer.tp_k_head_num
    answers, at = [], 0
    for row, total, new in zip(
        forward_batch.req_pool_indices, forward_batch.seq_lens, forward_batch.extend_seq_lens, strict=True
    ):
        slots = backend.req_to_token_pool.req_to_token[row, :total].long()
        keys, values = (x[slots].double().repeat_interleave(group, 1) for x in (pool.keys, pool.values))
        for i in range(int(new)):
            seen = int(total - new) + i + 1
            query = q[at].view(-1, layer.qk_head_dim).double()
            scores = torch.einsum("hd,lhd->hl", query, keys[:seen]) * layer.scaling
            answers.append(torch.einsum("hl,lhd->hd", scores.softmax(-1), values[:seen]).flatten())
            at += 1
    return torch.stack(answers)


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (5, 1)], ids=str)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_new_tokens_see_all_before_them(lengths, heads):
    backend, layer = make(BatchedAttention, *heads)
    forward_batch, q, k, v = batch_of(backend, layer, lengths)
    backend.init_forward_metadata(forward_batch)
    answer = backend.forward_extend(q, k, v, layer, forward_batch)
    torch.testing.assert_close(answer.double(), definition(backend, layer, forward_batch, q), atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)], ids=str)
@pytest.mark.parametrize(
    "cached",
    [[5], [9, 9, 9], [1, 30, 2], [599, 1, 2, 3, 598, 4], [16] * 20 + [590]],
    ids=lambda c: f"{len(c)} requests",
)
def test_one_token_a_request(cached, heads):
    backend, layer = make(BatchedAttention, *heads)
    forward_batch, q, k, v = batch_of(backend, layer, [(n, 1) for n in cached])
    forward_batch.forward_mode = ForwardMode.DECODE
    backend.init_forward_metadata(forward_batch)
    answer = backend.forward_decode(q, k, v, layer, forward_batch)
    torch.testing.assert_close(answer.double(), definition(backend, layer, forward_batch, q), atol=3e-6, rtol=1e-5)


def test_a_cache_of_another_dtype():
    backend, layer = make(BatchedAttention, 4, 2, dtype=torch.bfloat16)
    forward_batch, q, k, v = batch_of(backend, layer, [(5, 3), (0, 4)])
    backend.init_forward_metadata(forward_batch)
    answer = backend.forward_extend(q, k, v, layer, forward_batch)
    torch.testing.assert_close(answer.double(), definition(backend, layer, forward_batch, q), atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("change", [{"sliding_window_size": 4}, {"attn_type": AttentionType.ENCODER_ONLY}], ids=str)
def test_other_layers_are_sglangs(change):
    answers = []
    for cls in (BatchedAttention, TorchNativeAttnBackend):
        backend, layer = make(cls, 4, 4)
        vars(layer).update(change)
        forward_batch, q, k, v = batch_of(backend, layer, [(0, 9), (0, 3)])
        backend.init_forward_metadata(forward_batch)
        answers.append(backend.forward_extend(q, k, v, layer, forward_batch))
    assert torch.equal(*answers)


def test_a_group_is_not_padded_by_more_than_a_call_costs():
    total = [600, 590, 580, 40, 38, 30, 12]
    for part in (parts := list(attention._like([1] * 7, total))):
        assert sum(max(total[i] for i in part) - total[j] for j in part) <= attention._WORTH_A_GROUP
    assert sorted(i for part in parts for i in part) == list(range(7)) and len(parts) == 2
    assert len(list(attention._like([1] * 64, list(range(30, 94))))) <= 3, "a call of its own for each would be a loop"
