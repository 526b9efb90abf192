"""The fused step in Triton's interpreter: every rule and column against the definition, hostile rows, its launches."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from sglang_trb import trust_region_blend
from sglang_trb.blend import blend_step, reference
from sglang_trb.blend.fused import launch
from sglang_trb.blend.types import EMPTY_SUPPORT, OK, STUDENT_NOT_FINITE, TEACHER_NOT_FINITE
from sglang_trb.errors import InvalidParameter
from sglang_trb.wire.record import SUPPORT_SIZE
from sglang_trb.wire.rules import Rule
from tests.blend_rows import INF, ONE_STOP, TWO_STOPS, Row, controls, expected, forbid_some, llm_like
from tests.device_watch import DEVICE, DeviceWatch
from tests.hostile_rows import hostile_rows, pairs

NAN = float("nan")
KL_TOLERANCE, BETA_TOLERANCE = 1e-4, 1e-4
"""docs/methods.md: of |ΔKL| / epsilon and |Δbeta| the kinder one counts."""

SUMS = 3e-6
"""Relative. A sum of 151,936 float32 terms, 75 of them within a lane, is off by less, and so is its logarithm."""

ROWS = [
    *[Row(epsilon=epsilon) for epsilon in (0.0, 1e-6, 1e-4, 0.02, 0.5, 100.0, INF)],
    Row(rule=Rule.STUDENT),
    Row(rule=Rule.TEACHER),
    *[Row(epsilon=epsilon, greedy=True) for epsilon in (0.0, 0.3)],
    Row(rule=Rule.TEACHER, greedy=True),
]
UNFUSED = [
    Row(epsilon=0.1, top_p=0.7),
    Row(rule=Rule.SKD, skd_top_k=3),
    Row(rule=Rule.MIXTURE, mixture_alpha=0.3),
    Row(epsilon=1e-9),
    Row(rule=Rule.TEACHER, top_k=3),
]


def check_row(student_V, teacher_V, row, output, i, want=None, alignment=ONE_STOP):
    """Row i of an output against the definition; the policy at the beta that was taken."""
    want = want or expected(student_V, teacher_V, row, alignment)
    record = {name: column[i].item() for name, column in output.record.named().items()}
    law, scale = want.law, 1.0
    if row.rule is Rule.TRUST_REGION and record["beta"] > 0.0:
        law = reference.mu_at(want.p, want.q, record["beta"])
        achieved = reference.kl(law, want.p)
        assert achieved <= row.epsilon * (1 + KL_TOLERANCE)
        close = abs(record["beta"] - want.beta) <= BETA_TOLERANCE
        assert close or achieved >= want.kl - KL_TOLERANCE * min(row.epsilon, want.kl)
        assert record["kl"] == pytest.approx(achieved, rel=KL_TOLERANCE, abs=1e-9)
        both = np.isfinite(want.p) & np.isfinite(want.q)
        scale = 1.0 + np.abs(want.q - want.p, where=both, out=np.zeros_like(want.p)).max()  # beta d is a float32
    else:
        assert record["kl"] == pytest.approx(want.kl, rel=KL_TOLERANCE, abs=1e-6) and record["beta"] == want.beta
    on = np.isfinite(law)
    if output.log_mu_BV is not None:
        log_mu = output.log_mu_BV[i].double().numpy()
        assert np.array_equal(np.isfinite(log_mu), on)
        np.testing.assert_allclose(log_mu[on], law[on], rtol=SUMS, atol=SUMS * scale)
    token = int(output.token_ids_B[i])
    assert output.error_B[i] == OK and on[token]
    assert not row.greedy or law[token] >= law.max() - 1e-9
    assert record["behavior_logprob"] == pytest.approx(law[token], rel=SUMS, abs=SUMS * scale)
    for model, own in (("student", want.student), ("teacher", want.teacher)):
        assert record[f"{model}_logprob"] == pytest.approx(own[token], rel=SUMS, abs=SUMS)
        assert record[f"{model}_entropy"] == pytest.approx(reference.entropy(own), rel=SUMS, abs=SUMS)


def stepped(student_BV, teacher_BV, rows, alignment=ONE_STOP, backend="triton", options=None, **flags):
    asked = controls(rows, backend=backend, **flags)
    return blend_step(student_BV, teacher_BV, asked, alignment, need_log_mu=True, **(options or {}))


def tried(rows):
    return [dataclasses.replace(row, seed=i, position=7 * i) for i, row in enumerate(rows)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("alignment", [ONE_STOP, TWO_STOPS], ids=["one stop", "two stops"])
def test_every_rule(alignment, dtype):
    rows = tried(ROWS + UNFUSED)
    student_BV, teacher_BV = (x.to(dtype) for x in llm_like(len(rows), 200, seed=1))
    output = stepped(student_BV, teacher_BV, rows, alignment)
    plain = stepped(student_BV, teacher_BV, rows, alignment, backend="torch")
    for i, row in enumerate(rows):
        if row.unfused:
            for name, column in output.tensors().items():
                assert torch.equal(column[i], plain.tensors()[name][i]), name
        else:
            check_row(student_BV[i], teacher_BV[i], row, output, i, alignment=alignment)
    assert torch.equal(output.token_ids_B, plain.token_ids_B)
    for name in ("student_masked_mass", "teacher_masked_mass"):
        torch.testing.assert_close(output.record.named()[name], plain.record.named()[name], rtol=SUMS, atol=0)


def test_penalties_masks_and_temperatures():
    rows = tried(dataclasses.replace(row, temperature=(0.3, 1.0, 1.7)[i % 3]) for i, row in enumerate(ROWS))
    student_BV, teacher_BV = llm_like(len(rows), 200, seed=2)
    adjusted_BV = student_BV + torch.randn(student_BV.shape, generator=torch.Generator().manual_seed(0))
    mask_BV = forbid_some(student_BV, seed=5).isneginf()
    adjusted_BV.masked_fill_(mask_BV, -INF)
    options = {"adjusted_student_logits_BV": adjusted_BV, "mask_BV": mask_BV}
    output = stepped(student_BV, teacher_BV, rows, TWO_STOPS, options=options)
    for i, row in enumerate(rows):
        want = expected(student_BV[i], teacher_BV[i], row, TWO_STOPS, adjusted_BV[i], mask_BV[i])
        check_row(student_BV[i], teacher_BV[i], row, output, i, want)


def test_temperatures_alone_and_padding():
    rows = tried(Row(epsilon=0.1, temperature=temperature) for temperature in (1.0, 0.5, 2.0, 1e-3))
    student_BV, teacher_BV = llm_like(4, 100, seed=3)
    padded = [torch.nn.functional.pad(x, (0, 28), value=90.0) for x in (student_BV, teacher_BV)]
    output = stepped(*padded, rows, options={"valid_vocab_size": 100})
    assert output.log_mu_BV.shape == (4, 128) and output.log_mu_BV[:, 100:].isneginf().all()
    output = dataclasses.replace(output, log_mu_BV=output.log_mu_BV[:, :100])
    for i, row in enumerate(rows):
        check_row(student_BV[i], teacher_BV[i], row, output, i)


def test_where_only_one_model_can_draw():
    rows = tried([row for row in ROWS if row.rule is not Rule.TEACHER])
    student_BV, teacher_BV = llm_like(len(rows), 60, seed=4)
    student_BV, teacher_BV = forbid_some(student_BV, 1), forbid_some(teacher_BV, 2)
    output = stepped(student_BV, teacher_BV, rows)
    for i, row in enumerate(rows):
        check_row(student_BV[i], teacher_BV[i], row, output, i)
    beyond = stepped(student_BV[:1], teacher_BV[:1], [Row(rule=Rule.TEACHER)])
    assert beyond.record.kl.item() == INF


@pytest.mark.parametrize("vocab", [1, 2, 17, 5000])
def test_supports(vocab):
    student_BV, teacher_BV = llm_like(3, vocab, seed=7)
    alignment = TWO_STOPS if vocab > 5 else ONE_STOP
    student_BV[0] = student_BV[0].round()  # ties: the lowest id comes first
    rows = tried([Row(epsilon=0.01, temperature=0.5)] * 3)
    output = stepped(student_BV, teacher_BV, rows, alignment, need_support=True, need_teacher_support=True)
    for i, row in enumerate(rows):
        want = expected(student_BV[i], teacher_BV[i], row, alignment)
        for own, support in ((want.student, output.student_support), (want.teacher, output.teacher_support)):
            ids, student_logprob, teacher_logprob = (column[i].numpy() for column in support.columns())
            possible = min(SUPPORT_SIZE, int(np.isfinite(own).sum()))
            assert ids.dtype == np.int32 and len(set(ids.tolist())) == min(SUPPORT_SIZE, vocab)
            assert ids[:possible].tolist() == np.argsort(-own, kind="stable")[:possible].tolist()
            np.testing.assert_allclose(student_logprob, want.student[ids], rtol=SUMS, atol=SUMS)
            np.testing.assert_allclose(teacher_logprob, want.teacher[ids], rtol=SUMS, atol=SUMS)


def test_full_vocabulary_and_the_torch_path_draws_the_same():
    rows = tried([Row(epsilon=0.01), Row(epsilon=1e-4), Row(rule=Rule.TEACHER)])
    student_BV, teacher_BV = (x.bfloat16() for x in llm_like(3, 151_936, seed=4))
    output, plain = (stepped(student_BV, teacher_BV, rows, TWO_STOPS, backend) for backend in ("triton", "torch"))
    for i, row in enumerate(rows):
        check_row(student_BV[i], teacher_BV[i], row, output, i, alignment=TWO_STOPS)
    assert torch.equal(output.token_ids_B, plain.token_ids_B)


def test_errors_are_told_apart_and_stay_alone():
    student_BV, teacher_BV = llm_like(8, 50, seed=11)
    rows = tried([Row(epsilon=0.1)] * 8)
    mask_BV = torch.zeros(8, 50, dtype=torch.bool)
    options = {"adjusted_student_logits_BV": student_BV.clone(), "mask_BV": mask_BV}
    clean = stepped(student_BV, teacher_BV, rows, TWO_STOPS, options=options)
    student_BV[0, 3], student_BV[1, 3], student_BV[2] = NAN, INF, -INF
    teacher_BV[3, 3], teacher_BV[4] = NAN, -INF
    options["adjusted_student_logits_BV"][5, 0] = NAN
    mask_BV[6] = True
    output = stepped(student_BV, teacher_BV, rows, TWO_STOPS, options=options)
    bad = [*[STUDENT_NOT_FINITE] * 3, *[TEACHER_NOT_FINITE] * 2, STUDENT_NOT_FINITE, EMPTY_SUPPORT]
    assert output.error_B.tolist() == [*bad, OK]
    assert output.token_ids_B.ge(0).all() and output.token_ids_B.lt(50).all()
    for name, column in clean.tensors().items():
        assert torch.equal(column[7], output.tensors()[name][7]), name


def test_a_row_is_the_same_in_any_batch():
    rows = tried(ROWS)
    student_BV, teacher_BV = llm_like(len(rows), 300, seed=16)
    batch = stepped(student_BV, teacher_BV, rows)
    for i in (2, 4, 9):
        alone = stepped(student_BV[i : i + 1], teacher_BV[i : i + 1], rows[i : i + 1])
        for name, column in batch.tensors().items():
            assert torch.equal(column[i], alone.tensors()[name][0]), name


def test_peaks_far_apart():
    """The first tile's peak is no guide where a later one is 1,000 nats above; nor is float32, where d spans 1e5."""
    student_BV, teacher_BV = llm_like(3, 66_000, seed=17)
    student_BV[0, 65_800:] += 1000.0
    teacher_BV[1, 65_999] = 1e5
    student_BV[2, :65_536] = -INF
    rows = tried([Row(epsilon=0.5)] * 3)
    output = stepped(student_BV, teacher_BV, rows)
    for i, row in enumerate(rows):
        check_row(student_BV[i], teacher_BV[i], row, output, i)


