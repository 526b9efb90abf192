"""App. F on rollouts: laws that hold are found to hold, and those that do not are said not to."""

from __future__ import annotations

import csv
import dataclasses

import numpy as np
import pytest

from sglang_trb.blend.reference import blend, kl, log_softmax, mu_at
from tests.study_folders import write_rollouts, write_run, write_study
from trainer.rollouts.journal import JournalBroken, read_step
from trainer.study.page import write_study_report
from trainer.study.results import read_study
from trainer.study.small_budgets import small_budgets
from trainer.study.theory import CONSTRAINT, STEPS, prefixes, summarise, theory


def drawn(tmp_path, epsilon, **changes):
    path = write_rollouts(tmp_path / f"{epsilon}", 0, epsilon, **changes)
    return read_step(path, lambda key: True)


def measured(tmp_path, epsilons, change=lambda rollout: rollout, **changes):
    settings = {"prompts": 12, "length": 40} | changes
    return summarise([prefixes(change(r), e) for e in epsilons for r in drawn(tmp_path, e, **settings)])


def altered(field, factor):
    """A rollout of a server that reports a wrong value."""

    def change(rollout):
        values = getattr(rollout.tokens, field)
        return dataclasses.replace(rollout, tokens=dataclasses.replace(rollout.tokens, **{field: values * factor}))

    return change


@pytest.fixture
def study(tmp_path):
    trb = {"method": "trb", "epsilon": 0.1, "warmup_steps": 4}
    write_run(tmp_path, "v-0", 0.4, 0, rollouts={"behaviour": {"method": "student"}})
    write_run(tmp_path, "a-0", 0.9, 0, rollouts={"behaviour": trb})
    write_study(tmp_path, [("vanilla", "Vanilla OPD", "", 0, ["v-0"]), ("trb", "TRB", "", 0, ["a-0"])])
    return tmp_path


def test_variance_and_gain_are_those_of_whole_laws(tmp_path):
    """Against the float64 reference, for models whose 16 ids are all there are."""
    random = np.random.default_rng([0, 0])  # as write_rollouts draws
    (rollout,) = drawn(tmp_path, 0.02, prompts=1, length=1)
    logits = random.normal(0, 2, 16)
    log_p, log_q = log_softmax(logits), log_softmax(logits + random.normal(0, 1.0, 16))
    _, beta, _ = blend(log_p, log_q, 0.02)
    found = prefixes(rollout, 0.02)
    r, p = log_q - log_p, np.exp(log_p)
    assert found.beta == pytest.approx([beta], rel=1e-5)
    assert found.variance == pytest.approx([p @ (r - p @ r) ** 2], rel=1e-4)
    assert found.gain == pytest.approx([kl(log_p, log_q) - kl(mu_at(log_p, log_q, beta), log_q)], rel=1e-4)
    assert found.first_order_gain == pytest.approx(np.sqrt(2 * 0.02 * found.variance))


def test_the_laws_hold_for_a_server_that_blends_right(tmp_path):
    found = measured(tmp_path, (0.001, 0.003, 0.03, 0.1))
    assert [round(band.epsilon, 4) for band in found.bands] == [0.001, 0.003, 0.03, 0.1]
    assert [holds for _, holds, _ in found.verdicts()] == [True, True, True]
    assert found.constraint < 1e-6 and found.left_out == 0
    ratios = [band.gain_ratio.mean for band in found.bands]
    assert ratios == sorted(ratios, reverse=True) and ratios[0] > 0.9 > ratios[-1], "the error grows with the budget"
    gains = [band.gain.mean for band in found.bands]
    slope = np.log(gains[1] / gains[0]) / np.log(3)
    assert slope == pytest.approx(0.5, abs=0.06), "a gain of order sqrt(epsilon)"
    assert all(band.gain.low < band.gain.mean < band.gain.high for band in found.bands)


def test_intervals_hold_the_mean_over_tokens(tmp_path):
    """Of 60 sets of 8 rollouts: 95%, within the error of 60 draws."""
    of_all = measured(tmp_path / "all", (0.01,), prompts=960, length=6).bands[0].gain.mean
    held = 0
    rollouts = drawn(tmp_path, 0.01, prompts=480, length=6, seed=1)
    for i in range(0, 480, 8):
        gain = summarise([prefixes(r, 0.01) for r in rollouts[i : i + 8]]).bands[0].gain
        held += gain.low <= of_all <= gain.high
    assert abs(held / 60 - 0.95) < 3 * (0.95 * 0.05 / 60) ** 0.5


