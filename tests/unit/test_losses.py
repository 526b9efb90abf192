"""Every loss against all logits at once, its gradient against finite differences, and what must hold at p = q."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from sglang_trb import align_eos
from sglang_trb.pair.alignment import StopAlignment
from sglang_trb.pair.pair import Pair
from trainer.learner.log_probs import gathered_log_probs
from trainer.losses import LOSSES, LossInputs, LossSettings, RolloutStatistics, compute_loss
from trainer.losses.entropy_aware import forward_kl_on_teacher_support
from trainer.losses.reverse_kl import reverse_kl
from trainer.losses.support import LOG_PROB_FLOOR, finite
from trainer.losses.tip import tip_weights
from trainer.losses.veto import veto

ROWS, VOCABULARY, K = 7, 30, 16
PARSE = TypeAdapter(LossSettings).validate_python
NORMALISATIONS = ["surrogate", "raw", "renormalised", "tail"]
SETTINGS = [
    *[{"name": "reverse_kl", "normalisation": n} for n in NORMALISATIONS],
    {"name": "veto", "beta_start": 0.6, "warmup_steps": 4},
    {"name": "veto", "beta_start": 0.6, "warmup_steps": 4, "direction": "target_to_student"},
    {"name": "entropy_aware", "entropy_threshold": 2.5, "alpha": 0.7, "normalisation": "raw"},
    {"name": "tip", "normalisation": "tail"},
    {"name": "forward_kl"},
    {"name": "jsd", "mixture": 0.3},
    {"name": "sft"},
]


def test_every_loss_is_tested():
    assert {settings["name"] for settings in SETTINGS} == set(LOSSES)


def ids_of(settings):
    return "-".join(str(value) for value in settings.values())


class Rows:
    """Full laws of both models, and a micro-batch's view of them."""

    def __init__(self, same=False, seed=0, gap=1.0):
        generator = torch.Generator().manual_seed(seed)
        self.student = torch.randn(ROWS, VOCABULARY, generator=generator, dtype=torch.float64) * 2
        noise = torch.randn(ROWS, VOCABULARY, generator=generator, dtype=torch.float64)
        self.teacher = (self.student if same else self.student + gap * noise).log_softmax(1)
        self.support = self.student.topk(K, 1).indices
        self.teacher_support = self.teacher.topk(K, 1).indices
        self.drawn = torch.randint(0, VOCABULARY, (ROWS,), generator=generator)
        self.weight = torch.ones(ROWS, dtype=torch.float64)

    def inputs(self, logits, rows=slice(None)):
        log_p = logits.log_softmax(1)

        def at(log_probs, ids):
            return log_probs.gather(1, ids)[rows]

        return LossInputs(
            student_logprob_NK=at(log_p, self.support),
            teacher_logprob_NK=at(self.teacher, self.support),
            token_logprob_N=at(log_p, self.drawn[:, None]).squeeze(1),
            student_entropy_N=torch.special.entr(log_p.exp()).sum(1).detach()[rows],
            teacher_entropy_N=torch.special.entr(self.teacher.exp()).sum(1)[rows],
            position_weight_N=self.weight[rows],
            teacher_support_student_logprob_NK=at(log_p, self.teacher_support),
            teacher_support_teacher_logprob_NK=at(self.teacher, self.teacher_support),
        )

    def loss(self, settings, logits, step=1, rows=slice(None)):
        return compute_loss(PARSE(settings), self.inputs(logits, rows), step).loss_sum


def naive(settings, rows, logits, frozen, step=1):
    """docs/methods.md, "Losses", row by row in plain Python; ``frozen`` are the logits that sg(·) sees."""
    total = 0.0
    for n in range(ROWS):
        lp, lq = logits[n].log_softmax(0).tolist(), rows.teacher[n].tolist()
        fixed = frozen[n].log_softmax(0).tolist()
        support, teacher_support = rows.support[n].tolist(), rows.teacher_support[n].tolist()
        total += _naive_row(settings, lp, lq, fixed, support, teacher_support, int(rows.drawn[n]), step)
    return total


