"""The report: the right numbers in the right places, from whole runs, parts of runs and damaged ones."""

import math
import random
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_trb.display.completions import visible
from sglang_trb.errors import InvalidParameter
from trainer.records import Evaluation, MetricsLog, RecordsBroken, write_evaluation, write_settings
from trainer.report import NothingToReport, read_runs, write_report
from trainer.report.charts import charts_for
from trainer.report.draw import render, running_mean, running_window
from trainer.report.page import page
from trainer.report.runs import Run, Score
from trainer.report.style import SERIES

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "br", "wbr", "link", "img"}
CHARTS = {
    "pass_at_1_sums", "reward", "reverse_kl", "trust_region", "entropy", "responses", "update", "support_mass",
    "drift", "time",
}  # fmt: skip


def score(step, gain=0.4):
    value = 0.19 + gain * (1 - math.exp(-step / 25))
    return {
        "eval/sums/pass_at_1": value,
        "eval/sums/pass_at_1_low": value - 0.05,
        "eval/sums/pass_at_1_high": value + 0.05,
        "time/eval_s": 9.0,
    }


def rows(steps=60, epsilon=0.05, anneal=30, gain=0.4):
    """A run that learns: TRB with the budget annealed over ``anneal`` steps, or vanilla at ``epsilon`` 0."""
    draw = random.Random(0)
    yield {"step": 0} | score(0, gain)
    for step in range(1, steps + 1):
        left, budget = math.exp(-step / 25), epsilon * max(0.0, 1 - (step - 1) / anneal)
        row = {
            "step": step,
            "train/loss": 0.3 * left + draw.gauss(0, 0.02),
            "train/grad_norm": 0.4 + 1.5 * left,
            "train/lr": 1e-5,
            "rollout/epsilon": budget,
            "rollout/mean_beta": math.sqrt(2 * budget),
            "rollout/mean_kl": 0.8 * budget,
            "rollout/sum_kl": 48 * budget,
            "rollout/reverse_kl": 0.1 + 0.4 * left,
            "rollout/student_entropy": 0.4 + 0.5 * left,
            "rollout/teacher_entropy": 0.3 + 0.2 * left,
            "rollout/support_mass_student": 0.99,
            "rollout/support_mass_teacher": 0.97,
            "rollout/response_length": 80 + 30 * left,
            "rollout/finished_share": 1 - 0.1 * left,
            "rollout/reward": 0.6 - 0.4 * left,
            "rollout/tokens_per_s": 900.0,
            "drift/mean_abs": 3e-6,
            "drift/max_abs": 1e-4,
            "time/rollout_s": 5.0,
            "time/train_s": 2.0,
            "time/push_s": 0.5,
        }
        yield row | (score(step, gain) if step % 20 == 0 else {})


def write_run(folder, recorded, settings=None):
    log = MetricsLog(folder / "metrics.jsonl")
    for row in recorded:
        log.append(row)
    if settings:
        write_settings(folder, settings)
    return folder


class Reader(HTMLParser):
    """Collects tags and cells, and fails on markup that does not nest."""

    def __init__(self, document):
        super().__init__(convert_charrefs=True)
        self.tags, self.stack, self.text, self.cells = [], [], [], []
        self.feed(document)
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.stack.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)
        if "td" in self.stack or "th" in self.stack:
            self.cells[-1] += data


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    run = write_run(folder / "micro", rows(), {"steps": 60, "loss": {"form": "surrogate"}, "tags": ["a", "b"]})
    return write_report([run], folder / "report")


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    trb = write_run(folder / "trb", rows(), {"steps": 60, "seed": 1})
    drawn = {"temperature": 1.0, "max_new_tokens": 8192, "benchmark": {"samples": 64}}
    values = {"benchmark": "sums", "step": 60, "pass_at_1": 0.5, "low": 0.4, "high": 0.6, "problems": 9, "faults": 0}
    write_evaluation(trb, Evaluation(**values, settings=drawn))
    vanilla = write_run(folder / "vanilla", rows(44, epsilon=0.0, gain=0.05), {"steps": 60, "seed": 2})
    return write_report([trb, vanilla], folder / "report")


