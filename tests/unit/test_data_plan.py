"""The data under a run: what fits the servers' context, and the same on every start."""

from __future__ import annotations

import json

import pytest

from trainer.config.run import RunConfig
from trainer.data.limits import Limits
from trainer.data.problems import Problem
from trainer.data.prompts import UnusablePrompts
from trainer.data.record import DATA_FILE, OtherData, RecordBroken
from trainer.evaluation.benchmarks import RenderedBenchmark, TooLong
from trainer.run.data_plan import lay_out_prompts

PROBLEMS = [Problem(str(i), "x" * (i + 1), str(i)) for i in range(10)]
SUMS = [Problem("0", "aaa", "1"), Problem("1", "aaaaaaaa", "2")]
LIMITS = Limits(prompt_tokens=100, total_tokens=105)


def render(question):
    return tuple(map(ord, question))


class Run:
    """A run's folder, and what `lay_out_prompts` is given of it."""

    def __init__(self, folder):
        self.values = {
            "name": "run", "folder": str(folder), "models": {"student": "s", "teacher": "t"},
            "data": {"path": "problems.jsonl", "shuffle": False}, "loss": {"name": "reverse_kl"},
            "rollouts": {"prompts_per_step": 2, "max_new_tokens": 90}, "server": {"urls": ["http://127.0.0.1:30000"]},
            "evaluation": {"max_new_tokens": 100, "benchmarks": [{"name": "sums", "path": "sums.jsonl"}]},
        }  # fmt: skip
        self.folder = folder / "run"
        self.notes = []

    def lay_out(self, problems=PROBLEMS, sums=SUMS, limits=LIMITS, **changes):
        self.notes.clear()
        config = RunConfig(**self.values | changes)
        benchmarks = {b.name: RenderedBenchmark.of(b, sums, render) for b in config.evaluation.benchmarks}
        return lay_out_prompts(config, problems, render, benchmarks, lambda: limits, self.notes.append)

    def begin(self):
        (self.folder / "journal").mkdir(parents=True)
        (self.folder / "journal" / "step-000000.rollouts").touch()


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_what_does_not_fit_the_servers_context_is_left_out_and_said(run):
    stream = run.lay_out([*PROBLEMS, Problem("long", "x" * 16, "1"), Problem("fits", "x" * 15, "1")])
    assert len(stream) == 11 and stream.left_out.total() == 1 and stream.longest == 15
    assert "1 of 12 prompts are left out: longer than the 15 tokens that the servers' context" in run.notes[0]
    assert run.notes[1].startswith("sums: 1 of 2 problems are longer than the 5 tokens")


def test_where_nothing_fits_the_run_does_not_start(run):
    with pytest.raises(UnusablePrompts, match="longer than the -5 tokens that the servers' context leaves"):
        run.lay_out(limits=Limits(80, 85))
    with pytest.raises(TooLong, match=r"benchmarks, sums: got no problem of at most 2 tokens.*--context-length"):
        run.lay_out(limits=Limits(100, 102))
    assert not (run.folder / DATA_FILE).exists()


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (PROBLEMS[:4] + PROBLEMS[5:] + PROBLEMS[4:5], "the same 10 in another order, from number 5 on"),
        ([*PROBLEMS[:7], Problem("7", "x" * 8, "other"), *PROBLEMS[8:]], "1 of 10 changed, the first is number 8"),
        (PROBLEMS[1:], "9 where there were 10; the first that differs is number 1"),
        ([*PROBLEMS, Problem("new", "new", "1")], "11 where there were 10; the first that differs is number 11"),
    ],
)
def test_other_data_under_a_run_that_goes_on_is_refused(run, now, says):
    run.lay_out()
    run.lay_out(now)  # nothing was drawn yet: any data will do
    run.lay_out()
    run.begin()
    with pytest.raises(
        OtherData, match=rf"training prompts: got {says}; allowed: .* Restore the file, or .* another name"
    ):
        run.lay_out(now)
    run.lay_out()


def test_the_template_is_a_part_of_the_data(run):
    run.lay_out()
    run.begin()
    config = RunConfig(**run.values)
    with pytest.raises(OtherData, match="10 of 10 changed"):
        lay_out_prompts(config, PROBLEMS, lambda question: (1, *render(question)), {}, lambda: LIMITS, print)


def test_a_benchmark_stays_what_it_is_under_its_settings(run):
    run.lay_out()
    run.begin()
    with pytest.raises(OtherData, match="benchmark sums: got 1 of 2 changed, the first is number 2"):
        run.lay_out(sums=[SUMS[0], Problem("1", "aaaaaaaa", "3")])
    limited = run.values["evaluation"] | {"benchmarks": [{"name": "sums", "path": "sums.jsonl", "limit": 1}]}
    run.lay_out(sums=SUMS[:1], evaluation=limited)
    run.lay_out(sums=[], evaluation=run.values["evaluation"] | {"benchmarks": []})
    with pytest.raises(OtherData, match="benchmark sums"):
        run.lay_out(sums=[Problem("0", "aab", "1")], evaluation=limited)


def test_the_context_of_the_start_decides_for_the_whole_run(run):
    """Prompts are known by their position: a server with more room brings none back."""
    few = run.lay_out(limits=Limits(100, 98), evaluation={})
    run.begin()
    again = run.lay_out(limits=LIMITS, evaluation={})
    assert [again.step(k) for k in range(9)] == [few.step(k) for k in range(9)]
    assert again.left_out == few.left_out and again.longest == 8


def test_a_run_of_an_older_version_gets_its_record_now(run):
    run.begin()
    stream = run.lay_out([*PROBLEMS, Problem("long", "x" * 16, "1")])
    assert len(stream) == 11, "it was started without a look at the context"
    assert "does not say which data" in run.notes[0]
    assert len(run.lay_out([*PROBLEMS, Problem("long", "x" * 16, "1")])) == 11
    with pytest.raises(OtherData):
        run.lay_out(PROBLEMS)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"prompts": []}', json.dumps({"limits": 3, "prompts": [], "benchmarks": {}})]
)
def test_a_damaged_record_is_named(run, content):
    run.lay_out()
    run.begin()
    (run.folder / DATA_FILE).write_text(content)
    with pytest.raises(RecordBroken, match=r"data\.json"):
        run.lay_out()


def test_orders_of_an_evaluation_leave_out_what_is_too_long_and_keep_the_rest_alike(run):
    config = RunConfig(**run.values)
    sums = RenderedBenchmark.of(config.evaluation.benchmarks[0].model_copy(update={"samples": 2}), SUMS, render)
    all_of_it, fitting = sums.requests(config, 3, "v", 8), sums.requests(config, 3, "v", 7)
    assert fitting == all_of_it[:2] and sums.wanted == len(all_of_it) == 4
    assert [order.blend.returned.value for order in all_of_it] == ["tokens", "none", "none", "none"]