def _naive_row(settings, lp, lq, fixed, support, teacher_support, drawn, step):
    def renormalised(log_probs):
        total = sum(math.exp(log_probs[a]) for a in support)
        return {a: log_probs[a] - math.log(total) for a in support}

    def kl(a_law, b_law):
        return sum(math.exp(a_law[a]) * (a_law[a] - b_law[a]) for a in a_law)

    def reverse(form):
        mass = sum(math.exp(fixed[a]) for a in support)
        if form == "surrogate":
            return sum(math.exp(fixed[a]) / mass * (fixed[a] - lq[a]) * math.exp(lp[a] - fixed[a]) for a in support)
        if form == "renormalised":
            return kl(renormalised(lp), renormalised(lq))
        raw = sum(math.exp(lp[a]) * (lp[a] - lq[a]) for a in support)
        rest_p, rest_q = (1 - sum(math.exp(law[a]) for a in support) for law in (lp, lq))
        return raw if form == "raw" else raw + rest_p * math.log(rest_p / rest_q)

    p, q = renormalised(lp), renormalised(lq)
    match settings["name"]:
        case "reverse_kl" | "tip":
            return reverse(settings["normalisation"])
        case "veto":
            beta = settings["beta_start"] * max(0.0, 1 - step / settings["warmup_steps"])
            raw = {a: lq[a] + beta * fixed[a] for a in support}
            total = math.log(sum(math.exp(v) for v in raw.values()))
            target = {a: raw[a] - total for a in support}
            return kl(target, p) if settings.get("direction") == "target_to_student" else kl(p, target)
        case "entropy_aware":
            entropy = -sum(math.exp(v) * v for v in lq)
            total = math.log(sum(math.exp(lq[a]) for a in teacher_support))
            forward = sum(math.exp(lq[a] - total) * (lq[a] - total - lp[a]) for a in teacher_support)
            extra = settings["alpha"] * forward if entropy > settings["entropy_threshold"] else 0.0
            return reverse(settings["normalisation"]) + extra
        case "forward_kl":
            return kl(q, p)
        case "jsd":
            share = settings["mixture"]
            m = {a: math.log(share * math.exp(q[a]) + (1 - share) * math.exp(p[a])) for a in support}
            return share * kl(q, m) + (1 - share) * kl(p, m)
        case "sft":
            return -lp[drawn]


@pytest.mark.parametrize("settings", SETTINGS, ids=ids_of)
@pytest.mark.parametrize("gap", [0.1, 1.0, 6.0])
def test_values_are_those_of_the_definition(settings, gap):
    rows = Rows(gap=gap)
    want = naive(settings, rows, rows.student, rows.student)
    assert rows.loss(settings, rows.student).item() == pytest.approx(want, rel=1e-9)
    # On the same rounded inputs: what rounding them does to a small rest of the mass is not the loss's doing.
    rounded = _cast(rows.inputs(rows.student), torch.float32)
    in_float32 = compute_loss(PARSE(settings), rounded, 1).loss_sum.item()
    in_float64 = compute_loss(PARSE(settings), _cast(rounded, torch.float64), 1).loss_sum.item()
    assert in_float32 == pytest.approx(in_float64, rel=1e-5, abs=1e-5)


def _cast(inputs, dtype):
    return LossInputs(**{name: value.to(dtype) for name, value in vars(inputs).items()})


@pytest.mark.parametrize("settings", SETTINGS, ids=ids_of)
def test_gradients_are_those_of_finite_differences_with_sg_held(settings):
    rows = Rows()
    logits = rows.student.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(rows.loss(settings, logits), logits)
    step, frozen = 1e-5, rows.student
    for n, v in [(0, 0), (1, 7), (2, int(rows.support[2, 0])), (3, int(rows.drawn[3])), (6, 29)]:
        up, down = frozen.clone(), frozen.clone()
        up[n, v] += step
        down[n, v] -= step
        slope = (naive(settings, rows, up, frozen) - naive(settings, rows, down, frozen)) / (2 * step)
        assert gradient[n, v].item() == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize(
    "settings",
    [
        *[{"name": "reverse_kl", "normalisation": n} for n in ("renormalised", "tail", "surrogate")],
        {"name": "jsd"},
        {"name": "veto", "beta_start": 0.0},
        {"name": "veto", "beta_start": 0.0, "direction": "target_to_student"},
        {"name": "forward_kl"},
    ],
    ids=ids_of,
)
def test_student_equal_to_teacher_is_a_stationary_point_of_loss_zero(settings):
    rows = Rows(same=True)
    logits = rows.student.clone().requires_grad_()
    loss = rows.loss(settings, logits)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert logits.grad.abs().max() < 1e-12