def test_a_run_gives_every_chart_and_one_page_that_needs_nothing_else(one):
    assert {path.name for path in one.parent.iterdir()} == {f"{name}.png" for name in CHARTS} | {"index.html"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in one.parent.glob("*.png"))
    document = one.read_text()
    reader = Reader(document)
    names = {name for _, attributes in reader.tags for name in attributes}
    assert not names & {"src", "href", "srcset", "action"} and not {name for name in names if name.startswith("on")}
    assert all(attributes["xlink:href"].startswith("#") for _, attributes in reader.tags if "xlink:href" in attributes)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", document))
    assert "@import" not in document and "script" not in {tag for tag, _ in reader.tags}
    policy = next(a["content"] for _, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none';") and "script-src" not in policy


def test_no_two_parts_of_the_page_share_an_id_and_every_reference_has_its_target(one):
    document = one.read_text()
    ids = [attributes["id"] for _, attributes in Reader(document).tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|xlink:href=")#([^)"]*)', document)) <= set(ids)


def test_every_colour_of_a_chart_follows_the_theme(one):
    figures = re.findall(r"<figure.*?</figure>", one.read_text(), re.S)
    assert len(figures) == len(CHARTS)
    assert {colour for figure in figures for colour in re.findall(r"#[0-9a-f]{6}\b(?!\))", figure)} == set()
    used = {name for figure in figures for name in re.findall(r"var\((--\w+)\)", figure)}
    style = one.read_text().split("<style>")[1].split("</style>")[0]
    assert used >= {"--ink", "--soft", "--line", "--shade", "--s0", "--s1"}
    assert all(len(re.findall(rf"{name}:", style)) >= 2 for name in used)  # light and dark


def test_the_table_says_before_after_and_whether_the_intervals_are_apart(one, several):
    cells = Reader(one.read_text()).cells
    run = cells[cells.index("micro") :][:6]
    assert run == [
        "micro",
        "sums",
        "0.190 [0.140, 0.240] step 0",
        "0.554 [0.504, 0.604] step 60",  # .19 + .4 (1 − e^(−60/25))
        "+0.364 ↑intervals apart",
        "0.554 [0.504, 0.604] step 60",
    ]
    cells = Reader(several.read_text()).cells
    assert cells[cells.index("vanilla") :][4] == "+0.040intervals overlap"


def test_the_time_split_adds_up(one):
    cells = Reader(one.read_text()).cells
    _, time, _ = (i for i, cell in enumerate(cells) if cell == "micro")  # between the scores and the settings
    # 60 steps of 5 + 2 + 0.5 s, and 4 evaluations of 9 s: 486 s.
    assert cells[time:][:7] == ["micro", "60", "0:08:06", "0:05:00 62%", "0:02:00 25%", "0:00:30 6%", "0:00:36 7%"]


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [320, 1000, 1200])
def test_no_table_of_the_page_has_to_be_scrolled_sideways(one, several, tmp_path, width):
    frames = "".join(
        f'<iframe width="{width}" height="800" srcdoc="{escape(path.read_text())}"></iframe>' for path in (one, several)
    )
    measure = """onload = () => document.title = 'beyond: ' + [...document.querySelectorAll('iframe')].map(frame => [
        ...frame.contentDocument.querySelectorAll('html, .glance')].map(part => part.scrollWidth - part.clientWidth))"""
    both = tmp_path / "both.html"
    both.write_text(f"<!doctype html><title></title>{frames}<script>{measure}</script>")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    options += ["--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", both.as_uri()]
    done = subprocess.run([BROWSER, *options], capture_output=True, text=True, timeout=100, check=True)
    assert "<title>beyond: 0,0,0,0,0,0,0</title>" in done.stdout, done.stdout[:500]


