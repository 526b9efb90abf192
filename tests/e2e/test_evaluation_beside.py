"""Trainings that keep one of two servers for their evaluations (``evaluation.beside_training``)."""

import sys
from pathlib import Path

import pytest

from tests.e2e.tiny_training import STEPS, check_each_prompt_once, curve_of, end_of, train, write_config
from trainer.learner.checkpoints import CheckpointStore
from trainer.records import EVALUATIONS, METRICS_FILE, curve, read_rows, undeclared
from trainer.rollouts.journal import StepJournal
from trainer.rollouts.versions import updates_of

pytestmark = pytest.mark.timeout(900)

EVALUATED = [0, 2, 4]


@pytest.fixture(scope="module")
def plain(pair, server, tmp_path_factory) -> Path:
    """The configuration of a run that waits for its evaluations, on one server."""
    path = write_config(tmp_path_factory.mktemp("plain"), pair, server)
    done = train(path)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture
def beside(server, second_server) -> list[str]:
    return [f"server.urls=[{server}, {second_server}]", "evaluation.beside_training=true"]


def run_of(config: Path) -> Path:
    return config.parent / "runs" / "tiny"


def responses(config: Path, step: int) -> list[tuple]:
    """Of an evaluation: which student drew each, and its tokens."""
    (path,) = (run_of(config) / EVALUATIONS / f"step-{step:06d}").glob("*.rollouts")
    with StepJournal(path) as journal:
        return [(r.key, updates_of(r.weight_version), r.token_ids_T.tolist()) for r in journal.rollouts()]


def check_as(config: Path, plain: Path) -> None:
    """The same rows, the same responses of the student of each evaluation's own step, the same best checkpoint."""
    assert curve_of_values(config) == curve_of_values(plain)
    for step in EVALUATED:
        drawn = responses(config, step)
        assert drawn == responses(plain, step) and {updates for _, updates, _ in drawn} == {step}
    assert best_of(config) == best_of(plain)
    assert not (run_of(config) / EVALUATIONS / "pending.json").read_text().strip("[]\n")
    check_each_prompt_once(run_of(config))


def curve_of_values(config: Path) -> list[dict]:
    """Without the order of a row's names: what came late is at its end."""
    assert "NaN" not in curve_of(config)
    return curve(read_rows(run_of(config) / METRICS_FILE))


def best_of(config: Path) -> object:
    return CheckpointStore(run_of(config) / "checkpoints", 2).best()


def test_evaluations_are_those_of_the_run_that_waits_for_them(config, plain, beside):
    assert responses(plain, 0)[0][2] != responses(plain, 4)[0][2], "else any student's would do"
    done = train(config, *beside)
    assert done.returncode == 0, done.stderr
    rows = read_rows(run_of(config) / METRICS_FILE)
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    assert undeclared({name for row in rows for name in row}) == []
    assert [row["step"] for row in rows if "eval/sums/pass_at_1" in row] == EVALUATED
    assert [row["step"] for row in rows if row.get("eval/seconds", 0) > 0] == EVALUATED
    assert "evaluated step 4 | pass@1 sums" in done.stdout
    assert (run_of(config) / "report" / "index.html").is_file()
    check_as(config, plain)
    again = train(config, *beside)
    assert again.returncode == 0 and "all 4 updates are made" in again.stdout, again.stderr


@pytest.mark.parametrize("beside_again", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_killed_in_an_evaluation_while_the_training_was_ahead(config, plain, beside, beside_again):
    """The evaluation of update 2 ends the process once checkpoint 4 is there, of which the newest alone is kept."""
    few = "checkpoints.keep_last=1"
    killed = train(config, *beside, few, where="evaluation_beside", count=2)
    assert killed.returncode == 9, killed.stderr
    assert "the evaluation after 2 updates is not done; the training waits for it" in killed.stdout, killed.stdout
    assert [checkpoint.step for checkpoint in CheckpointStore(run_of(config) / "checkpoints", 1).all()] == [2, 4]
    rows = read_rows(run_of(config) / METRICS_FILE)
    assert [row["step"] for row in rows] == [0, 1, 2, 3] and "eval/sums/pass_at_1" not in rows[2]
    resumed = train(config, few, *(beside if beside_again else []))
    assert resumed.returncode == 0, resumed.stderr
    check_as(config, plain)


@pytest.mark.slow
def test_killed_in_the_last_evaluation(config, plain, beside):
    killed = train(config, *beside, where="evaluation", count=3)
    assert killed.returncode == 9, killed.stderr
    assert "eval/sums/pass_at_1" not in read_rows(run_of(config) / METRICS_FILE)[-1]
    resumed = train(config, *beside)
    assert resumed.returncode == 0, resumed.stderr
    check_as(config, plain)


def test_an_evaluation_that_fails_ends_the_run_with_its_reason(config, server, beside):
    """Nobody answers where the server for evaluations should be."""
    nowhere = f"server.urls=[{server}, 'http://127.0.0.1:9']"
    done = train(config, *beside[1:], nowhere, "server.unreachable_s=1", "steps=50", "checkpoints.every=50",
                 "evaluation.every=50", "evaluation.at_start=false")  # fmt: skip
    assert done.returncode == 1 and "http://127.0.0.1:9 is gone since" in done.stderr, done.stderr + done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_two_processes_and_rollouts_ahead(config, pair, server, beside, tmp_path_factory):
    """The others come to every look at the evaluation; the rollouts are drawn beside it and beside the training."""
    waits = write_config(tmp_path_factory.mktemp("waits"), pair, server)
    for path, own in ((waits, []), (config, beside)):
        launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "sglang_trb.cli.main", "train"]
        done = end_of([sys.executable, *launch, "--config", str(path), "rollouts.max_staleness=1", *own], seconds=400)
        assert done.returncode == 0, done.stderr
    check_as(config, waits)