@pytest.mark.parametrize("shift", [0.0, 20.0, 60.0, 300.0])
def test_tiles_whose_peak_is_not_the_rows(monkeypatch, shift):
    """In a device's tiles, the first of which lies below the others: float32 may not overflow for that."""
    monkeypatch.setattr(launch, "_INTERPRETED_TILE", 512)
    student_BV, teacher_BV, rows = hostile_rows(16, 1200, seed=int(shift))
    student_BV[:, 512:] += shift
    teacher_BV[:, 512:] += shift
    output = stepped(student_BV, teacher_BV, rows)
    for i, row in enumerate(rows):
        check_row(student_BV[i], teacher_BV[i], row, output, i)


@pytest.mark.parametrize("count", [60, pytest.param(5000, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])])
def test_hostile_rows(count):
    for dtype, vocab, share in ((torch.float32, 8, 0.7), (torch.bfloat16, 40, 0.3)):
        student_BV, teacher_BV, rows = hostile_rows(int(share * count), vocab, seed=count)
        student_BV, teacher_BV = student_BV.to(dtype), teacher_BV.to(dtype)
        output = stepped(student_BV, teacher_BV, rows)
        for i, row in enumerate(rows):
            check_row(student_BV[i], teacher_BV[i], row, output, i)
        assert output.passes_B.float().mean() < 8