def test_surrogate_logs_a_divergence_and_has_the_policy_gradient_bit_for_bit():
    rows = Rows(gap=3.0)
    rows.student[0, rows.support[0, 5:]] = -math.inf
    given = _cast(rows.inputs(rows.student), torch.float32)
    leaves = [given.student_logprob_NK.clone().requires_grad_() for _ in range(2)]
    value_N = reverse_kl(leaves[0], given.teacher_logprob_NK, "surrogate")

    log_p_NK, log_q_NK = finite(leaves[1], given.teacher_logprob_NK)
    p_NK = log_p_NK.detach().exp()
    advantage_NK = -(p_NK / p_NK.sum(1, keepdim=True)) * (log_p_NK - log_q_NK).detach()
    assert torch.equal(value_N, -advantage_NK.sum(1))

    scale_N = torch.linspace(0.1, 3, ROWS)  # weights and the division by the number of tokens
    (value_N * scale_N).sum().backward()
    (-(advantage_NK * log_p_NK).sum(1) * scale_N).sum().backward()
    assert torch.equal(leaves[0].grad, leaves[1].grad) and leaves[0].grad.count_nonzero() > ROWS


def test_raw_at_student_equal_to_teacher_pushes_on_the_support_mass_alone():
    rows = Rows(same=True)
    logits = rows.student.clone().requires_grad_()
    loss = rows.loss({"name": "reverse_kl", "normalisation": "raw"}, logits)
    (gradient,) = torch.autograd.grad(loss, logits)
    mass = logits.softmax(1).gather(1, rows.support).sum()
    (of_mass,) = torch.autograd.grad(mass, logits)
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(gradient, of_mass, rtol=0, atol=1e-12)


def test_veto_at_student_equal_to_teacher_has_its_analytic_value():
    """Q ∝ p^(1+beta) there, so KL(p || Q) = log Z - beta Σ p log p, KL(Q || p) = beta Σ Q log p - log Z.

    Z = Σ p^(1+beta), p over the support.
    """
    rows = Rows(same=True)
    log_p = rows.student.log_softmax(1).gather(1, rows.support)
    beta, law = 0.6, log_p.log_softmax(1)
    want = ((1 + beta) * law).logsumexp(1) - beta * (law.exp() * law).sum(1)
    torch.testing.assert_close(veto(log_p, log_p, beta, "student_to_target"), want, rtol=0, atol=1e-12)
    target = ((1 + beta) * law).log_softmax(1)
    reverse = beta * (target.exp() * law).sum(1) - ((1 + beta) * law).logsumexp(1)
    torch.testing.assert_close(veto(log_p, log_p, beta, "target_to_student"), reverse, rtol=0, atol=1e-12)
    assert (want > 0).all() and (reverse > 0).all()


@pytest.mark.parametrize("settings", SETTINGS, ids=ids_of)
def test_the_sum_over_parts_is_the_weighted_sum_over_positions(settings):
    rows = Rows()
    rows.weight = torch.linspace(0, 2, ROWS, dtype=torch.float64)
    whole = rows.loss(settings, rows.student).item()
    parts = [rows.loss(settings, rows.student, rows=slice(a, b)).item() for a, b in ((0, 1), (1, 5), (5, 5), (5, ROWS))]
    assert sum(parts) == pytest.approx(whole, rel=1e-12)
    unweighted = Rows()
    each = [unweighted.loss(settings, rows.student, rows=slice(n, n + 1)).item() for n in range(ROWS)]
    assert np.dot(each, rows.weight.numpy()) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("settings", SETTINGS, ids=ids_of)
