"""The metrics file: nothing recorded is ever lost, half written or there twice, whatever kills the run."""

import ast
import json
import math
import re
import resource
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_trb.errors import InvalidParameter
from trainer.records import (
    MetricsLog,
    RecordsBroken,
    curve,
    fields,
    read_rows,
    read_settings,
    undeclared,
    write_settings,
)
from trainer.records.files import SettingsBroken
from trainer.report.charts import CURVES
from trainer.report.page import LEFT_OUT, LEFT_OUT_SO_FAR
from trainer.run.progress import SHOWN

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.jsonl"


def recorded(path, steps, loss=0.5):
    log = MetricsLog(path)
    for step in steps:
        log.append({"step": step, "train/loss": loss, "time/train_s": 1.0})
    return log


@given(st.lists(st.floats(), max_size=5))
def test_numbers_read_back_bit_for_bit(tmp_path_factory, values):
    log = MetricsLog(tmp_path_factory.mktemp("run") / "metrics.jsonl")
    log.append({"step": 3, **{f"a/{i}": value for i, value in enumerate(values)}})
    (row,) = read_rows(log.path)
    back = [row[f"a/{i}"] for i in range(len(values))]
    canonical = [math.nan if math.isnan(value) else value for value in values]  # JSON keeps no NaN payload
    assert [struct.pack("d", v) for v in back] == [struct.pack("d", v) for v in canonical]


def test_the_file_is_strict_json(path):
    MetricsLog(path).append({"step": 1, "a/nan": math.nan, "a/inf": math.inf, "a/neg": -math.inf})

    def refuse(name):
        raise AssertionError(name)

    row = json.loads(path.read_text(), parse_constant=refuse)
    assert row == {"step": 1, "a/nan": "NaN", "a/inf": "Infinity", "a/neg": "-Infinity"}


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"train/loss": 1.0}, "step"),
        ({"step": -1}, "step"),
        ({"step": 4.0}, "step"),
        ({"step": True}, "step"),
        ({"step": 3}, "step"),
        ({"step": 4, "loss": 1.0}, "metric name"),
        ({"step": 4, "train/": 1.0}, "metric name"),
        ({"step": 4, "train/a b": 1.0}, "metric name"),
        ({"step": 4, "train/loss": None}, "train/loss"),
        ({"step": 4, "train/loss": "NaN"}, "train/loss"),
        ({"step": 4, "train/good": True}, "train/good"),
        ({"step": 4, "train/large": 10**400}, "train/large"),
    ],
)
def test_a_row_that_cannot_be_recorded_is_refused_and_nothing_is_written(path, row, field):
    log = recorded(path, [3])
    before = path.read_bytes()
    with pytest.raises(InvalidParameter, match=f"{field}: got .* allowed"):
        log.append(row)
    assert path.read_bytes() == before


def test_every_cut_of_the_last_line_is_repaired_and_its_bytes_are_kept(path):
    recorded(path, [1, 2, 3])
    whole = path.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    for cut in range(start, len(whole)):
        path.write_bytes(whole[:cut])
        expected = [1, 2, 3] if cut == len(whole) - 1 else [1, 2]  # without its newline only, the row is whole
        assert [row["step"] for row in read_rows(path)] == [1, 2]  # a reader repairs nothing
        assert path.read_bytes() == whole[:cut]
        log = MetricsLog(path)
        assert [row["step"] for row in read_rows(path)] == expected and log.last_step == expected[-1]
        log.append({"step": 4})
        assert [row["step"] for row in read_rows(path)] == [*expected, 4]
    torn = sorted(path.parent.glob("metrics.torn-*.jsonl"))
    assert [file.read_bytes() for file in torn] == [whole[start:cut] for cut in range(start + 1, len(whole) - 1)]


def test_zeros_of_a_power_cut_are_repaired(path):
    recorded(path, [1])
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(4096))
    MetricsLog(path)
    assert path.read_bytes() == whole


LINES_THAT_ARE_NO_ROWS = [
    *("{}", '{"step": 1', "[1]", "", '{"step": 1, "a/b": "x"}', '{"step": 1}\n{"step": 1}'),
    f'{{"step": 1, "a/b": 1{"0" * 400}}}',
    "[" * 100_000,
]


@pytest.mark.parametrize("line", LINES_THAT_ARE_NO_ROWS)
def test_damage_before_the_end_is_an_error_that_names_the_line(path, line):
    path.parent.mkdir()
    path.write_text(f'{{"step": 0}}\n{line}\n{{"step": 9}}\n')
    with pytest.raises(RecordsBroken, match=r"metrics\.jsonl, line [23]: "):
        MetricsLog(path)


