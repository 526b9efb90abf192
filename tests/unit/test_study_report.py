"""A study's table, pictures and page, from folders as runs leave them."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from tests.study_folders import write_run, write_study
from trainer.cli.report import run as report
from trainer.records import METRICS_FILE, RecordsBroken, fields
from trainer.report import NothingToReport
from trainer.study.page import _chain, write_study_report
from trainer.study.queue import OtherStudy
from trainer.study.results import ScoresBroken, State, read_study
from trainer.study.table import make_table


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "pair"
    for seed in (0, 1, 2):
        write_run(folder, f"v-{seed}", 0.4, seed)
        write_run(folder, f"a-{seed}", 0.9, seed)
        write_run(folder, f"b-{seed}", 0.91, seed)
        write_run(folder, f"sft-{seed}", 0.1, seed, first_step=2)
    names = {key: [f"{key}-{seed}" for seed in (0, 1, 2)] for key in ("v", "a", "b", "sft")}
    members = [
        ("vanilla", "Vanilla OPD", "", 0, names["v"]),
        ("trb", "TRB <b>", "epsilon 0.1", 0, names["a"]),
        ("trb", "TRB <b>", "epsilon 0.2", 0, [*names["b"][:2], "never-begun"]),
        ("sft", "SFT warm-up", "2 updates", 2, names["sft"]),
    ]
    write_study(folder, members)
    return folder


def test_the_table_is_of_the_best_checkpoint_of_each_family(study):
    table = make_table(read_study(study))
    assert [(row.family, row.step) for row in table.rows] == [("vanilla", 4), ("trb", 4), ("sft", 4)]
    vanilla, trb, sft = table.rows
    assert trb.settings == 2 and set(trb.columns) == {"sums", "words", "mean"}
    member = next(m for m in read_study(study).members if m.setting == trb.member.setting)
    expected = np.mean([member.suite(4)[name].mean() for name in ("sums", "words")])
    assert trb.columns["mean"].mean == pytest.approx(expected)
    assert trb.difference.low > 0 and trb.difference.mean == pytest.approx(
        np.mean([v.mean() for v in trb.member.suite(4, vanilla.member.seeds()).values()])
        - np.mean([v.mean() for v in vanilla.member.suite(4, trb.member.seeds()).values()])
    )
    assert sft.difference.high < 0 and vanilla.difference is None
    assert table.marks["mean"].bold == ("trb",) and table.marks["mean"].underlined == ("vanilla",)


def test_steps_of_supervised_starts_count_the_supervised_updates(study):
    sft = read_study(study).members[3]
    assert sft.steps() == [2, 4] and min(sft.series(fields.TEACHER_ENTROPY)) == 2


def test_a_run_that_is_not_complete_counts_nowhere(study):
    (study / "states" / "a-1.done").rename(study / "states" / "a-1.failed")
    found = read_study(study)
    assert found.members[1].seeds() == [0, 2] and found.members[2].seeds() == [0, 1]
    assert found.counts() == {State.DONE: 10, State.FAILED: 1, State.TO_DO: 1}
    assert "a-1 failed" in write_study_report(study).read_text()


def test_problems_without_an_answer_are_left_out_of_all(study):
    for step in (0, 4):
        path = study / "runs" / "v-0" / "scores" / f"step-{step:06d}" / "sums.json"
        scores = json.loads(path.read_text())
        path.write_text(json.dumps(scores | {"graded": [0, *scores["graded"][1:]], "right": [0, *scores["right"][1:]]}))
    found = read_study(study)
    assert found.problems_left_out == {"sums": 1}
    assert {m.suite(4)["sums"].shape[1] for m in found.members} == {63}


def test_the_page_escapes_names_and_holds_every_picture(study, capsys):
    assert report([str(study)]) == 0
    out = study / "report"
    page = (out / "index.html").read_text()
    assert capsys.readouterr().out.strip() == str(out / "index.html")
    assert "TRB &lt;b&gt;" in page and "TRB <b>" not in page
    assert page.count("<figure") == 4 and "nan" not in page.lower().replace("name", "")
    assert "optimisation.learning_rate" in page and "normalisation surrogate" in page
    assert {path.name for path in out.iterdir()} == {"index.html", "table.csv"} | {
        f"{name}.{kind}"
        for name in ("trajectories", "teacher_entropy", "settings", "separation")
        for kind in ("png", "csv")
    }
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert [(r["family"], r["column"]) for r in rows[:3]] == [("vanilla", c) for c in ("sums", "words", "mean")]
    assert float(rows[5]["p_value"]) < 0.05 and rows[3]["p_value"] == ""


def test_one_seed_is_said_and_one_benchmark_needs_no_mean(tmp_path):
    write_run(tmp_path, "v-0", 0.5, 0, benchmarks=("sums",))
    write_study(tmp_path, [("vanilla", "Vanilla OPD", "", 0, ["v-0"])])
    assert make_table(read_study(tmp_path)).columns == ["sums"]
    assert "say nothing of another seed" in write_study_report(tmp_path).read_text()


def test_a_study_without_a_complete_run_is_shown_as_far_as_it_is(tmp_path):
    write_run(tmp_path, "v-0", 0.5, 0)
    (tmp_path / "states" / "v-0.done").unlink()
    write_study(tmp_path, [("vanilla", "Vanilla OPD", "", 0, ["v-0"])])
    assert "0 of 1 runs are done" in write_study_report(tmp_path).read_text()


def test_what_cannot_be_shown_is_one_clear_line(study, tmp_path):
    with pytest.raises(NothingToReport, match="no study.json in it"):
        read_study(tmp_path / "nowhere")
    write_study(tmp_path / "new", [("vanilla", "Vanilla OPD", "", 0, ["v-0"])])
    with pytest.raises(NothingToReport, match="no run of the study has recorded anything yet"):
        read_study(tmp_path / "new")
    (study / "runs" / "a-1" / METRICS_FILE).unlink()
    write_run(study, "a-1", 0.9, 1, digest="other")
    with pytest.raises(ScoresBroken, match="a-1: sums has other problems than in v-0; they cannot be compared"):
        read_study(study)
    (study / "runs" / "a-1" / METRICS_FILE).unlink()
    write_run(study, "a-1", 0.9, 1)
    scores = study / "runs" / "a-0" / "scores" / "step-000002" / "sums.json"
    scores.rename(study / "sums.json")
    with pytest.raises(ScoresBroken, match="a-0: got no scores of sums after update 2, which has a pass@1"):
        read_study(study)
    (study / "sums.json").rename(scores)
    metrics = study / "runs" / "v-0" / METRICS_FILE
    whole = metrics.read_text()
    metrics.write_text(whole[:-9])  # a last line without its end is no row
    with pytest.raises(ScoresBroken, match="v-0/metrics.jsonl: got 3 updates of a run that is complete with 4"):
        read_study(study)
    metrics.write_text(whole)
    with (study / "runs" / "v-0" / METRICS_FILE).open("a") as file:
        file.write("half a l\n")
    with pytest.raises(RecordsBroken, match="v-0/metrics.jsonl, line 6: not a row"):
        read_study(study)
    (study / "study.json").write_text('{"members": [{"family": 1}], "base": {}}')
    with pytest.raises(OtherStudy, match="study.json: got a damaged record"):
        read_study(study)


def test_the_chain_rules_interval_is_as_wide_as_its_updates_are_few():
    """Of two updates t is 12.7, not 2; of one nothing can be said."""
    rows = [
        {fields.EPSILON: 0.1, fields.RESPONSE_LENGTH: 40.0, fields.SUM_KL: 2.0, fields.LOG_RATIO_KL: estimate}
        for estimate in (1.9, 2.0)
    ]
    assert _chain(rows)["log_ratio"] == "1.950 ± 0.635"  # 12.706 x 0.0707 / sqrt(2)
    assert _chain(rows[:1])["log_ratio"] == "1.900 ± –"