@settings(max_examples=10, deadline=None)
@given(pairs())
def test_any_logits(logits):
    """Never over the budget, whatever the logits; by the law that was stored."""
    rows = tried(Row(epsilon=epsilon) for epsilon in (1e-4, 0.1, 50.0))
    student_BV, teacher_BV = (x.expand(3, -1) for x in logits)
    output = stepped(student_BV, teacher_BV, rows)
    assert output.error_B.eq(OK).all()
    for i, row in enumerate(rows):
        want = expected(student_BV[i], teacher_BV[i], row)
        achieved = reference.kl(reference.mu_at(want.p, want.q, output.record.beta[i].item()), want.p)
        if output.record.beta[i] > 0:
            assert achieved <= row.epsilon * (1 + KL_TOLERANCE)
        close = abs(output.record.beta[i].item() - want.beta) <= BETA_TOLERANCE
        assert close or achieved >= want.kl - KL_TOLERANCE * row.epsilon
        assert np.isfinite(want.law[int(output.token_ids_B[i])])


def test_the_public_call():
    student_BV, teacher_BV = llm_like(5, 50, seed=12)
    student_BV[1, 0], teacher_BV[2, 3] = NAN, INF
    epsilon_B = torch.tensor([0.01, 0.1, 0.1, 0.0, INF])
    output = trust_region_blend(student_BV, teacher_BV, epsilon_B, backend="triton")
    plain = trust_region_blend(student_BV, teacher_BV, epsilon_B, backend="torch")
    torch.testing.assert_close(output.log_mu_BV, plain.log_mu_BV, rtol=2e-5, atol=2e-5, equal_nan=True)
    torch.testing.assert_close(output.beta_B, plain.beta_B, rtol=KL_TOLERANCE, atol=0, equal_nan=True)
    torch.testing.assert_close(output.kl_B, plain.kl_B, rtol=KL_TOLERANCE, atol=1e-6, equal_nan=True)
    with pytest.raises(InvalidParameter, match=r"float64; allowed: float32"):
        trust_region_blend(student_BV.double(), teacher_BV, epsilon_B, backend="triton")


