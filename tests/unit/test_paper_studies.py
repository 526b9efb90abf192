"""The shipped studies of the paper: every number of its Tables 2, 3 and 4 and of App. A.2's grids, in every run."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from sglang_trb.wire.params import Rule
from trainer.study.plan import load_study, make_plan

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = {"gsm8k": 32, "math500": 64, "olympiad": 64, "amc": 512, "aime24": 512, "aime25": 512}
SUITES = {
    "0.6b-4b": ["gsm8k", "math500", "olympiad", "amc"],
    "1.7b-8b": ["math500", "olympiad", "amc", "aime24", "aime25"],
}
PAIRS = {
    "0.6b-4b": ("Qwen/Qwen3-0.6B-Base", "Qwen/Qwen3-4B"),
    "1.7b-8b": ("Qwen/Qwen3-1.7B-Base", "Qwen/Qwen3-8B"),
}


@pytest.fixture(params=PAIRS, scope="module")
def name(request):
    return request.param


@pytest.fixture(scope="module")
def plan(name):
    study = load_study(ROOT / "examples" / "study" / f"paper-{name}.yaml")
    return make_plan(study.model_copy(update={"base": str(ROOT / study.base)}))


def behaviours(plan, family):
    return [member.runs[0].config.rollouts.behaviour for member in plan.members if member.family == family]


def test_tables_2_and_3_hold_for_every_run(plan, name):
    first = plan.members[0].runs[0].config
    for run in plan.runs:
        config = run.config
        rollouts, update, data = config.rollouts, config.optimisation, config.data
        assert (rollouts.prompts_per_step, rollouts.samples_per_prompt) == (64, 4), run.name
        assert (data.max_prompt_tokens, rollouts.max_new_tokens) == (1024, 7168)
        assert (update.learning_rate, update.betas, update.weight_decay, update.max_grad_norm) == (
            1e-5,
            (0.9, 0.999),
            0.01,
            1.0,
        )
        assert update.warmup_steps == (0 if run.after else 15)
        assert data.system_prompt == "Please reason step by step, and put your final answer within \\boxed{}."
        assert data.model_copy(update={"first_prompt": 0}) == first.data and config.seed == 0
        assert config.models.teacher == PAIRS[name][1] and (run.after or config.models.student == PAIRS[name][0])
        assert config.sampling(10**6)[1] == 1.0, "temperature, after any warm-up"
        assert config.loss.aggregation == "token_mean"
        if run.name != "sft-warmup-seed-0":
            assert config.steps + run.first_step == 400
            assert (config.evaluation.every, config.evaluation.temperature) == (20, 1.0)
            assert config.evaluation.max_new_tokens == 8192
            assert {b.name: b.samples for b in config.evaluation.benchmarks} == {n: SAMPLES[n] for n in SUITES[name]}
    assert plan.base.steps * 64 == 25_600


def test_the_grids_are_those_of_appendix_a2(plan):
    epsilons = [0.001, 0.005, 0.01, 0.02, 0.05]
    assert [b.method for b in behaviours(plan, "vanilla")] == ["student"]
    assert [(b.epsilon, b.warmup_steps) for b in behaviours(plan, "trb")] == list(product(epsilons, [15, 25, 50]))
    assert [b.epsilon for b in behaviours(plan, "fixed_epsilon")] == epsilons
    got = [(b.top_k, b.teacher_temperature) for b in behaviours(plan, "skd")]
    assert got == list(product([15, 25, 50], [0.2, 0.6, 1.0]))
    got = [(b.initial_temperature, b.warmup_steps) for b in behaviours(plan, "temperature")]
    assert got == list(product([0.8, 0.9, 0.95], [15, 25]))
    veto = [member.runs[0].config for member in plan.members if member.family == "veto"]
    assert [config.loss.beta_start for config in veto] == [0.2, 0.4, 0.6, 0.8]
    assert {config.rollouts.behaviour.method for config in veto} == {"student"}
    assert [member.runs[0].first_step for member in plan.members if member.family == "sft"] == [15, 25, 50]
    assert len(plan.runs) == 1 + 15 + 5 + 9 + 4 + 6 + 3 + 1


def test_table_4_holds_for_the_supervised_updates(plan):
    warm = next(run.config for run in plan.runs if run.name == "sft-warmup-seed-0")
    assert warm.steps == 50 and warm.loss.name == "sft" and warm.sampling(0)[0].rule is Rule.TEACHER
    assert warm.sampling(0)[1] == 1.0 and warm.longest_sequence <= 8192
    assert warm.data.first_prompt == 0 and warm.optimisation.warmup_steps == 15
    starts = [m.runs[0].config for m in plan.members if m.family == "sft"]
    assert [config.data.first_prompt for config in starts] == [15 * 64, 25 * 64, 50 * 64]


def test_only_the_method_differs(plan):
    base = plan.base.model_dump(exclude={"name", "folder", "server"})
    for run in plan.runs:
        if run.after is None and run.name != "sft-warmup-seed-0":
            own = run.config.model_dump(exclude={"name", "folder", "server"})
            different = {key for key in own if own[key] != base[key]}
            assert different <= {"rollouts", "loss"}, run.name
            if "loss" in different:
                assert run.name.startswith("veto")
