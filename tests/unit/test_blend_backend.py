"""The backend that a server's environment names, and the rows that a fused step leaves to torch."""

import pytest

from sglang_trb.blend.rules import work_of
from sglang_trb.engine.worker.batch import HostRow
from sglang_trb.engine.worker.blend_backend import VARIABLE, blend_backend
from sglang_trb.errors import InvalidParameter
from sglang_trb.wire.params import BlendParams
from sglang_trb.wire.rules import Rule


@pytest.fixture(autouse=True)
def fresh():
    blend_backend.cache_clear()
    yield
    blend_backend.cache_clear()


@pytest.mark.parametrize(("named", "found"), [(None, "auto"), ("", "auto"), ("torch", "torch")])
def test_the_environment_names_it(monkeypatch, named, found):
    monkeypatch.delenv(VARIABLE, raising=False)
    if named is not None:
        monkeypatch.setenv(VARIABLE, named)
    assert blend_backend() == found


@pytest.mark.parametrize("named", ["triton", "reference", "cuda"])
def test_another_is_refused_with_what_is_allowed(monkeypatch, named):
    monkeypatch.setenv(VARIABLE, named)
    with pytest.raises(InvalidParameter, match=f"{VARIABLE}: got '{named}'; allowed: one of auto, torch .triton needs"):
        blend_backend()


@pytest.mark.parametrize(
    ("params", "filters", "unfused"),
    [
        (BlendParams(Rule.STUDENT), False, False),
        (BlendParams(Rule.TEACHER), False, False),
        (BlendParams(Rule.TRUST_REGION, 0.1), False, False),
        (BlendParams(Rule.TRUST_REGION, 0.0), False, False),
        (BlendParams(Rule.TRUST_REGION, 1e-9), False, True),
        (BlendParams(Rule.SKD, 15, 0.6), False, True),
        (BlendParams(Rule.MIXTURE, 0.2), False, True),
        (BlendParams(Rule.STUDENT), True, True),
    ],
    ids=str,
)
def test_which_rows_torch_keeps(params, filters, unfused):
    row = HostRow(params, work_of(params), filters=filters, tempers=True, biased=True)
    assert row.unfused is unfused