@pytest.mark.parametrize("field", ["kl", "beta"])
def test_a_slip_below_what_the_support_tells_is_seen_in_the_constraint_alone(tmp_path, field):
    """A KL that is too small, or a beta below 1 where the budget is not spent."""
    found = measured(tmp_path, (0.001, 0.01), altered(field, 0.996), scale=0.7)
    assert [holds for _, holds, _ in found.verdicts()] == [False, True, True]


def test_a_law_that_does_not_hold_is_said_with_its_figure(study):
    """A budget that the server takes for half of what was asked: KL is half of epsilon, beta short by a root of two."""
    for step in range(4):
        write_rollouts(study / "runs" / "a-0", step, 0.05 * (1 - step / 4), prompts=8, length=40)
    found = theory(read_study(study))
    assert found.constraint == pytest.approx(0.5) and found.constraint > CONSTRAINT
    page = write_study_report(study).read_text()
    assert "<b>KL(μ‖p) = ε while β &lt; 1: does not hold</b>, |KL / ε − 1| at most 0.5" in page
    assert "<b>β → √(2ε/σ²): does not hold</b>, ratio towards β = 0: 0.7" in page


def test_tokens_whose_laws_the_support_does_not_tell_are_left_out(tmp_path):
    found = measured(tmp_path, (0.01,), outside=40)
    assert 0.9 < found.left_out <= 1 and found.constraint < 1e-6
    assert next(holds for _, holds, _ in found.verdicts()) is True


def test_the_page_has_table_and_picture_of_the_steps_with_a_budget(study):
    for step in range(5):
        epsilon = 0.1 * max(1 - step / 4, 0)
        write_rollouts(study / "runs" / "a-0", step, epsilon, prompts=8, length=40)
        write_rollouts(study / "runs" / "v-0", step, 0.0)
    page = write_study_report(study).read_text()
    rows = list(csv.DictReader((study / "report" / "small_budgets.csv").open()))
    assert [float(row["epsilon"]) for row in rows] == pytest.approx([0.025, (0.05 + 0.075) / 2, 0.1])
    assert [int(row["tokens"]) for row in rows] == [320, 640, 320]
    assert "<h2>Small budgets</h2>" in page and page.count("holds</span>") == 3 and "does not hold" not in page
    assert (study / "report" / "small_budgets.png").stat().st_size > 10_000
    assert float(rows[0]["gain_ratio"]) > float(rows[-1]["gain_ratio"])


def test_without_a_budget_or_rollouts_nothing_is_shown(study):
    write_rollouts(study / "runs" / "v-0", 0, 0.0)
    assert theory(read_study(study)) is None
    assert "Small budgets" not in write_study_report(study).read_text()
    assert not (study / "report" / "small_budgets.csv").exists()


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_of_one_rollout_there_is_no_interval(tmp_path):
    found = measured(tmp_path, (0.01,), prompts=1)
    assert np.isfinite(found.bands[0].gain.mean) and np.isnan(found.bands[0].gain.low)
    assert [holds for _, holds, _ in found.verdicts()] == [True, None, None]
    small_budgets(found).images()


def test_what_is_read_is_bounded(study):
    run = study / "runs" / "a-0"
    path = run / "run.json"
    path.write_text(path.read_text().replace('"warmup_steps": 4', '"warmup_steps": 40'))
    for step in range(20):
        write_rollouts(run, step, 0.1 * (1 - step / 40), prompts=20, length=1, samples=2)
    assert sum(band.tokens for band in theory(read_study(study)).bands) == STEPS * 16


def test_a_damaged_journal_is_one_clear_line(study):
    path = write_rollouts(study / "runs" / "a-0", 0, 0.1)
    path.write_bytes(b"?" + path.read_bytes()[1:])
    with pytest.raises(JournalBroken, match="step-000000.rollouts: damaged at byte 0 .*; remove it"):
        write_study_report(study)
