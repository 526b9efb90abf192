"""Trainings whose servers draw later steps while earlier ones train (``rollouts.max_staleness``)."""

import re

import pytest

from tests.e2e.tiny_training import STEPS, check_each_prompt_once, curve_of, train, write_config
from trainer.records import METRICS_FILE, read_rows, undeclared
from trainer.rollouts.journal import StepJournal
from trainer.rollouts.versions import updates_of

AHEAD = "rollouts.max_staleness=1"


@pytest.fixture(scope="module")
def overlapped(pair, server, tmp_path_factory):
    """The configuration of a run that went from start to end."""
    path = write_config(tmp_path_factory.mktemp("overlapped"), pair, server)
    done = train(path, AHEAD)
    assert done.returncode == 0, done.stderr
    return path


def run_of(path):
    return path.parent / "runs" / "tiny"


def drawn_by(path, step):
    """After how many updates the students were that drew step k."""
    with StepJournal(run_of(path) / "journal" / f"step-{step:06d}.rollouts") as journal:
        return {updates_of(rollout.weight_version) for rollout in journal.rollouts()}


def test_each_step_is_drawn_one_update_ahead(overlapped):
    rows = read_rows(run_of(overlapped) / METRICS_FILE)
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    assert undeclared({name for row in rows for name in row}) == []
    assert [drawn_by(overlapped, step) for step in range(STEPS)] == [{0}, {0}, {1}, {2}]
    assert [row["rollout/staleness"] for row in rows[1:]] == [0, 1, 1, 1]
    assert [row["rollout/epsilon"] for row in rows[1:]] == pytest.approx([0.1, 0.1 * 2 / 3, 0.1 / 3, 0.0])
    assert all(row["rollout/mean_kl"] <= row["rollout/epsilon"] * (1 + 1e-4) for row in rows[1:])
    assert all(row["rollout/seconds"] > 0 for row in rows[1:])
    assert all(row["drift/mean_abs"] < 1e-4 for row in rows[1:]), "against the student that drew, float32 on both sides"
    assert [row["step"] for row in rows if "eval/sums/pass_at_1" in row] == [0, 2, 4]
    assert rows[-1]["rollout/reverse_kl"] < rows[1]["rollout/reverse_kl"]
    check_each_prompt_once(run_of(overlapped))


@pytest.mark.parametrize(
    ("where", "count"), [("update", 1), pytest.param("update", 3, marks=pytest.mark.slow), ("evaluation", 3)]
)
def test_killed_and_resumed_the_curve_is_the_same(config, overlapped, where, count):
    """In update 1 step 1 is being drawn; what is missing of it comes from the same student, of no update."""
    killed = train(config, AHEAD, where=where, count=count)
    assert killed.returncode == 9, killed.stderr
    before = {path.name: path.read_bytes() for path in (run_of(config) / "journal").glob("*.rollouts")}
    resumed = train(config, AHEAD)
    assert resumed.returncode == 0, resumed.stderr
    for name, kept in before.items():
        assert (run_of(config) / "journal" / name).read_bytes()[: len(kept)] == kept or not whole(kept), name
    check_each_prompt_once(run_of(config))
    assert curve_of(config) == curve_of(overlapped)


def whole(journal: bytes) -> bool:
    """Whether the file ends with a whole record: what a kill cut short is dropped."""
    return journal.rfind(b"TRBJ") < len(journal) - 20


@pytest.mark.slow
def test_drift_is_measured_against_the_student_that_drew_under_zero_3(config):
    done = train(config, AHEAD, "optimisation.zero_stage=3", "evaluation.every=0")
    assert done.returncode == 0, done.stderr
    rows = read_rows(run_of(config) / METRICS_FILE)
    assert [row["rollout/staleness"] for row in rows] == [0, 1, 1, 1]
    assert all(row["drift/mean_abs"] < 1e-4 for row in rows)


def test_a_failure_ahead_ends_the_run_with_its_reason(config):
    """The second rollout of step 1, which is drawn while step 0 trains, finds the disk full."""
    done = train(config, AHEAD, "steps=3", "evaluation.every=0", where="disk_in_journal", count=8)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "No space left on device" in done.stderr
    assert [row["step"] for row in read_rows(run_of(config) / METRICS_FILE)] == [1]
    assert train(config, AHEAD, "steps=3", "evaluation.every=0").returncode == 0
    check_each_prompt_once(run_of(config), 3)


def test_what_was_drawn_ahead_is_set_aside_with_the_step_that_cannot_be_trusted(config):
    overrides = [AHEAD, "steps=3", "evaluation.every=0", "optimisation.max_drift_warn=1e-12"]
    stopped = train(config, *overrides, "optimisation.max_drift_stop=1e-12")
    assert stopped.returncode == 1 and "Traceback" not in stopped.stderr, stopped.stderr
    assert re.search(r"are kept in step-000000\.set-aside-001(, step-000001\.set-aside-001)? and", stopped.stderr)
    assert not list((run_of(config) / "journal").glob("*.rollouts"))
    assert train(config, *overrides).returncode == 0
    check_each_prompt_once(run_of(config), 3)
