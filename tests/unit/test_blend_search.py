"""How far the solver's search gets, and that no bit of a row depends on the rows beside it."""

import pytest
import torch

from sglang_trb.blend import align_eos, blend_step, solver
from sglang_trb.blend.distribution import Distribution, row_groups
from sglang_trb.blend.solver import MARGIN, solve
from sglang_trb.wire.params import Rule
from tests.blend_rows import ONE_STOP, Row, controls, llm_like

FINITE_EPSILONS = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0]

SUMMED_IN_PIECES = 32_768
"""From this length on, torch's CPU kernels sum a single row by several threads."""


def distributions(*logits):
    return [Distribution.from_logits(x.double()) for x in logits]


def taken_over(vocab, bulk, low, generator):
    """A mild log-ratio, and one token that the student all but excludes and the teacher likes: A(beta) has a kink."""
    student_BV = 1.5 * torch.randn(16, vocab, generator=generator)
    teacher_BV = student_BV + bulk * torch.randn(16, vocab, generator=generator)
    student_BV[:, -1] = -low * (0.6 + 0.4 * torch.rand(16, generator=generator))
    teacher_BV[:, -1] = 8 * torch.rand(16, generator=generator)
    return student_BV, teacher_BV


def kinks(vocab, generator):
    """Log-ratios on a ladder of student log-probabilities down to -200: one token after another takes over."""
    student_BV = -200 * torch.rand(16, vocab, generator=generator).sort(1).values
    return student_BV, student_BV + 60 * torch.rand(16, vocab, generator=generator).cumsum(1)


def hostile_pairs():
    generator = torch.Generator().manual_seed(5)
    pairs = [
        taken_over(vocab, bulk, low, generator)
        for vocab in (3, 50, 1000)
        for bulk in (0.05, 1.0)
        for low in (20.0, 60.0, 120.0, 190.0)
    ]
    pairs += [kinks(vocab, generator) for vocab in (4, 12)]
    for vocab in (2, 8, 50):
        pairs.append(tuple(200 * torch.rand(16, vocab, generator=generator) for _ in range(2)))
    return pairs


@pytest.mark.parametrize("epsilon", FINITE_EPSILONS)
def test_every_row_ends_within_the_margin_of_its_budget(epsilon):
    for student_BV, teacher_BV in hostile_pairs():
        blend = solve(*distributions(student_BV, teacher_BV), torch.full((16,), epsilon, dtype=torch.float64))
        assert blend.kl_B.le(epsilon).all()
        assert (blend.beta_B.eq(1) | blend.kl_B.ge(epsilon * (1 - MARGIN))).all()


def test_llm_like_rows_need_few_passes():
    student_BV, teacher_BV = llm_like(24, 1000, seed=1)
    for epsilon in (1e-5, 1e-3, 1e-2):
        epsilon_B = torch.full((24,), epsilon, dtype=torch.float64)
        blend = solve(*distributions(student_BV, teacher_BV), epsilon_B, trips=4)
        assert blend.kl_B.ge(epsilon * (1 - MARGIN)).all()


@pytest.mark.parametrize("vocab", [2, 151, 1001])
def test_no_bit_depends_on_the_batch_or_its_order(vocab):
    student_BV, teacher_BV = llm_like(9, vocab, seed=2, noise=2.0)
    student_BV[5, 0] = -torch.inf  # the others have one support
    epsilon_B = torch.tensor([0.0, 1e-6, 1e-3, 0.01, 1e-12, 1.0, 10.0, 0.02, 0.0], dtype=torch.float64)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    whole = solve(*distributions(student_BV, teacher_BV), epsilon_B)
    permuted = solve(*distributions(student_BV[order], teacher_BV[order]), epsilon_B[order])
    for i in range(9):
        alone = solve(*distributions(student_BV[i : i + 1], teacher_BV[i : i + 1]), epsilon_B[i : i + 1])
        j = order.tolist().index(i)
        for get in (lambda x: x.beta_B, lambda x: x.kl_B, lambda x: x.mu.weights_BV, lambda x: x.mu.log_probs()):
            assert torch.equal(get(whole)[i], get(alone)[0]) and torch.equal(get(whole)[i], get(permuted)[j])


@pytest.mark.parametrize("vocab", [2, 1000, 32_000, 32_767, SUMMED_IN_PIECES, 49_152, 65_535, 65_536, 151_936])
def test_a_row_that_torch_sums_in_pieces_is_a_group_of_its_own(vocab):
    groups = row_groups(100, vocab, torch.device("cpu"))
    assert [i for rows in groups for i in range(rows.start, rows.stop)] == list(range(100))
    assert vocab < SUMMED_IN_PIECES or {rows.stop - rows.start for rows in groups} == {1}


def test_a_step_without_rows():
    none = controls([Row()]).rows(0, 0)
    output = blend_step(torch.empty(0, 50), torch.empty(0, 50), none, ONE_STOP, need_log_mu=True)
    assert output.token_ids_B.shape == (0,) and output.log_mu_BV.shape == (0, 50)


def test_a_vocabulary_smaller_than_a_support():
    student_BV, teacher_BV = llm_like(2, 3, seed=3)
    output = blend_step(student_BV, teacher_BV, controls([Row(epsilon=0.1)] * 2, need_support=True), ONE_STOP)
    assert output.student_support.ids.shape == (2, 3)


def test_alignment_is_differentiable():
    def through(logits_BV):
        aligned = align_eos(logits_BV.log_softmax(1), own_ids=(3, 4), canonical_id=4, masked_ids=(3, 5))
        return aligned[:, [0, 4, 6]]

    logits_BV = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4), requires_grad=True)
    assert torch.autograd.gradcheck(through, (logits_BV,))


@pytest.mark.parametrize(("student", "replaced"), [([-torch.inf, 0.0, 0.0, 0.1], 1.0), ([0.0, 0.0, 0.0, 0.1], 0.0)])
def test_greedy_skd_says_whether_the_student_could_have_drawn_its_token(student, replaced):
    """K = 1 keeps token 0 alone, which is the likeliest of the law; the keys of the draws do not matter."""
    student_BV, teacher_BV = torch.tensor(student).expand(20, -1), torch.tensor([9.0, 0.0, 0.0, 0.0]).expand(20, -1)
    rows = controls([Row(rule=Rule.SKD, skd_top_k=1, greedy=True, seed=seed) for seed in range(20)])
    output = blend_step(student_BV, teacher_BV, rows, ONE_STOP)
    assert output.token_ids_B.eq(0).all() and output.record.beta.eq(replaced).all()


def test_traces_without_graph_breaks(monkeypatch):
    """`torch.compile(fullgraph=True)` refuses a step that looks at a tensor's values."""
    monkeypatch.setattr(solver, "TRIPS", 3)  # the others are the same again
    monkeypatch.setattr(solver, "LAST_TRIP", 3)
    student_BV, teacher_BV = llm_like(4, 50, seed=6)
    rules = (Rule.TRUST_REGION, Rule.STUDENT, Rule.TEACHER, Rule.SKD)
    rows = controls([Row(rule=rule, epsilon=0.1, top_k=9, seed=i) for i, rule in enumerate(rules)])
    traced = torch.compile(blend_step, fullgraph=True, backend="eager")
    output, eager = (step(student_BV, teacher_BV, rows, ONE_STOP) for step in (traced, blend_step))
    assert torch.equal(output.token_ids_B, eager.token_ids_B)
    assert torch.equal(output.record.beta, eager.record.beta)
