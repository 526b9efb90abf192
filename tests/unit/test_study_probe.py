"""The prefix probe's numbers and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trainer.cli.probe import run
from trainer.config.file import load_config
from trainer.records import RecordsBroken
from trainer.study.probe import PROBE, NothingToProbe, Probe, Success, probe, read_probe

MICRO = "examples/micro/trb.yaml"


def success(source, right, graded, continuation="teacher", length=8):
    return Success(source=source, continuation=continuation, length=length, right=right, graded=graded)


def test_the_gain_is_of_all_responses_and_its_interval_over_prompts():
    found = Probe(behaviour="", successes=[success("behaviour", [3, 0], [4, 4]), success("student", [1, 1], [4, 4])])
    gain, low, high = found.gain("teacher", 8)
    assert gain == pytest.approx((3 / 8) / (2 / 8) - 1)
    # Of two prompts drawn with replacement: both the first (+200%), both the second (-100%), or one each (+50%).
    assert low == pytest.approx(-1) and high == pytest.approx(2)


def test_intervals_of_equal_policies_hold_zero():
    """300 probes of policies with one rate: 95% of the intervals hold a gain of 0, within the error of 300 draws."""
    random, held = np.random.default_rng(0), 0
    for _ in range(300):
        rates = random.beta(2, 2, 100)
        right = [random.binomial(4, rates).tolist() for _ in range(2)]
        pair = [success(source, r, [4] * 100) for source, r in zip(("behaviour", "student"), right, strict=True)]
        _, low, high = Probe(behaviour="", successes=pair).gain("teacher", 8, resamples=500)
        held += low <= 0 <= high
    assert abs(held / 300 - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 300)


def test_a_student_that_never_succeeds_gives_no_gain():
    found = Probe(behaviour="", successes=[success("behaviour", [1, 1], [4, 4]), success("student", [0, 0], [4, 4])])
    assert not any(map(math.isfinite, found.gain("teacher", 8)))


def test_a_damaged_result_is_named(tmp_path):
    assert read_probe(tmp_path) is None
    (tmp_path / PROBE).mkdir()
    (tmp_path / PROBE / "probe.json").write_text('{"behaviour"')
    with pytest.raises(RecordsBroken, match=r"probe.json: Invalid JSON.*; remove it"):
        read_probe(tmp_path)


def test_the_student_itself_is_not_probed(tmp_path):
    config = load_config(MICRO, ["rollouts.behaviour={method: student}", f"folder={tmp_path}"])
    with pytest.raises(NothingToProbe, match="rollouts.behaviour: got the student itself"):
        probe(config, [8], 1, print)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--lengths", "0"], "got '0'; allowed: whole numbers above 0"),
        (["--lengths", "8,x"], "got 'x'; allowed"),
        (["--lengths", "8", "--steps", "-1"], "got '-1'; allowed"),
        (["--lengths", "72"], "--lengths: got 72; allowed: less than rollouts.max_new_tokens, 72"),
        (["--lengths", "8", "stepz=1"], "stepz: there is no such field"),
    ],
)
def test_wrong_arguments_are_named(arguments, says, capsys):
    try:
        status = run(["--config", MICRO, *arguments])
    except SystemExit as ended:
        status = ended.code
    assert status == 2 and says in capsys.readouterr().err