def test_a_resumed_curve_has_each_step_once_and_loses_nothing(path):
    log = recorded(path, range(8), loss=1.0)
    assert log.rewind(7) is None and log.rewind(9) is None
    history = log.rewind(4)
    assert history.name == "metrics.rewound-001.jsonl" and [r["step"] for r in read_rows(history)] == [5, 6, 7]
    assert log.last_step == 4
    log = recorded(path, range(5, 7), loss=2.0)
    assert log.rewind(5).name == "metrics.rewound-002.jsonl"
    assert [(r["step"], r["train/loss"]) for r in read_rows(path)] == [(k, 1.0) for k in range(5)] + [(5, 2.0)]
    assert log.rewind(-1).name == "metrics.rewound-003.jsonl"
    assert path.read_bytes() == b"" and log.last_step is None
    log.append({"step": 0})


def test_what_is_measured_later_is_added_to_its_row(path):
    log = recorded(path, range(4), loss=1.0 / 3.0)
    before = path.read_bytes().splitlines()
    log.amend(2, {"eval/sums/pass_at_1": math.nan, "time/eval_s": 2.5})
    assert (after := path.read_bytes().splitlines())[:2] == before[:2] and after[3] == before[3]
    row = read_rows(path)[2]
    assert row["train/loss"] == 1.0 / 3.0 and math.isnan(row["eval/sums/pass_at_1"]) and row["time/eval_s"] == 2.5
    log.append({"step": 4})
    for step, values in ((9, {"a/b": 1.0}), (3, {"a/b": None})):
        whole = path.read_bytes()
        with pytest.raises(InvalidParameter):
            log.amend(step, values)
        assert path.read_bytes() == whole


def test_killed_between_the_two_files_of_a_rewind_the_rows_are_in_both(path, monkeypatch):
    log = recorded(path, range(4))
    before = path.read_bytes()

    def killed(target, content):
        if target == path:
            raise KeyboardInterrupt
        target.write_bytes(content)

    with monkeypatch.context() as patched:
        patched.setattr("trainer.records.metrics.write_file", killed)
        with pytest.raises(KeyboardInterrupt):
            log.rewind(1)
    assert path.read_bytes() == before
    MetricsLog(path).rewind(1)
    assert [r["step"] for r in read_rows(path)] == [0, 1]
    for number in (1, 2):
        assert [r["step"] for r in read_rows(path.with_name(f"metrics.rewound-00{number}.jsonl"))] == [2, 3]


@pytest.mark.parametrize("room", [0, 1, 20])
def test_a_full_disk_is_an_error_and_leaves_whole_rows(path, room):
    log = recorded(path, [1, 2])
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + room, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            log.append({"step": 3, "train/loss": 1 / 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before and log.last_step == 2
    log.append({"step": 3})
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3]


def test_the_curve_leaves_out_what_the_clock_decides_and_nothing_else():
    row = {"step": 1, "train/loss": 0.1, "time/train_s": 2.0, "rollout/tokens_per_s": 9.0, "drift/max_abs": 0.0}
    assert curve([row]) == [{"step": 1, "train/loss": 0.1, "drift/max_abs": 0.0}]


def test_every_value_that_is_shown_somewhere_is_declared():
    drawn = [field for chart in CURVES for field in chart.fields()]
    assert undeclared([*drawn, *SHOWN, *LEFT_OUT, *LEFT_OUT_SO_FAR, "step"]) == []
    of_benchmarks = ["eval/aime24/pass_at_1_low", "eval/a/b/pass_at_1", "time/push_s", "time/push"]
    assert undeclared([*of_benchmarks, "train/los"]) == ["eval/a/b/pass_at_1", "time/push", "train/los"]
    assert all(metric.unit == metric.unit.strip() and metric.meaning for metric in fields.METRICS.values())


def named_metrics(source: str) -> list[str]:
    """Texts of a source that look like a metric's name."""
    texts = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    return [
        text for text in texts if isinstance(text, str) and re.match(r"(rollout|train|drift|eval|time)/[\w<]*", text)
    ]


def test_a_metric_is_named_where_it_is_declared_and_nowhere_else():
    home = ROOT / "trainer/records/fields.py"
    others = [path for path in (ROOT / "trainer").rglob("*.py") if path != home]
    spelled = {str(path.relative_to(ROOT)): named_metrics(path.read_text()) for path in others}
    spelled["trainer/records/metrics.py"].remove(
        r"time/.*|.*_per_s|.*/seconds"
    )  # what the clock decides, whatever its name
    assert {path: names for path, names in spelled.items() if names} == {}
    assert len(named_metrics(home.read_text())) >= len(fields.METRICS)


def test_the_page_of_numbers_names_metrics():
    page = (ROOT / "docs/training.md").read_text().split("## What the numbers mean")[1].split("##")[0]
    named = re.findall(r"`((?:rollout|train|drift)/\w+)`", page)
    assert len(named) > 5 and undeclared(named) == []


def test_settings_read_back_and_damage_is_named(tmp_path):
    assert read_settings(tmp_path) == {}
    write_settings(tmp_path, {"steps": 3, "name": "ε"})
    assert read_settings(tmp_path) == {"steps": 3, "name": "ε"} and len(list(tmp_path.iterdir())) == 1
    for text in ("[1]", "{", "[" * 100_000, "\0" * 10):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(SettingsBroken, match=r"run\.json: "):
            read_settings(tmp_path)