def test_settings_are_shown_and_what_differs_stands_first(one, several):
    cells = Reader(one.read_text()).cells
    assert cells[cells.index("loss.form") + 1] == "surrogate" and cells[cells.index("tags") + 1] == '["a", "b"]'
    cells = Reader(several.read_text()).cells
    assert cells[cells.index("What differs") :][:6] == ["What differs", "trb", "vanilla", "seed", "1", "2"]
    assert cells.index("steps") > cells.index("seed") and cells[cells.index("steps") + 1] == "60"


def test_warm_up_is_shaded_for_one_run_and_marked_where_runs_differ(one, several, tmp_path):
    assert one.read_text().count("ε &gt; 0") == len(CHARTS)
    assert Run("r", list(rows(anneal=30)), {}).warmup() == (0, 30)
    assert Run("r", list(rows(epsilon=0.0)), {}).warmup() is None
    # A vanilla run has no warm-up of its own: the others' common one is shaded.
    assert "end of ε" not in several.read_text()
    runs = [Run(name, list(rows(anneal=anneal)), {}) for name, anneal in (("a", 15), ("b", 25))]
    _, svg = render(next(iter(charts_for(runs))), runs)
    assert "end of ε &gt; 0" in svg


def test_a_partly_recorded_run_gives_a_partial_report_that_says_what_is_missing(tmp_path):
    recorded = [{"step": step, "train/loss": 1.0 / step} for step in (1, 2, 3)]
    recorded[1]["train/loss"] = math.nan
    empty = write_run(tmp_path / "later", [])
    path = write_report([write_run(tmp_path / "run", recorded), empty], tmp_path / "out")
    assert {p.name for p in path.parent.iterdir()} == {"update.png", "index.html"}
    notes = [text for text in Reader(path.read_text()).text if ":" in text]
    assert "later: no step is recorded yet." in notes and "run: train/loss is not a finite number" in notes
    missing = next(text for text in notes if text.startswith("Not recorded, so not drawn: "))
    assert "rollout/epsilon" in missing and "eval/<benchmark>/pass_at_1" in missing and "train/loss" not in missing


def test_what_a_run_left_out_is_said_if_there_is_anything(tmp_path):
    nothing = {"rollout/refused": 0.0, "rollout/grader_faults": 0.0, "rollout/prompts_left_out": 7.0}
    recorded = [{"step": step, **nothing, "train/skipped_updates": float(step > 1)} for step in (1, 2, 3)]
    recorded[0]["rollout/refused"] = recorded[2]["rollout/refused"] = 2.0
    text = Reader(write_report([write_run(tmp_path / "run", recorded)], tmp_path / "out").read_text()).text
    assert "run: rollouts that could not be had: 4, prompts not used: 7, skipped updates: 1." in text
    text = Reader(
        write_report([write_run(tmp_path / "all", [{"step": 1} | nothing])], tmp_path / "out").read_text()
    ).text
    assert "all: prompts not used: 7." in text


def test_the_first_row_alone_is_enough(tmp_path):
    path = write_report([write_run(tmp_path / "run", [{"step": 0} | score(0)])], tmp_path / "out")
    cells = Reader(path.read_text()).cells
    assert "0.190 [0.140, 0.240] step 0" in cells and "–" in cells


def test_a_score_that_is_nan_is_shown_as_none_and_never_as_the_best(tmp_path):
    recorded = [{"step": step, "eval/sums/pass_at_1": score} for step, score in enumerate((math.nan, 0.5, 0.25))]
    page_of = write_report([write_run(tmp_path / "run", recorded)], tmp_path / "out").read_text()
    assert Reader(page_of).cells[6:12] == ["run", "sums", "–  step 0", "0.250  step 2", "–", "0.500  step 1"]
    assert 'width="nan' not in page_of
    none = write_report([write_run(tmp_path / "none", recorded[:1])], tmp_path / "out").read_text()
    assert Reader(none).cells[6:12] == ["none", "sums", "–  step 0", "–  step 0", "–", "–"]


def test_a_run_that_is_being_written_can_be_reported(tmp_path):
    run = write_run(tmp_path / "run", rows(3))
    content = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(content + b'{"step": 4, "train/lo')
    assert len(read_runs([run])[0].rows) == 4
    assert (run / "metrics.jsonl").read_bytes().endswith(b'"train/lo')


