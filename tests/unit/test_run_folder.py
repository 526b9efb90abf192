"""Who may write to a run's folder, and which run may go on in it."""

from __future__ import annotations

import json

import pytest

from sglang_trb.blend import StopAlignment
from sglang_trb.pair.pair import Pair
from tests.pairs import build_pair
from trainer.config.run import RunConfig
from trainer.records import write_settings
from trainer.run.folder import (
    MAY_CHANGE,
    PROVENANCE_FILE,
    FolderInUse,
    OtherRun,
    check_continues,
    claimed,
    write_provenance,
)

VALUES = {
    "name": "run",
    "models": {"student": "s", "teacher": "t"},
    "data": {"path": "problems.jsonl"},
    "loss": {"name": "reverse_kl"},
    "server": {"urls": ["http://127.0.0.1:30000"]},
}


@pytest.fixture
def folder(tmp_path):
    """Of a run that was started with `VALUES`."""
    write_settings(tmp_path, RunConfig(**VALUES).model_dump(mode="json"))
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "step-000000.rollouts").touch()
    return tmp_path


def test_one_at_a_time(tmp_path):
    with claimed(tmp_path), pytest.raises(FolderInUse, match="another process of trb is at work"), claimed(tmp_path):
        pass
    with claimed(tmp_path):
        pass


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("seed", {"seed": 1}),
        ("data.path", {"data": {"path": "others.jsonl"}}),
        ("rollouts.behaviour.epsilon", {"rollouts": {"behaviour": {"method": "trb", "epsilon": 0.5}}}),
        ("loss.normalisation", {"loss": {"name": "reverse_kl", "normalisation": "tail"}}),
        ("optimisation.learning_rate", {"optimisation": {"learning_rate": 1}}),
    ],
)
def test_what_decides_about_a_run_stays(folder, field, change):
    with pytest.raises(OtherRun, match=rf"{field}: got .* was started with .*; allowed: the same, or another name"):
        check_continues(folder, RunConfig(**VALUES | change))


def test_the_rest_may_change(folder):
    change = {
        "steps": 3,
        "server": {"launch": "x.yaml"},
        "optimisation": {"micro_batch_size": 1, "micro_batch_tokens": 8192},
    }
    check_continues(folder, RunConfig(**VALUES | change))


def test_micro_batches_that_decide_about_the_loss_stay(tmp_path):
    values = VALUES | {"loss": {"name": "reverse_kl", "aggregation": "micro_batch_mean"}}
    write_settings(tmp_path, RunConfig(**values).model_dump(mode="json"))
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "step-000000.rollouts").touch()
    with pytest.raises(OtherRun, match=r"optimisation\.micro_batch_size: got 1, but .* was started with 4"):
        check_continues(tmp_path, RunConfig(**values | {"optimisation": {"micro_batch_size": 1}}))


def test_what_may_change_exists():
    settings = RunConfig(**VALUES).model_dump()
    for name in MAY_CHANGE:
        value = settings
        for part in name.split("."):
            assert part in value, name
            value = value[part]


def test_a_folder_without_rollouts_takes_any_run(folder):
    (folder / "journal" / "step-000000.rollouts").unlink()
    check_continues(folder, RunConfig(**VALUES | {"seed": 1}))


def test_the_template_is_recorded(tmp_path):
    pair = build_pair("plain")
    config = RunConfig(**VALUES | {"models": {"student": str(pair.student), "teacher": str(pair.teacher)}})
    write_provenance(tmp_path, config, Pair("student", "teacher", 96, StopAlignment((3,), (5, 3), 3)))
    written = json.loads((tmp_path / PROVENANCE_FILE).read_text())
    assert written["stop_ids"] == {"student": [3], "teacher": [5, 3], "canonical": 3}
    assert written["versions"]["sglang"] and "chat_template" in written
