"""`blend_step`: every rule, filter and option of a batch against the reference; what a row may not do to another."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from sglang_trb.blend import StopAlignment, blend_step, reference
from sglang_trb.blend.distribution import Distribution
from sglang_trb.blend.filters import in_top_k
from sglang_trb.blend.types import EMPTY_SUPPORT, OK, STUDENT_NOT_FINITE, SUPPORT_SIZE, TEACHER_NOT_FINITE
from sglang_trb.params import Rule
from tests.blend_rows import (
    DTYPES,
    FALSE_FAILURE,
    FLOAT32_ULP,
    INF,
    ONE_STOP,
    Row,
    controls,
    expected,
    forbid_some,
    llm_like,
)

NAN = float("nan")
KL_TOLERANCE = 1e-4
"""METHODS: KL <= epsilon (1 + 1e-4); the search ends within half of that below the budget."""

LOG_TOLERANCE = 2 * FLOAT32_ULP
"""A float64 result rounded to float32, relative."""

TWO_STOPS = StopAlignment((3, 4), (5, 3), 4)
FILTERS = [
    {"top_k": 5},
    {"top_k": 1},
    {"top_p": 0.7},
    {"min_p": 0.1},
    {"top_k": 7, "top_p": 0.8},
    {"top_k": 7, "min_p": 0.05},
    {"top_p": 0.9, "min_p": 0.05},
    {"top_k": 9, "top_p": 0.9, "min_p": 0.02},
]
RULES = [
    {"rule": Rule.TRUST_REGION, "epsilon": 0.02},
    {"rule": Rule.TRUST_REGION, "epsilon": INF},
    {"rule": Rule.STUDENT},
    {"rule": Rule.TEACHER},
    {"rule": Rule.SKD, "skd_top_k": 3, "skd_temperature": 0.6},
]


def mixed_rows(**every):
    """One row of each rule with each filter, none and greedy."""
    greedy = [{"greedy": True}, {"greedy": True, "top_k": 1}, {"greedy": True, "top_k": 1, "top_p": 0.7, "min_p": 0.05}]
    options = [{}, *greedy, *FILTERS]
    return [
        Row(**rule, **option, **every, seed=i, position=7 * i)
        for i, (rule, option) in enumerate(itertools.product(RULES, options))
    ]


def check_law(row, want, log_mu, output, i):
    """Row i of an output against the definition."""
    law, beta, kl = want.law, output.beta_B[i].item(), output.kl_B[i].item()
    if row.rule is Rule.TRUST_REGION and 0.0 < want.beta < 1.0:
        # Any beta within the tolerance of the budget is right: compare the law at the beta that was taken.
        law = reference.mu_at(want.p, want.q, beta)
        achieved = reference.kl(law, want.p)
        assert want.kl - KL_TOLERANCE * row.epsilon <= achieved <= row.epsilon * (1 + KL_TOLERANCE)
        assert kl == pytest.approx(achieved, rel=1e-5)
    else:
        assert kl == pytest.approx(want.kl, rel=LOG_TOLERANCE, abs=1e-9)
        assert row.rule is Rule.SKD or beta == want.beta
    assert np.array_equal(np.isfinite(log_mu), np.isfinite(law))
    on = np.isfinite(law)
    np.testing.assert_allclose(log_mu[on], law[on], rtol=2 * LOG_TOLERANCE, atol=1e-6)
    token = int(output.token_ids_B[i])
    assert np.isfinite(law[token]) and output.behavior_logprob_B[i].item() == log_mu[token]
    if row.greedy:
        assert law[token] >= law.max() - 1e-9
    close = {"rel": LOG_TOLERANCE, "abs": 1e-9}
    assert output.student_logprob_B[i].item() == pytest.approx(want.student[token], **close)
    assert output.teacher_logprob_B[i].item() == pytest.approx(want.teacher[token], **close)
    assert output.student_entropy_B[i].item() == pytest.approx(reference.entropy(want.student), **close)
    assert output.teacher_entropy_B[i].item() == pytest.approx(reference.entropy(want.teacher), **close)
    assert output.error_B[i] == OK


def check(student_BV, teacher_BV, rows, alignment=ONE_STOP, adjusted_BV=None, mask_BV=None, **flags):
    output = blend_step(
        student_BV,
        teacher_BV,
        controls(rows, **flags),
        alignment,
        adjusted_student_logits_BV=adjusted_BV,
        mask_BV=mask_BV,
        need_log_mu=True,
    )
    for i, row in enumerate(rows):
        adjusted_V = None if adjusted_BV is None else adjusted_BV[i]
        mask_V = None if mask_BV is None else mask_BV[i]
        want = expected(student_BV[i], teacher_BV[i], row, alignment, adjusted_V, mask_V)
        check_law(row, want, output.log_mu_BV[i].double().numpy(), output, i)
    return output


# --- against the reference


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("alignment", [ONE_STOP, TWO_STOPS], ids=["one stop", "two stops"])
def test_every_rule_with_every_filter(alignment, dtype):
    rows = mixed_rows()
    student_BV, teacher_BV = (x.to(dtype) for x in llm_like(len(rows), 50, seed=1))
    check(student_BV, teacher_BV, rows, alignment)


def test_penalties_masks_and_temperatures():
    rows = [dataclasses.replace(row, temperature=(0.3, 0.8, 1.7)[i % 3]) for i, row in enumerate(mixed_rows())]
    student_BV, teacher_BV = llm_like(len(rows), 50, seed=2)
    adjusted_BV = student_BV + torch.randn(student_BV.shape, generator=torch.Generator().manual_seed(0))
    mask_BV = forbid_some(student_BV, seed=5).isneginf()
    adjusted_BV.masked_fill_(mask_BV, -INF)
    check(student_BV, teacher_BV, rows, TWO_STOPS, adjusted_BV, mask_BV)


@pytest.mark.parametrize("vocab", [2, 3, 1000])
def test_other_vocabularies(vocab):
    rows = mixed_rows()
    check(*llm_like(len(rows), vocab, seed=vocab), rows)


def test_rows_with_forbidden_tokens():
    rows = mixed_rows()
    student_BV, teacher_BV = llm_like(len(rows), 50, seed=3)
    with np.errstate(invalid="ignore"):
        check(forbid_some(student_BV, seed=1), teacher_BV, rows)


def test_full_vocabulary_in_bfloat16():
    rows = [Row(epsilon=0.01, seed=1), Row(rule=Rule.TEACHER, top_p=0.9, seed=2)]
    check(*(x.bfloat16() for x in llm_like(2, 151_936, seed=4)), rows, TWO_STOPS)


@pytest.mark.parametrize("setting", FILTERS, ids=str)
def test_filters_keep_what_the_reference_keeps_with_ties(setting):
    """Logits of four values only: which of equals is kept is decided by the id."""
    student_BV = torch.randint(0, 4, (4, 50), generator=torch.Generator().manual_seed(6)).float()
    rows = [Row(rule=Rule.STUDENT, **setting)] * 4
    check(student_BV, student_BV.flip(1), rows)


def test_supports_are_the_most_likely_tokens_before_masks_and_temperature():
    rows = [Row(epsilon=0.01, temperature=0.5, top_k=3)] * 3
    student_BV, teacher_BV = llm_like(3, 200, seed=7)
    mask_BV = student_BV > student_BV.amax(1, keepdim=True) - 0.5
    flags = {"need_support": True, "need_teacher_support": True}
    output = check(student_BV, teacher_BV, rows, TWO_STOPS, None, mask_BV, **flags)
    for i, row in enumerate(rows):
        want = expected(student_BV[i], teacher_BV[i], row, TWO_STOPS)
        for own, support in ((want.student, output.student_support), (want.teacher, output.teacher_support)):
            ids, student_logprob, teacher_logprob = (column[i].numpy() for column in support)
            assert ids.dtype == np.int32 and ids.tolist() == np.argsort(-own)[:SUPPORT_SIZE].tolist()
            np.testing.assert_allclose(student_logprob, want.student[ids], rtol=LOG_TOLERANCE)
            np.testing.assert_allclose(teacher_logprob, want.teacher[ids], rtol=LOG_TOLERANCE)
    assert blend_step(student_BV, teacher_BV, controls(rows), TWO_STOPS).student_support is None


def test_the_mass_that_alignment_drops():
    student_BV, teacher_BV = llm_like(2, 50, seed=8)
    output = blend_step(student_BV, teacher_BV, controls([Row()] * 2), TWO_STOPS)
    student_mass_B = student_BV.double().softmax(1)[:, 5]  # the teacher's stop id
    teacher_mass_B = teacher_BV.double().softmax(1)[:, 4]  # the student's primary
    torch.testing.assert_close(output.dropped_mass_student_B.double(), student_mass_B, rtol=LOG_TOLERANCE, atol=0)
    torch.testing.assert_close(output.dropped_mass_teacher_B.double(), teacher_mass_B, rtol=LOG_TOLERANCE, atol=0)


def test_a_pair_that_differs_in_its_stop_id_alone_is_one_law():
    student_BV, _ = llm_like(1, 50, seed=9)
    student_BV[:, 3], student_BV[:, 5] = 8.0, -20.0
    teacher_BV = student_BV.clone()
    teacher_BV[:, [3, 5]] = student_BV[:, [5, 3]]
    rows = controls([Row(rule=Rule.TEACHER, seed=3)])
    assert blend_step(student_BV, teacher_BV, rows, StopAlignment((3,), (3,), 3)).kl_B.item() > 20.0
    output = blend_step(student_BV, teacher_BV, rows, StopAlignment((3,), (5,), 3))
    assert output.kl_B.item() == 0.0 and torch.equal(output.student_logprob_B, output.teacher_logprob_B)


def test_padding_beyond_the_tokenizer_is_forbidden():
    rows = mixed_rows()
    student_BV, teacher_BV = llm_like(len(rows), 50, seed=10)
    student_BV[:, 40:], teacher_BV[:, 40:] = 50.0, NAN
    wide = torch.nn.functional.pad(teacher_BV, (0, 14), value=90.0)
    output = blend_step(student_BV, wide, controls(rows), ONE_STOP, valid_vocab_size=40, need_log_mu=True)
    narrow = blend_step(student_BV[:, :40], wide[:, :40], controls(rows), ONE_STOP, need_log_mu=True)
    assert output.log_mu_BV.shape == (len(rows), 50) and output.log_mu_BV[:, 40:].isneginf().all()
    assert torch.equal(output.log_mu_BV[:, :40], narrow.log_mu_BV)
    assert torch.equal(output.token_ids_B, narrow.token_ids_B) and output.error_B.eq(OK).all()


# --- rows that cannot be drawn


def test_errors_are_told_apart():
    student_BV, teacher_BV = llm_like(8, 50, seed=11)
    student_BV[0, 3], student_BV[1, 3], student_BV[2] = NAN, INF, -INF
    teacher_BV[3, 3], teacher_BV[4] = NAN, -INF
    adjusted_BV = student_BV.clone()
    adjusted_BV[5, 0] = NAN
    mask_BV = torch.zeros(8, 50, dtype=torch.bool)
    mask_BV[6] = True
    output = blend_step(
        student_BV,
        teacher_BV,
        controls([Row(epsilon=0.1)] * 8),
        TWO_STOPS,
        adjusted_student_logits_BV=adjusted_BV,
        mask_BV=mask_BV,
    )
    assert output.error_B.tolist() == [
        *[STUDENT_NOT_FINITE] * 3,
        *[TEACHER_NOT_FINITE] * 2,
        STUDENT_NOT_FINITE,
        EMPTY_SUPPORT,
        OK,
    ]
    assert output.token_ids_B.ge(0).all() and output.token_ids_B.lt(50).all()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["rule"]))
def test_a_teacher_without_support(rule):
    """A row error where the rule draws from the teacher; elsewhere the student (METHODS, "Defined cases")."""
    student_BV, teacher_BV = llm_like(1, 50, seed=12)
    mask_BV = torch.ones(1, 50, dtype=torch.bool)
    mask_BV[:, 10:20] = False
    teacher_BV[:, 10:20] = -INF
    output = blend_step(student_BV, teacher_BV, controls([Row(**rule)]), ONE_STOP, mask_BV=mask_BV)
    needs_teacher = rule["rule"] in (Rule.TEACHER, Rule.SKD)
    assert output.error_B.item() == (EMPTY_SUPPORT if needs_teacher else OK)
    if not needs_teacher:
        assert 10 <= output.token_ids_B.item() < 20 and output.beta_B.item() == 0.0


def same_rows(left, right, rows, names=None):
    for field in dataclasses.fields(left):
        if names is None or field.name in names:
            a, b = getattr(left, field.name), getattr(right, field.name)
            if isinstance(a, torch.Tensor):
                assert torch.equal(a[rows], b[rows]), field.name


def test_a_bad_row_changes_no_other_bit():
    rows = mixed_rows()
    student_BV, teacher_BV = llm_like(len(rows), 151, seed=13)
    clean = blend_step(student_BV, teacher_BV, controls(rows), TWO_STOPS, need_log_mu=True)
    bad = [0, 17, 18, len(rows) - 1]
    student_BV[bad[0], 5], student_BV[bad[1]] = NAN, -INF
    teacher_BV[bad[2], 0], teacher_BV[bad[3], 1] = INF, NAN
    dirty = blend_step(student_BV, teacher_BV, controls(rows), TWO_STOPS, need_log_mu=True)
    assert dirty.error_B.ne(OK).nonzero().flatten().tolist() == bad
    same_rows(clean, dirty, [i for i in range(len(rows)) if i not in bad])


@pytest.mark.parametrize("other", [{"epsilon": 0.5}, {"rule": Rule.TEACHER}, {"rule": Rule.SKD}], ids=str)
def test_an_unblended_row_is_the_same_whatever_the_others_do(other):
    student_BV, teacher_BV = llm_like(8, 151, seed=14)
    quiet = [Row(rule=Rule.STUDENT, seed=i) if i % 2 else Row(epsilon=0.0, seed=i) for i in range(8)]
    busy = [dataclasses.replace(row, **other) if i in (0, 3, 6) else row for i, row in enumerate(quiet)]
    alone = blend_step(student_BV, teacher_BV, controls(quiet), TWO_STOPS, need_log_mu=True)
    mixed = blend_step(student_BV, teacher_BV, controls(busy), TWO_STOPS, need_log_mu=True)
    same_rows(alone, mixed, [1, 2, 4, 5, 7])
    assert not torch.equal(alone.log_mu_BV[0], mixed.log_mu_BV[0])
    off = {"any_trust_region": False, "any_skd": False, "any_teacher": False, "any_filter": False}
    without = blend_step(
        student_BV, teacher_BV, controls(quiet, any_temperature=False, **off), TWO_STOPS, need_log_mu=True
    )
    same_rows(alone, without, slice(None))


def test_host_flags_change_no_bit():
    student_BV, teacher_BV = llm_like(6, 151, seed=15)
    rows = [Row(epsilon=0.05, seed=i) for i in range(6)]
    everything = blend_step(student_BV, teacher_BV, controls(rows), TWO_STOPS, need_log_mu=True)
    flags = dict.fromkeys(("any_skd", "any_teacher", "any_filter", "any_temperature"), False)
    needed = blend_step(student_BV, teacher_BV, controls(rows, **flags), TWO_STOPS, need_log_mu=True)
    same_rows(everything, needed, slice(None))


def test_neither_order_nor_batch_decides_what_is_drawn():
    rows = mixed_rows()
    student_BV, teacher_BV = llm_like(len(rows), 151, seed=16)
    output = blend_step(student_BV, teacher_BV, controls(rows), TWO_STOPS)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    permuted = blend_step(student_BV[order], teacher_BV[order], controls([rows[i] for i in order]), TWO_STOPS)
    assert torch.equal(output.token_ids_B[order], permuted.token_ids_B)
    torch.testing.assert_close(output.beta_B[order], permuted.beta_B, rtol=LOG_TOLERANCE, atol=0)
    torch.testing.assert_close(output.kl_B[order], permuted.kl_B, rtol=LOG_TOLERANCE, atol=1e-9)
    alone = [blend_step(student_BV[i : i + 1], teacher_BV[i : i + 1], controls([rows[i]]), TWO_STOPS) for i in order]
    assert torch.equal(permuted.token_ids_B, torch.cat([one.token_ids_B for one in alone]))


def test_the_arguments_are_left_alone():
    for dtype in DTYPES:
        student_BV, teacher_BV = (x.to(dtype) for x in llm_like(3, 50, seed=17))
        student_BV[1, 2] = NAN
        mask_BV = torch.zeros(3, 50, dtype=torch.bool)
        adjusted_BV, given = student_BV.clone(), (student_BV, teacher_BV)
        before = student_BV.clone(), teacher_BV.clone()
        options = {"adjusted_student_logits_BV": adjusted_BV, "mask_BV": mask_BV}
        blend_step(*given, controls(mixed_rows()[:3]), TWO_STOPS, **options)
        torch.testing.assert_close(given, before, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(adjusted_BV, before[0], rtol=0, atol=0, equal_nan=True)


# --- frequencies

DRAWS = 4000


def repeated(row, student_V, teacher_V, **options):
    rows = controls([dataclasses.replace(row, seed=i, position=i % 7) for i in range(DRAWS)])
    return blend_step(student_V.expand(DRAWS, -1), teacher_V.expand(DRAWS, -1), rows, TWO_STOPS, **options)


FREQUENCY_ROWS = [
    Row(epsilon=0.02),
    Row(epsilon=0.3, top_k=9, temperature=1.3),
    Row(epsilon=0.0),
    Row(rule=Rule.STUDENT, top_p=0.8),
    Row(rule=Rule.TEACHER, min_p=0.02),
    Row(rule=Rule.SKD, skd_top_k=4, skd_temperature=0.6),
    Row(rule=Rule.SKD, skd_top_k=2, skd_temperature=1.0, top_k=12),
]


@pytest.mark.parametrize("row", FREQUENCY_ROWS, ids=lambda row: f"{row.rule}-{row.epsilon}-{row.top_k}")
def test_frequencies_follow_the_exact_law(row):
    """χ² over DRAWS draws; a correct implementation fails with probability FALSE_FAILURE."""
    student_BV, teacher_BV = llm_like(1, 30, seed=18)
    mask_V = torch.zeros(30, dtype=torch.bool)
    mask_V[student_BV[0].argmax()] = True
    output = repeated(row, student_BV, teacher_BV, mask_BV=mask_V.expand(DRAWS, -1))
    law = np.exp(expected(student_BV[0], teacher_BV[0], row, TWO_STOPS, None, mask_V).law)
    counts = output.token_ids_B.bincount(minlength=30).numpy()
    assert counts[law == 0.0].sum() == 0 and law[mask_V].sum() == 0.0
    common = law * DRAWS >= 5
    rest = np.append(common, True)  # tokens expected fewer than five times make one cell
    observed = np.append(counts * common, counts[~common].sum())[rest]
    wanted = np.append(law * common, law[~common].sum())[rest] * DRAWS
    if wanted[-1] < 1e-9:
        observed, wanted = observed[:-1], wanted[:-1]
    assert stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > FALSE_FAILURE


def test_skd_marks_exactly_the_replacements():
    student_BV, teacher_BV = llm_like(1, 30, seed=19)
    row = Row(rule=Rule.SKD, skd_top_k=3, skd_temperature=0.6)
    output = repeated(row, student_BV, teacher_BV)
    want = expected(student_BV[0], teacher_BV[0], row, TWO_STOPS)
    drawn_by_student_B = repeated(Row(rule=Rule.STUDENT), student_BV, teacher_BV).token_ids_B
    top_k = torch.from_numpy(np.argsort(-want.q, kind="stable")[:3].copy())
    replaced_B = ~torch.isin(drawn_by_student_B, top_k)
    assert torch.equal(output.beta_B, replaced_B.float())
    assert torch.equal(output.token_ids_B[~replaced_B], drawn_by_student_B[~replaced_B])
    # The replacements themselves follow the teacher at its temperature.
    counts = output.token_ids_B[replaced_B].bincount(minlength=30).numpy()
    law = np.exp(reference.log_softmax(want.q / np.float64(np.float32(0.6)))) * replaced_B.sum().item()
    common = law >= 5
    observed, wanted = np.append(counts[common], counts[~common].sum()), np.append(law[common], law[~common].sum())
    assert stats.chisquare(observed, wanted).pvalue > FALSE_FAILURE


def test_ties_of_the_teachers_top_k_go_to_the_lowest_id():
    q = Distribution.from_logits(torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]] * 4, dtype=torch.float64))
    kept_BV = in_top_k(q, torch.tensor([1, 2, 3, 9]))
    assert [row.nonzero().flatten().tolist() for row in kept_BV] == [[1], [1, 2], [1, 2, 3], [0, 1, 2, 3, 4]]


def test_greedy_ties_go_to_the_lowest_id():
    logits_BV = torch.tensor([[0.0, 2.0, 2.0, 1.0]] * 3)
    rows = [Row(epsilon=0.1, greedy=True), Row(rule=Rule.STUDENT, greedy=True), Row(rule=Rule.TEACHER, greedy=True)]
    assert blend_step(logits_BV, logits_BV, controls(rows), ONE_STOP).token_ids_B.tolist() == [1, 1, 1]


def test_greedy_blends_before_it_takes_the_largest():
    """The teacher's favourite wins once the budget allows it; top_k = 1, as SGLang rewrites greedy, filters nothing."""
    student_BV = torch.tensor([[1.0, 0.9, -3.0]] * 2)
    teacher_BV = torch.tensor([[-3.0, 3.0, 1.0]] * 2)
    rows = [Row(epsilon=0.0, greedy=True, top_k=1), Row(epsilon=0.2, greedy=True, top_k=1)]
    output = blend_step(student_BV, teacher_BV, controls(rows), ONE_STOP)
    assert output.token_ids_B.tolist() == [0, 1]
    assert output.kl_B[1].item() == pytest.approx(0.2, rel=KL_TOLERANCE)