def test_no_rows():
    output = stepped(torch.empty(0, 50), torch.empty(0, 50), [], need_support=True)
    assert output.token_ids_B.shape == (0,) and output.student_support.ids.shape == (0, SUPPORT_SIZE)


@pytest.mark.parametrize("everything", [False, True], ids=["plain", "everything"])
def test_few_launches_and_no_look_at_the_device(everything):
    rows = controls(tried(ROWS), backend="triton", need_support=everything, need_teacher_support=everything)
    rows = dataclasses.replace(rows, any_temperature=everything).map(lambda x: x.to(DEVICE))
    student_BV, teacher_BV, adjusted_BV = (torch.empty(len(ROWS), 500, device=DEVICE) for _ in range(3))
    options = {"need_log_mu": everything}
    if everything:
        mask_BV = torch.empty(len(ROWS), 500, dtype=torch.bool, device=DEVICE)
        options |= {"adjusted_student_logits_BV": adjusted_BV, "mask_BV": mask_BV}
    blend_step(student_BV, teacher_BV, rows, TWO_STOPS, **options)  # the ids are copied to the device once
    with DeviceWatch() as watch:
        blend_step(student_BV, teacher_BV, rows, TWO_STOPS, **options)
    kernels = {"measure": 2, "draw": 1, "support": 2} if everything else {"measure": 1, "draw": 1}
    assert watch.launches() == kernels


def test_compiled_for_an_h100_nothing_spills():
    """Ahead of time, in a process where Triton compiles; no GPU is needed."""
    code = "import dataclasses, json; from sglang_trb.blend.fused.ahead import compile_all\n"
    code += "print(json.dumps([dataclasses.asdict(kernel) for kernel in compile_all()]))"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    kernels = json.loads(done.stdout)
    assert {kernel["kernel"] for kernel in kernels} == {"measure_rows", "draw_rows", "most_likely"}
    for kernel in kernels:
        print("{kernel}, {variant}, {dtype}: {registers} registers, {shared_bytes} bytes shared".format(**kernel))
        assert kernel["spilled_bytes"] == 0 and kernel["shared_bytes"] <= 48 << 10, kernel
