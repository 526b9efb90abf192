"""KL(mu || p) <= epsilon (1 + 1e-4) at every token ever returned, recomputed from the very rows the sampler saw."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from sglang_trb.blend import reference
from tests.pairs import build_pair
from tests.server.checks import prompts
from tests.server.harness import serve

PROBE = Path(__file__).parent / "probe"
EPSILONS = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0]


def test_budget_holds_on_the_rows_the_sampler_saw(tmp_path: Path) -> None:
    pair = build_pair("plain")
    environment = {"PYTHONPATH": str(PROBE), "TRB_PROBE_DIR": str(tmp_path)}
    asked = zip(prompts(len(EPSILONS), 16, seed=51), EPSILONS, strict=True)
    with serve(pair.student, pair.teacher, environment) as server, ThreadPoolExecutor(len(EPSILONS)) as pool:
        futures = [pool.submit(server.generate, ids, {"trb_epsilon": e}, max_new_tokens=16) for ids, e in asked]
        answers = [future.result() for future in futures]
    rows = [row for file in tmp_path.glob("*.pt") for row in recorded_rows(torch.load(file, weights_only=True))]
    budgeted = [row for row in rows if row[2] > 0]
    assert len(budgeted) >= 16 * len(EPSILONS)
    for student, teacher, epsilon, beta, kl in budgeted:
        p, q = (reference.log_softmax(x.double().numpy()) for x in (student, teacher))
        recomputed = reference.kl(reference.mu_at(p, q, beta), p)
        # beta travels as float32: its rounding moves KL by up to 2 × 2^-24 of itself times beta f'/f.
        assert recomputed <= epsilon * (1 + 1e-4)
        assert kl <= epsilon * (1 + 1e-4)
        assert beta == 1.0 or recomputed >= epsilon * (1 - 2e-4)
    for answer, epsilon in zip(answers, EPSILONS, strict=True):
        assert answer["meta_info"]["trb"]["sum_kl"] <= 16 * epsilon * (1 + 1e-4)


def recorded_rows(step: dict) -> list[tuple[torch.Tensor, torch.Tensor, float, float, float]]:
    """Rows of one step; both models of this pair stop with one id, so alignment is the identity."""
    size, columns = step["size"], [np.asarray(step[name], float) for name in ("epsilon", "beta", "kl")]
    return [
        (step["student"][i, :size], step["teacher"][i, :size], *(float(column[i]) for column in columns))
        for i in range(len(step["student"]))
    ]