def test_greedy_rows_keep_to_top_p():
    """The teacher's favourite lies outside the student's nucleus; without the filter it would win."""
    student_BV = torch.tensor([[1.0, 0.0, -3.0]] * 2)
    teacher_BV = torch.tensor([[-3.0, 0.0, 3.0]] * 2)
    rows = [Row(epsilon=5.0, greedy=True, top_k=1, top_p=p) for p in (0.9, 1.0)]
    assert blend_step(student_BV, teacher_BV, controls(rows), ONE_STOP).token_ids_B.tolist() == [1, 2]


# --- CUDA graphs, as far as they can be proved without a GPU


@pytest.mark.parametrize("alignment", [ONE_STOP, TWO_STOPS], ids=["one stop", "two stops"])
@pytest.mark.parametrize("extras", [False, True], ids=["plain", "everything"])
def test_no_host_synchronisation_and_no_data_dependent_shape(alignment, extras):
    """On meta tensors, which have no values, any look at a value raises, and so does a shape that depends on one."""
    student_BV, teacher_BV, adjusted_BV = (torch.empty(4, 50, dtype=torch.bfloat16, device="meta") for _ in range(3))
    rows = controls([Row()] * 4, need_support=extras, need_teacher_support=extras)
    tensors = {name: value.to("meta") for name, value in vars(rows).items() if isinstance(value, torch.Tensor)}
    options = {}
    if extras:
        mask_BV = torch.empty(4, 50, dtype=torch.bool, device="meta")
        options = {"adjusted_student_logits_BV": adjusted_BV, "mask_BV": mask_BV, "need_log_mu": True}
    output = blend_step(student_BV, teacher_BV, dataclasses.replace(rows, **tensors), alignment, **options)
    assert {x.device.type for x in vars(output).values() if isinstance(x, torch.Tensor)} == {"meta"}
    assert output.token_ids_B.shape == (4,)


@pytest.mark.parametrize("look", [bool, torch.Tensor.item, torch.nonzero, lambda x: x[x > 0]])
def test_meta_tensors_show_what_they_are_used_for(look):
    with pytest.raises((RuntimeError, NotImplementedError)):
        look(torch.empty(1, device="meta"))


def test_at_budget_zero_the_solver_is_not_missed():
    """The flag spares a batch without budgets the search; the rows come out the same, to the last bit."""
    rows = [Row(epsilon=0.0, seed=i, top_p=0.9 if i % 2 else 1.0) for i in range(8)]
    student_BV, teacher_BV = llm_like(len(rows), 100, seed=9)
    with_search, without = (
        blend_step(student_BV, teacher_BV, controls(rows, any_trust_region=flag), TWO_STOPS, need_log_mu=True)
        for flag in (True, False)
    )
    assert with_search.beta_B.eq(0).all() and with_search.kl_B.eq(0).all()
    for field in dataclasses.fields(with_search):
        value = getattr(with_search, field.name)
        assert value is None or torch.equal(value, getattr(without, field.name)), field.name