def test_impossible_tokens_give_finite_losses_and_gradients(settings):
    rows = Rows()
    logits = rows.student.clone()
    logits[0, rows.support[0, 3:]] = -math.inf  # a support of three ids
    logits[1] = -math.inf  # one-hot
    logits[1, rows.support[1, 0]] = 0.0
    rows.teacher[2, rows.support[2, 0]] = -math.inf  # the teacher forbids the student's favourite
    rows.drawn[0], rows.drawn[1] = rows.support[0, 0], rows.support[1, 0]
    logits.requires_grad_()
    inputs = rows.inputs(logits)
    loss = compute_loss(PARSE(settings), inputs, 1)
    assert loss.loss_sum.isfinite() and all(math.isfinite(value) for value in loss.metric_sums.values())
    log_p, log_q = inputs.teacher_support_student_logprob_NK, inputs.teacher_support_teacher_logprob_NK
    assert loss.metric_sums["floored"] == 1 + (log_p.isneginf() & log_q.isfinite()).sum()
    leaf = inputs.student_logprob_NK.detach().requires_grad_()
    if settings["name"] != "sft":
        again = LossInputs(**{**vars(inputs), "student_logprob_NK": leaf})
        compute_loss(PARSE(settings), again, 1).loss_sum.backward()
        assert leaf.grad.isfinite().all()
        assert leaf.grad[leaf.isneginf()].count_nonzero() == 0


def test_a_forbidden_token_costs_the_floor():
    certain, impossible = torch.zeros(1, 1), torch.full((1, 1), -math.inf)
    for form in ("raw", "tail"):
        assert reverse_kl(certain, impossible, form).item() == pytest.approx(-LOG_PROB_FLOOR, abs=1e-4)
    assert forward_kl_on_teacher_support(impossible, certain).item() == -LOG_PROB_FLOOR


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_an_id_without_probability_counts_as_if_it_were_not_in_the_support(normalisation):
    rows = Rows()
    inputs = rows.inputs(rows.student)
    log_p, log_q = inputs.student_logprob_NK.clone(), inputs.teacher_logprob_NK.clone()
    log_p[:, 5] = -math.inf
    kept = [k for k in range(K) if k != 5]
    without = reverse_kl(log_p[:, kept], log_q[:, kept], normalisation)
    if normalisation == "tail":  # the teacher's probability there then belongs to the rest
        log_q[:, 5] = -math.inf
    torch.testing.assert_close(reverse_kl(log_p, log_q, normalisation), without, rtol=0, atol=1e-12)


@pytest.mark.parametrize("settings", SETTINGS, ids=ids_of)
def test_from_hidden_states_to_the_loss_in_float32(settings):
    """The chunked head and the loss together, against all logits at once in float64."""
    alignment = StopAlignment((3, 4), (4, 5), 3)
    generator = torch.Generator().manual_seed(2)
    head = [torch.randn(size, 6, generator=generator) for size in (ROWS, VOCABULARY)]

    exact = [tensor.double().requires_grad_() for tensor in head]
    options = {"own_ids": (3, 4), "canonical_id": 3, "masked_ids": alignment.masked_ids}
    law = align_eos((exact[0] @ exact[1].t()).log_softmax(1), **options)
    rows = Rows()
    rows.support = law.topk(K, 1).indices
    rows.teacher_support, rows.drawn = rows.support.flip(0), rows.support[:, 0]
    rows.teacher_support[rows.teacher_support == 3] = 4  # no probability
    want = rows.loss(settings, law)

    ours = [tensor.clone().requires_grad_() for tensor in head]
    ids = torch.cat([rows.support, rows.drawn[:, None], rows.teacher_support], 1)
    log_p, entropy = gathered_log_probs(*ours, ids, Pair("student", "teacher", VOCABULARY, alignment), 3)
    computed = {
        "student_logprob_NK": log_p[:, :K],
        "token_logprob_N": log_p[:, K],
        "teacher_support_student_logprob_NK": log_p[:, K + 1 :],
        "student_entropy_N": entropy,
    }
    given = _cast(rows.inputs(law.detach()), torch.float32)
    loss = compute_loss(PARSE(settings), LossInputs(**vars(given) | computed), 1).loss_sum
    assert loss.item() == pytest.approx(want.item(), rel=1e-5, abs=1e-5)
    gradients = zip(torch.autograd.grad(loss, ours), torch.autograd.grad(want, exact), strict=True)
    for got, expected in gradients:
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)


