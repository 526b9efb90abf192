"""What a run puts up with in its updates, and what stops it."""

from __future__ import annotations

import math

import pytest

from trainer.config.run import Optimisation
from trainer.learner.engine import Update
from trainer.learner.update_check import EnginesDisagree, NotFinite, Skips, check_update

SETTINGS = Optimisation(max_skipped_in_a_row=2, max_skipped=4, max_drift_warn=0.02, max_drift_stop=0.2)


def after(*updates):
    skips, notes = Skips(), []
    for step, (applied, drift) in enumerate(updates):
        norm = 1.0 if applied else math.nan
        update = Update(norm, norm, 1e-5, drift, drift, 0.0, {}, applied)
        skips = check_update(update, skips, SETTINGS, step, notes.append)
    return skips, notes


GOOD, SKIPPED = (True, 1e-5), (False, math.nan)


def test_some_skipped_updates_are_put_up_with_and_said():
    skips, notes = after(SKIPPED, SKIPPED, GOOD, SKIPPED, GOOD, SKIPPED)
    assert skips == Skips(4, 1)
    assert [note.split(":")[0] for note in notes] == ["step 0", "step 1", "step 3", "step 5"]


@pytest.mark.parametrize(
    ("updates", "step", "limit"),
    [([SKIPPED] * 3, 2, "max_skipped_in_a_row = 2"), ([SKIPPED, GOOD] * 5, 8, "max_skipped = 4")],
)
def test_too_many_stop_the_run(updates, step, limit):
    with pytest.raises(NotFinite, match=rf"step {step}: .*allowed: optimisation\.{limit}"):
        after(*updates)


def test_engines_that_disagree_are_said_then_stop_the_run():
    _, (note,) = after(GOOD, (True, 0.1))
    assert "step 1: trainer and server differ by 1.00e-01 nats" in note
    for drift in (0.3, math.inf, math.nan):
        with pytest.raises(EnginesDisagree, match=r"step 1: .* allowed: optimisation\.max_drift_stop = 0\.2"):
            after(GOOD, (True, drift))
    with pytest.raises(EnginesDisagree):
        after((False, 0.3))
