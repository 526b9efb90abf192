"""Fig. 3: both curves of each method on one axis of steps, and where the rollouts anneal."""

from __future__ import annotations

import csv
import json

import pytest

from tests.study_folders import write_run, write_study
from trainer.records import METRICS_FILE, SETTINGS_FILE
from trainer.records.files import SettingsBroken
from trainer.study.page import write_study_report
from trainer.study.results import read_study
from trainer.study.table import make_table
from trainer.study.warm_up import warm_up


@pytest.fixture
def study(tmp_path):
    trb = {"method": "trb", "epsilon": 0.1, "warmup_steps": 3}
    for seed in (0, 1):
        write_run(tmp_path, f"v-{seed}", 0.4, seed, rollouts={"behaviour": {"method": "student"}})
        write_run(tmp_path, f"a-{seed}", 0.9, seed, rollouts={"behaviour": trb})
    members = [
        ("vanilla", "Vanilla OPD", "", 0, ["v-0", "v-1"]),
        ("trb", "TRB", "", 0, ["a-0", "a-1"]),
    ]
    write_study(tmp_path, members)
    return tmp_path


def test_both_series_are_in_the_csv_step_by_step(study):
    write_study_report(study)
    rows = list(csv.DictReader((study / "report" / "teacher_entropy.csv").open()))
    assert [int(row["step"]) for row in rows] == [*range(5)] * 2
    own = [row for row in rows if row["method"] == "TRB"]
    assert [float(row["teacher_entropy"]) for row in own] == pytest.approx([1 / (1 + k) for k in range(5)])
    assert {row["runs"] for row in own} == {"2"}
    member = read_study(study).members[1]
    scores = {int(row["step"]): float(row["pass_at_1"]) for row in own if row["pass_at_1"]}
    assert scores == pytest.approx({k: sum(v.mean() for v in member.suite(k).values()) / 2 for k in (0, 2, 4)})
    assert [row["pass_at_1"] for row in own if int(row["step"]) in (1, 3)] == ["", ""]


def test_the_two_panels_share_their_steps_and_the_annealing_is_shaded(study):
    picture = warm_up(make_table(read_study(study)))
    above, below = picture.draw().axes
    assert above.get_shared_x_axes().joined(above, below)
    assert [len(line.get_xdata()) for line in above.lines] == [5, 5]
    assert [len(line.get_xdata()) for line in below.lines] == [3, 3]
    shaded = [(patch.get_x(), patch.get_x() + patch.get_width()) for axis in (above, below) for patch in axis.patches]
    assert shaded == [(0, 3), (0, 3)]
    assert "steps 0 to 3" in picture.chart.caption


def test_without_entropies_the_scores_stand_alone(study):
    for log in study.glob(f"runs/*/{METRICS_FILE}"):
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        kept = [{name: value for name, value in row.items() if "entropy" not in name} for row in rows]
        log.write_text("".join(json.dumps(row) + "\n" for row in kept))
    picture = warm_up(make_table(read_study(study)))
    assert {row[1] for row in picture.rows} == {0, 2, 4} and {row[2] for row in picture.rows} == {None}
    picture.images()


def test_settings_that_no_run_has_are_one_clear_line(study):
    path = study / "runs" / "a-0" / SETTINGS_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rollouts": {"behaviour": {"method": "wild"}}}))
    with pytest.raises(SettingsBroken, match=r"a-0/run.json: rollouts.behaviour: .*'wild'"):
        write_study_report(study)