def test_what_cannot_be_reported_is_named(tmp_path):
    with pytest.raises(NothingToReport, match="got none"):
        read_runs([])
    with pytest.raises(NothingToReport, match=r"typo: no metrics\.jsonl"):
        read_runs([tmp_path / "typo"])
    empty = write_run(tmp_path / "empty", [])
    with pytest.raises(NothingToReport, match=r"empty/metrics\.jsonl: no step is recorded yet"):
        read_runs([empty])
    run = write_run(tmp_path / "run", rows(2))
    with pytest.raises(NothingToReport, match="run: named twice"):
        read_runs([run, run])
    with pytest.raises(InvalidParameter, match=r"9 folders.*at most 8"):
        write_report([run] * (len(SERIES) + 1), tmp_path / "out")
    (run / "metrics.jsonl").write_text("x\n")
    with pytest.raises(RecordsBroken, match="line 1"):
        read_runs([run])


def test_a_failed_write_leaves_the_report_before(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", [{"step": 1, "train/loss": 1.0}])
    path = write_report([run], tmp_path / "out")
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    MetricsLog(run / "metrics.jsonl").append({"step": 2, "train/loss": 9.0})

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("trainer.atomic.sync", full)
        with pytest.raises(OSError, match="No space"):
            write_report([run], tmp_path / "out")
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


def test_runs_are_named_by_as_much_of_their_path_as_tells_them_apart(tmp_path):
    folders = [write_run(tmp_path / name, rows(1)) for name in ("a/seed0", "b/seed0")]
    assert [run.name for run in read_runs(folders)] == ["a/seed0", "b/seed0"]
    assert [run.name for run in read_runs(folders[:1])] == ["seed0"]
    long = read_runs([write_run(tmp_path / ("x" * 30 + "y" * 30), rows(1))])[0].name
    assert len(long) == 36 and long.startswith("xxx") and long.endswith("yyy") and "…" in long


ATTACKS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style><style>",
    "_$x$ \\frac{1}",
    "\x1b[31m\x00",
]


@pytest.mark.filterwarnings("ignore:Glyph .* missing")
@pytest.mark.parametrize("attack", ATTACKS)
def test_untrusted_text_stays_text(attack):
    def shown(text):
        runs = [Run(visible(name), list(rows(1)), {text: [{text: text}]}) for name in (text, "other")]
        chart = next(iter(charts_for(runs)))
        return page(runs, [(chart, render(chart, runs)[1])])

    attacked = Reader(shown(attack))
    assert [tag for tag, _ in attacked.tags] == [tag for tag, _ in Reader(shown("plain")).tags]
    assert "".join(attacked.text).count(visible(attack)) >= 3


@given(st.floats(0, 10), st.floats(-1, 1), st.integers(3, 60), st.integers(0, 10))
def test_the_running_mean_keeps_straight_lines(start, slope, count, half):
    line = [start + slope * i for i in range(count)]
    # 21 additions of values up to 70: rounding stays below 21 · 70 · 2⁻⁵³ < 2e-13.
    assert running_mean(line, 2 * half + 1) == pytest.approx(line, abs=1e-12)


def test_the_running_mean_averages_and_leaves_gaps():
    assert running_mean([0.0, 3.0, 6.0, 0.0], 3) == [0.0, 3.0, 3.0, 0.0]
    means = running_mean([1.0, 2.0, math.nan, 4.0, 5.0], 3)
    assert means[:2] == [1.0, 1.5] and math.isnan(means[2]) and means[3:] == [4.5, 5.0]
    assert [running_window(steps) for steps in (1, 100, 101, 400)] == [1, 1, 3, 11]


def test_scores_without_intervals_are_scores():
    run = Run("r", [{"step": 5, "eval/a/b/pass_at_1": 0.5}], {})
    assert run.scores("a/b") == [Score(5, 0.5, None, None)]
    (chart,) = charts_for([run])
    assert chart.name == "pass_at_1_a_b"
    assert "0.500  step 5" in Reader(page([run], [(chart, render(chart, [run])[1])])).cells
