"""Weights, KV bytes and plans, against published figures and against checkpoints that exist."""

import dataclasses
import json

import pytest
from safetensors import safe_open

from sglang_trb.checkpoints.memory import (
    CONTEXT_BYTES,
    GIB,
    H100_BYTES,
    KIB,
    MemoryPlan,
    ModelMemory,
    model_memory,
    plan,
)
from sglang_trb.errors import InvalidParameter
from sglang_trb.footprint import GROUP_BYTES, GROUP_MATRICES, ROW_BYTES, RUNNING_REQUESTS, step_bytes
from tests.pairs import build_pair

QWEN3 = {  # parameters (tied matrices counted once), KV bytes of a token in bfloat16
    "Qwen/Qwen3-0.6B-Base": (596_049_920, 112 * KIB),
    "Qwen/Qwen3-1.7B-Base": (1_720_574_976, 112 * KIB),
    "Qwen/Qwen3-4B": (4_022_468_096, 144 * KIB),
    "Qwen/Qwen3-8B": (8_190_735_360, 144 * KIB),
}
SMALL = MemoryPlan(ModelMemory("s", 5, 10, 2), ModelMemory("t", 50, 100, 3), 4, CONTEXT_BYTES + 200, 0.75)


@pytest.mark.parametrize("name", QWEN3)
def test_qwen3(name):
    parameters, kv_bytes = QWEN3[name]
    assert model_memory(name) == ModelMemory(name, parameters, 2 * parameters, kv_bytes)


def test_weights_are_those_of_the_checkpoint():
    folder = build_pair("plain").teacher
    with safe_open(folder / "model.safetensors", "pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 (no mapping)
    found = model_memory(folder, dtype="float32")
    assert found.weight_bytes == sum(tensor.nbytes for tensor in tensors)
    assert found.parameters == sum(tensor.numel() for tensor in tensors)
    assert found.kv_bytes_per_token == 2 * 3 * 2 * 16 * 4  # keys and values, layers, heads, head dimension, bytes


def test_a_float32_checkpoint_is_served_in_half_precision_unless_told_otherwise():
    folder = build_pair("plain").student
    half, full = model_memory(folder), model_memory(folder, dtype="float32")
    assert (2 * half.weight_bytes, 2 * half.kv_bytes_per_token) == (full.weight_bytes, full.kv_bytes_per_token)


def test_kv_cache_precision_is_independent_of_the_weights():
    assert model_memory("Qwen/Qwen3-8B", kv_cache_dtype="fp8_e4m3").kv_bytes_per_token == 72 * KIB


def test_tensor_parallel_ranks_split_matrices_and_repeat_kv_heads():
    one, two, sixteen = (model_memory("Qwen/Qwen3-8B", tensor_parallel=n) for n in (1, 2, 16))
    vectors = 2 * (36 * (2 * 4096 + 2 * 128) + 4096)  # norms, bytes
    assert two.weight_bytes == (one.weight_bytes - vectors) // 2 + vectors
    assert two.kv_bytes_per_token == one.kv_bytes_per_token // 2
    assert sixteen.kv_bytes_per_token == one.kv_bytes_per_token // 8  # eight KV heads: two ranks hold the same one
    kv_weights = 36 * 2 * 4096 * 8 * 128 * 2
    assert sixteen.weight_bytes == (one.weight_bytes - vectors - kv_weights) // 16 + kv_weights // 8 + vectors


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"]}, "full attention"),
        ({"kv_lora_rank": 512}, "full attention"),
        ({"model_type": "no-such-model"}, "architecture"),
    ],
)
def test_models_with_another_cache_are_refused(tmp_path, change, field):
    config = json.loads((build_pair("plain").student / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InvalidParameter, match=field):
        model_memory(tmp_path)


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(InvalidParameter, match=r"a checkpoint with a config\.json"):
        model_memory(tmp_path)


def test_a_local_folder_wins_over_a_shipped_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen").mkdir()
    (tmp_path / "Qwen" / "Qwen3-8B").symlink_to(build_pair("plain").student)
    assert model_memory("Qwen/Qwen3-8B").parameters < 1_000_000


def test_equations_4_to_6():
    assert SMALL.student_bytes(7) == 10 + 7 * 2
    assert SMALL.teacher_bytes(7) == 100 + 7 * 3
    assert SMALL.blended_bytes(7) == SMALL.student_bytes(7) + SMALL.teacher_bytes(7)


def test_tokens_are_what_the_budget_leaves_after_the_weights():
    assert SMALL.static_bytes == 150
    assert SMALL.tokens == (150 - 110) // 5 == 8
    assert SMALL.pool_bytes == 40


@pytest.mark.parametrize(("limit", "tokens"), [(3, 3), (100, 8)])
def test_max_total_tokens_caps_the_pool(limit, tokens):
    assert dataclasses.replace(SMALL, max_total_tokens=limit).tokens == tokens


def test_a_pool_without_a_fraction_has_the_whole_device():
    assert dataclasses.replace(SMALL, mem_fraction=None).tokens == (200 - 110) // 5


@pytest.mark.parametrize(("context_length", "fits"), [(8, True), (9, False)])
def test_a_plan_fits_when_one_whole_sequence_does(context_length, fits):
    assert dataclasses.replace(SMALL, context_length=context_length).fits is fits


def test_weights_beyond_the_budget_leave_no_tokens():
    plan = dataclasses.replace(SMALL, mem_fraction=0.5)
    assert plan.tokens == 0 and not plan.fits
    assert "0 tokens" in plan.render()


OPTIONS = {
    "model_path": "Qwen/Qwen3-1.7B-Base",
    "speculative_draft_model_path": "Qwen/Qwen3-8B",
    "context_length": 9216,
    "mem_fraction_static": 0.84,
}


def test_the_plan_of_a_configuration():
    found = plan(OPTIONS | {"dtype": "bfloat16"}, H100_BYTES)
    weights = 2 * (QWEN3["Qwen/Qwen3-1.7B-Base"][0] + QWEN3["Qwen/Qwen3-8B"][0])
    assert found.weight_bytes == weights
    assert found.tokens == (int(0.84 * (H100_BYTES - GIB)) - weights) // (256 * KIB)
    assert plan(OPTIONS | {"tp_size": 2}, H100_BYTES).kv_bytes_per_token == 128 * KIB


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_path": None}, "model_path: got None"),
        ({"context_length": None}, "context_length: got None"),
        ({"context_length": "long"}, "context_length: got 'long'; allowed: an integer >= 1"),
        ({"tp_size": 0}, "tp_size: got 0"),
        ({"mem_fraction_static": None}, "mem_fraction_static: got None; allowed: .* or for max_total_tokens"),
        ({"mem_fraction_static": 84}, r"mem_fraction_static: got 84; allowed: a number in \(0, 1]"),
        ({"quantization": "fp8"}, "quantization: got 'fp8'"),
        ({"dtype": "int8"}, "dtype: got 'int8'; allowed: auto, float32"),
        ({"kv_cache_dtype": "int4"}, "kv_cache_dtype: got 'int4'"),
    ],
)
def test_a_configuration_that_cannot_be_planned(change, message):
    with pytest.raises(InvalidParameter, match=message):
        plan(OPTIONS | change, H100_BYTES)


