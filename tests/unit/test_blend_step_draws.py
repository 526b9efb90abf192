"""`blend_step`: what is drawn, and how often."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from sglang_trb.blend import blend_step, reference
from sglang_trb.wire.params import Rule
from tests.blend_rows import (
    FALSE_FAILURE,
    TWO_STOPS,
    Row,
    controls,
    expected,
    llm_like,
)

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
    Row(rule=Rule.MIXTURE, mixture_alpha=0.2),
    Row(rule=Rule.MIXTURE, mixture_alpha=0.6, top_k=9, temperature=1.3),
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
    assert torch.equal(output.record.beta, replaced_B.float())
    assert torch.equal(output.token_ids_B[~replaced_B], drawn_by_student_B[~replaced_B])
    # The replacements themselves follow the teacher at its temperature.
    counts = output.token_ids_B[replaced_B].bincount(minlength=30).numpy()
    law = np.exp(reference.log_softmax(want.q / np.float64(np.float32(0.6)))) * replaced_B.sum().item()
    common = law >= 5
    observed, wanted = np.append(counts[common], counts[~common].sum()), np.append(law[common], law[~common].sum())
    assert stats.chisquare(observed, wanted).pvalue > FALSE_FAILURE
