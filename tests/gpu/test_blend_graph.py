"""`blend_step` in a CUDA graph: captured once, replayed under other budgets, seeds and logits."""

import dataclasses

import pytest
import torch

from sglang_trb.blend import StopAlignment, blend_step
from sglang_trb.blend.types import OK, STUDENT_NOT_FINITE
from sglang_trb.wire.params import Rule
from tests.blend_rows import Row, controls, llm_like

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

VOCAB = 151_936
ALIGNMENT = StopAlignment((3,), (5, 3), 3)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
"""Float64 sums in another order, rounded to float32; beta is ill-conditioned where the log-ratio is nearly constant."""

RULES = [
    {"rule": Rule.TRUST_REGION, "epsilon": 0.01},
    {"rule": Rule.TRUST_REGION, "epsilon": 0.2},
    {"rule": Rule.STUDENT},
    {"rule": Rule.TEACHER},
    {"rule": Rule.SKD, "skd_top_k": 15, "skd_temperature": 0.6},
    {"rule": Rule.MIXTURE, "mixture_alpha": 0.2},
    {"rule": Rule.TRUST_REGION, "epsilon": 0.01, "top_k": 20},
    {"rule": Rule.STUDENT, "top_p": 0.9},
    {"rule": Rule.TRUST_REGION, "epsilon": 0.01, "greedy": True},
]


def inputs(seed, factor=1.0, **flags):
    """Logits and controls of a step on the CPU; other seeds and budgets by ``seed`` and ``factor``."""
    student_BV, teacher_BV = llm_like(len(RULES), VOCAB, seed=seed)
    rows = [Row(**rule, seed=100 * seed + i, position=seed) for i, rule in enumerate(RULES)]
    rows = [dataclasses.replace(row, epsilon=row.epsilon * factor) for row in rows]
    return student_BV.bfloat16(), teacher_BV.bfloat16(), controls(rows, need_support=True, **flags)


def on_gpu(student_BV, teacher_BV, rows):
    return student_BV.cuda(), teacher_BV.cuda(), rows.map(torch.Tensor.cuda)


def overwrite(target, source):
    for old, new in zip(target[:2], source[:2], strict=True):
        old.copy_(new)
    sources: list[torch.Tensor] = []
    source[2].map(lambda column: sources.append(column) or column)
    target[2].map(lambda column: column.copy_(sources.pop(0)))


def check_same(left, right, rows=slice(None)):
    for name, value in left.tensors().items():
        other = right.tensors()[name]
        if name == "student's support, ids":  # equal logits may change places
            continue
        if value.is_floating_point():
            torch.testing.assert_close(
                value[rows].cpu(), other[rows].cpu(), **TOLERANCE, msg=lambda m, n=name: f"{n}: {m}"
            )
        else:
            assert torch.equal(value[rows].cpu(), other[rows].cpu()), name


@pytest.fixture
def captured():
    """Static inputs, the graph and its static output."""
    static = on_gpu(*inputs(seed=0))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            blend_step(*static, ALIGNMENT)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = blend_step(*static, ALIGNMENT)
    return static, graph, output


def test_replays_agree_with_eager_and_with_the_cpu(captured):
    static, graph, output = captured
    tokens = []
    for seed, factor in ((0, 1.0), (1, 1.0), (2, 0.1), (3, 0.0), (4, 30.0)):
        fresh = inputs(seed, factor)
        overwrite(static, fresh)
        graph.replay()
        torch.cuda.synchronize()
        check_same(output, blend_step(*on_gpu(*fresh), ALIGNMENT))
        check_same(output, blend_step(*fresh, ALIGNMENT))
        assert output.error_B.eq(OK).all()
        budget_B = fresh[2].settings["epsilon"].cuda() * (1 + 1e-4)
        blended_B = fresh[2].rule_B.cuda() == static[2].rule_B[0]
        assert output.record.kl[blended_B].le(budget_B[blended_B]).all()
        tokens.append(output.token_ids_B.tolist())
    assert len({tuple(row) for row in tokens}) == len(tokens)


def test_only_the_seed_changes_the_draw(captured):
    static, graph, output = captured
    seen = []
    for seed in (1, 2, 1):
        static[2].seed_B.fill_(seed)
        graph.replay()
        torch.cuda.synchronize()
        seen.append((output.token_ids_B.clone(), output.record.beta.clone()))
    assert torch.equal(seen[0][0], seen[2][0]) and not torch.equal(seen[0][0], seen[1][0])
    torch.testing.assert_close(seen[0][1][:3], seen[1][1][:3], rtol=0, atol=0)


def test_a_bad_row_in_a_replay_stays_alone(captured):
    static, graph, output = captured
    fresh = inputs(seed=5)
    fresh[0][2, 7] = float("nan")
    overwrite(static, fresh)
    graph.replay()
    torch.cuda.synchronize()
    assert output.error_B.tolist() == [STUDENT_NOT_FINITE if i == 2 else OK for i in range(len(RULES))]
    check_same(output, blend_step(*on_gpu(*inputs(seed=5)), ALIGNMENT), [0, 1, 3, 4, 5, 6, 7])


FUSED = [rule for rule in RULES if not Row(**rule).unfused]
FUSED_TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
"""docs/methods.md allows a KL, and so a beta, to differ by as much."""


def fused_inputs(seed, factor=1.0, backend="triton"):
    """As `inputs`, of the rules that a fused step knows."""
    student_BV, teacher_BV = (x.bfloat16().cuda() for x in llm_like(len(FUSED), VOCAB, seed=seed))
    rows = [Row(**rule, seed=100 * seed + i, position=seed) for i, rule in enumerate(FUSED)]
    rows = [dataclasses.replace(row, epsilon=row.epsilon * factor) for row in rows]
    flags = {"need_support": True, "need_teacher_support": True, "any_temperature": False}
    return student_BV, teacher_BV, controls(rows, backend=backend, **flags).map(torch.Tensor.cuda)


def test_the_fused_step_replays_and_agrees_with_torch():
    static = fused_inputs(seed=0)
    blend_step(*static, ALIGNMENT)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = blend_step(*static, ALIGNMENT)
    for seed, factor in ((0, 1.0), (1, 1.0), (2, 0.1), (3, 0.0), (4, 30.0)):
        overwrite(static, fused_inputs(seed, factor))
        graph.replay()
        torch.cuda.synchronize()
        for name, value in blend_step(*fused_inputs(seed, factor), ALIGNMENT).tensors().items():
            assert torch.equal(output.tensors()[name], value), name
        plain = blend_step(*fused_inputs(seed, factor, backend="torch"), ALIGNMENT)
        assert output.error_B.eq(OK).all()
        for name in ("beta", "kl", "student_entropy", "teacher_entropy"):
            torch.testing.assert_close(
                output.record.named()[name],
                plain.record.named()[name],
                **FUSED_TOLERANCE,
                msg=lambda m, n=name: f"{n}: {m}",
            )
        assert torch.equal(
            output.student_support.student_logprob.argmax(1), plain.student_support.student_logprob.argmax(1)
        )


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_eager_draws_without_looking_at_the_device(backend):
    """Any synchronisation of the host raises."""
    static = on_gpu(*inputs(seed=0, backend=backend))
    blend_step(*static, ALIGNMENT)  # stop ids are copied to the device once
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        blend_step(*static, ALIGNMENT)
    finally:
        torch.cuda.set_sync_debug_mode("default")