def test_the_rendered_table_is_aligned_and_in_powers_of_two():
    lines = plan(OPTIONS, H100_BYTES).render().splitlines()
    columns = [line.index("GiB") for line in lines[4:]]
    assert len(set(columns)) == 1
    assert lines[1].split()[:2] == ["student", "Qwen3-1.7B-Base"]
    assert lines[3].split()[-4:] == ["256.0", "KiB", "2.25", "GiB"]
    assert max(map(len, lines)) <= 116


def test_a_step_is_in_the_plan_and_must_fit_beside_weights_and_pool():
    found = plan(OPTIONS | {"max_running_requests": 64}, H100_BYTES)
    assert found.step_bytes == step_bytes(64, 151_936, "cuda") and found.fits
    assert plan(OPTIONS, H100_BYTES).step_bytes == step_bytes(RUNNING_REQUESTS, 151_936, "cuda")
    assert not plan(OPTIONS | {"max_running_requests": 4096}, H100_BYTES).fits
    assert not plan(OPTIONS | {"mem_fraction_static": 0.97}, H100_BYTES).fits


def test_a_steps_memory_is_bounded_in_groups_and_grows_with_the_rows_beside_them():
    vocab = 151_936
    few, many, more = (step_bytes(rows, vocab, "cuda") for rows in (147, 1000, 2000))
    assert more - many == 1000 * vocab * ROW_BYTES
    assert few <= GROUP_BYTES + 147 * vocab * ROW_BYTES
    assert step_bytes(64, vocab, "cpu") == 64 * vocab * ROW_BYTES + vocab * 8 * GROUP_MATRICES
