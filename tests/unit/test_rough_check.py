"""The check of half-precision answers lets bf16's rounding through, and not another row's keys and values."""

import numpy as np
import pytest

from sglang_trb.wire.packing import pack
from tests.pairs import TOKENIZER_SIZE, build_pair
from tests.server.checks import prompts
from tests.server.oracle import Oracle, entropy
from tests.server.staggered import check_roughly, staggered_requests

STOPS = {"student": [2008], "teacher": [2008], "canonical": 2008}
ROUNDING = 0.025
"""Deviation of a log-probability, about that of bf16 in this pair."""

REQUESTS = staggered_requests(4)[::2]


@pytest.fixture(scope="module")
def oracle():
    pair = build_pair("wide")
    return Oracle(pair.student, pair.teacher, TOKENIZER_SIZE, STOPS)


def answer(oracle, request, prompt):
    """What a server would say of fixed tokens if it had computed them after ``prompt``, with some rounding."""
    _, blend, sampling = request
    output = prompts(1, sampling["max_new_tokens"], seed=sampling["sampling_seed"])[0]
    positions = oracle.positions(prompt, output, blend | sampling)
    rng = np.random.default_rng(0)
    rounded = lambda values: np.float32(np.array(values) + ROUNDING * rng.standard_normal(len(output)))  # noqa: E731
    drawn = list(zip(positions, output, strict=True))
    arrays = {
        "student_logprob": rounded([p.student[token] for p, token in drawn]),
        "teacher_logprob": rounded([p.teacher[token] for p, token in drawn]),
        "student_entropy": rounded([entropy(p.student) for p in positions]),
        "teacher_entropy": rounded([entropy(p.teacher) for p in positions]),
        "behavior_logprob": np.float32([p.mu[token] for p, token in drawn]),
        "beta": np.float32([p.beta for p in positions]),
        "kl": np.float32([p.kl for p in positions]),
    }
    return {"output_ids": output, "meta_info": {"trb": {name: pack(array) for name, array in arrays.items()}}}


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: str(request[1]))
def test_rounding_passes_and_another_context_does_not(oracle, request_):
    ids = request_[0]
    check_roughly(oracle, request_, answer(oracle, request_, ids))
    other = prompts(1, len(ids), seed=5)[0]
    with pytest.raises(AssertionError, match="student|teacher"):
        check_roughly(oracle, request_, answer(oracle, request_, [*other[:-2], *ids[-2:]]))