def test_metrics_are_those_of_the_rows():
    rows = Rows()
    metrics = compute_loss(PARSE({"name": "jsd"}), rows.inputs(rows.student), 0).metric_sums
    p, q = rows.student.softmax(1), rows.teacher.exp()
    assert metrics["support_mass_student"] == pytest.approx(p.gather(1, rows.support).sum().item())
    assert metrics["support_mass_teacher"] == pytest.approx(q.gather(1, rows.support).sum().item())
    assert metrics["student_entropy"] == pytest.approx(torch.special.entr(p).sum().item())
    assert metrics["teacher_entropy"] == pytest.approx(torch.special.entr(q).sum().item())
    raw = {"name": "reverse_kl", "normalisation": "raw"}
    assert metrics["reverse_kl"] == pytest.approx(naive(raw, rows, rows.student, rows.student))


def test_tip_keeps_the_share_with_the_highest_scores():
    rng = np.random.default_rng(0)
    entropy, divergence = rng.random(1000), rng.exponential(size=1000)
    weights = tip_weights(entropy, divergence, 0.2)
    assert weights.sum() == 200 and set(weights) == {0.0, 1.0}

    def scaled(values):
        clipped = np.minimum(values, np.quantile(values, 0.98))
        return (clipped - clipped.min()) / (clipped.max() - clipped.min())

    h, d = scaled(entropy), scaled(divergence)
    score = h + d - h * d
    assert score[weights == 1].min() >= score[weights == 0].max()


def test_tip_counts_a_constant_as_nothing():
    divergence = np.arange(10.0)
    constant = np.full(10, 0.7)
    assert tip_weights(constant, divergence, 0.3).tolist() == [0] * 7 + [1] * 3
    assert tip_weights(constant, constant, 0.3).tolist() == [1] * 3 + [0] * 7
    assert tip_weights(constant, divergence, 1.0).tolist() == [1] * 10


def statistics(lengths):
    rng = np.random.default_rng(1)
    return [
        RolloutStatistics(
            rng.random(length, np.float32),
            np.log(rng.dirichlet(np.ones(K), length)).astype(np.float32),
            np.log(rng.dirichlet(np.ones(K), length)).astype(np.float32),
        )
        for length in lengths
    ]


@pytest.mark.parametrize("settings", SETTINGS, ids=ids_of)
@pytest.mark.parametrize("lengths", [[], [1], [3, 5, 4]])
def test_every_position_has_a_weight(settings, lengths):
    weights = PARSE(settings).position_weights(statistics(lengths))
    assert [len(weight_T) for weight_T in weights] == lengths
    assert all(weight_T.dtype == np.float32 and (weight_T >= 0).all() for weight_T in weights)


def test_tip_weighs_the_whole_batch_at_once():
    weights = PARSE({"name": "tip", "share": 0.25}).position_weights(statistics([3, 5, 4]))
    assert sum(weight_T.sum() for weight_T in weights) == 3
    forbidden = RolloutStatistics(
        np.ones(2, np.float32), np.array([[0.0, -np.inf]] * 2), np.array([[-np.inf, 0.0]] * 2)
    )
    (weight_T,) = PARSE({"name": "tip", "share": 1.0}).position_weights([forbidden])
    assert weight_T.tolist() == [1, 1]


@pytest.mark.parametrize(
    "settings",
    [{}, {"name": "mse"}, {"name": "reverse_kl", "normalization": "raw"}, {"name": "jsd", "mixture": 1.0},
     {"name": "tip", "share": 0}, {"name": "veto", "beta_start": math.nan}],
)  # fmt: skip
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ValidationError):
        PARSE(settings)
