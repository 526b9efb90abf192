"""`trust_region_blend`: the public, checked entry to the blend, with its backends."""

from __future__ import annotations

import torch

from sglang_trb.blend import solvers
from sglang_trb.blend.distribution import Distribution, row_groups
from sglang_trb.blend.solver import SMALL
from sglang_trb.blend.solvers import Solve, Step
from sglang_trb.blend.types import COLUMN_DTYPES, OK, TOP_K_OFF, BlendOutput, RowControls, StepLogits
from sglang_trb.errors import InvalidParameter
from sglang_trb.pair.alignment import StopAlignment
from sglang_trb.wire.rules import PARAMETERS, Rule

LOGIT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def trust_region_blend(
    student_logits_BV: torch.Tensor,
    teacher_logits_BV: torch.Tensor,
    epsilon_B: torch.Tensor,
    *,
    backend: str = "auto",
) -> BlendOutput:
    """Blend each row with the largest beta in [0, 1] that keeps KL(mu || p) within its budget (Eq. 1, 2).

    Args:
        student_logits_BV: logits [B, V] at temperature 1 or already divided by it; float64, float32, bfloat16 or
            float16; -inf forbids a token.
        teacher_logits_BV: likewise, of the same shape and on the same device.
        epsilon_B: budgets [B] in nats, a float dtype, >= 0, not NaN; +inf allows the teacher itself.
        backend: a name of `solvers.BACKENDS`: ``reference`` (float64 row by row, the definition), ``torch`` (batched),
            ``triton`` (a program a row, on a CUDA device; not for float64 logits); ``auto`` is the fastest on the
            device.

    Returns:
        log mu, beta and KL(mu || p); a row in which either model has NaN, +inf or nothing finite is NaN, alone.

    Raises:
        InvalidParameter (a ValueError): shapes, dtypes, devices, a negative or NaN budget, an unknown backend. The
            budgets' values are not looked at while a CUDA graph is captured.
    """
    _check_logits("student_logits_BV", student_logits_BV)
    _check_logits("teacher_logits_BV", teacher_logits_BV)
    if teacher_logits_BV.shape != student_logits_BV.shape:
        allowed = f"the student's shape {tuple(student_logits_BV.shape)}"
        raise InvalidParameter("teacher_logits_BV.shape", tuple(teacher_logits_BV.shape), allowed)
    if epsilon_B.shape != student_logits_BV.shape[:1]:
        allowed = f"one budget per row, ({student_logits_BV.shape[0]},)"
        raise InvalidParameter("epsilon_B.shape", tuple(epsilon_B.shape), allowed)
    if not epsilon_B.is_floating_point():
        raise InvalidParameter("epsilon_B.dtype", epsilon_B.dtype, "a floating-point dtype")
    devices = {student_logits_BV.device, teacher_logits_BV.device, epsilon_B.device}
    if len(devices) > 1:
        raise InvalidParameter("device", sorted(map(str, devices)), "one device for all three tensors")
    if not _capturing(epsilon_B) and not bool((epsilon_B >= 0).all()):
        raise InvalidParameter("epsilon_B", epsilon_B.tolist(), "numbers >= 0 (nats)")
    found = solvers.find(backend, epsilon_B.device)
    if found.step is None:
        return _blend(student_logits_BV, teacher_logits_BV, epsilon_B, found.solve)
    if torch.float64 in (student_logits_BV.dtype, teacher_logits_BV.dtype):
        raise InvalidParameter("dtype", torch.float64, f"float32, bfloat16 or float16 for {backend!r}")
    return _blend_by_step(student_logits_BV, teacher_logits_BV, epsilon_B, found.step)


def _capturing(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _check_logits(name: str, logits_BV: torch.Tensor) -> None:
    if logits_BV.ndim != 2 or 0 in logits_BV.shape:
        raise InvalidParameter(f"{name}.shape", tuple(logits_BV.shape), "[B, V] with B, V >= 1")
    if logits_BV.dtype not in LOGIT_DTYPES:
        raise InvalidParameter(f"{name}.dtype", logits_BV.dtype, f"one of {LOGIT_DTYPES}")


def _blend(student_BV: torch.Tensor, teacher_BV: torch.Tensor, epsilon_B: torch.Tensor, solve: Solve) -> BlendOutput:
    log_mu_BV = torch.empty_like(student_BV, dtype=torch.float32, memory_format=torch.contiguous_format)
    beta_B, kl_B = (torch.empty_like(log_mu_BV[:, 0]) for _ in range(2))
    any_small = _capturing(epsilon_B) or bool((epsilon_B.gt(0) & epsilon_B.lt(SMALL)).any())
    for rows in row_groups(student_BV.shape[0], student_BV.shape[1], student_BV.device):
        student, teacher = student_BV[rows].double(), teacher_BV[rows].double()
        bad_B = ~(student.amax(1).isfinite() & teacher.amax(1).isfinite())
        p, q = (Distribution.from_logits(x.masked_fill(bad_B[:, None], 0.0)) for x in (student, teacher))
        blend = solve(p, q, epsilon_B[rows], any_small=any_small)
        log_mu_BV[rows] = blend.mu.log_probs().masked_fill_(bad_B[:, None], torch.nan)
        beta_B[rows] = blend.beta_B.masked_fill(bad_B, torch.nan)
        kl_B[rows] = blend.kl_B.masked_fill(bad_B, torch.nan)
    return BlendOutput(log_mu_BV, beta_B, kl_B)


def _blend_by_step(
    student_BV: torch.Tensor, teacher_BV: torch.Tensor, epsilon_B: torch.Tensor, step: Step
) -> BlendOutput:
    """By a backend that draws, too."""

    def column(value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.full_like(epsilon_B, value, dtype=dtype)

    settings = {name: column(p.neutral, COLUMN_DTYPES[p.type]) for name, p in PARAMETERS.items()}
    controls = RowControls(
        rule_B=column(Rule.TRUST_REGION.code, torch.int8),
        settings=settings | {"epsilon": epsilon_B.double()},
        temperature_B=column(1.0, torch.float32),
        top_p_B=column(1.0, torch.float32),
        top_k_B=column(TOP_K_OFF, torch.int32),
        min_p_B=column(0.0, torch.float32),
        greedy_B=column(0, torch.bool),
        seed_B=column(0, torch.int64),
        position_B=column(0, torch.int64),
        any_temperature=False,
    )
    one_stop = StopAlignment((0,), (0,), 0)  # changes nothing
    logits = StepLogits(student_BV, teacher_BV, None, None, student_BV.shape[1])
    output = step(logits, controls, one_stop, need_log_mu=True)
    assert output.log_mu_BV is not None
    bad_B = output.error_B != OK
    log_mu_BV = output.log_mu_BV.masked_fill_(bad_B[:, None], torch.nan)
    beta_B, kl_B = (x.masked_fill(bad_B, torch.nan) for x in (output.record.beta, output.record.kl))
    return BlendOutput(log_mu_BV, beta_B, kl_B)
