"""The shipped studies of the paper: every number of its Tables 2, 3 and 4 and of App. A.2's grids, in every run."""

from __future__ import annotations

import socket
from collections import Counter
from itertools import product
from pathlib import Path

import pytest

from sglang_trb.checkpoints.memory import GIB, H100_BYTES
from sglang_trb.checkpoints.memory import plan as server_memory
from sglang_trb.launch.server_config import read_server_config
from sglang_trb.wire.params import Return, Rule
from sglang_trb.wire.record import SUPPORT_SIZE
from trainer.cli.study import run as run_command
from trainer.rollouts.rollout import UNFILTERED
from trainer.run.plan import training_memory
from trainer.schedules import learning_rate_factor
from trainer.study.plan import load_study, make_plan

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = {"gsm8k": 32, "math500": 64, "olympiad": 64, "amc": 512, "aime24": 512, "aime25": 512}
PROBLEMS = {"gsm8k": 1319, "math500": 500, "olympiad": 674, "amc": 40, "aime24": 30, "aime25": 30}
SUITES = {
    "0.6b-4b": ["gsm8k", "math500", "olympiad", "amc"],
    "1.7b-8b": ["math500", "olympiad", "amc", "aime24", "aime25"],
}
PAIRS = {
    "0.6b-4b": ("Qwen/Qwen3-0.6B-Base", "Qwen/Qwen3-4B"),
    "1.7b-8b": ("Qwen/Qwen3-1.7B-Base", "Qwen/Qwen3-8B"),
}
MEMBERS = {"vanilla": 1, "trb": 15, "fixed_epsilon": 5, "skd": 9, "veto": 4, "temperature": 6, "sft": 3}
EPSILONS = [0.001, 0.005, 0.01, 0.02, 0.05]
SFT_STARTS = [15, 25, 50]
WARMUP = "sft-warmup-seed-0"
STEPS = range(400)


@pytest.fixture(params=PAIRS, scope="module")
def name(request):
    return request.param


@pytest.fixture(scope="module")
def plan(name):
    study = load_study(ROOT / "examples" / "study" / f"paper-{name}.yaml")
    return make_plan(study.model_copy(update={"base": str(ROOT / study.base)}))


def configs(plan, family):
    return [member.runs[0].config for member in plan.members if member.family == family]


def behaviours(plan, family):
    return [config.rollouts.behaviour for config in configs(plan, family)]


def test_every_family_has_the_papers_number_of_members(plan):
    assert Counter(member.family for member in plan.members) == MEMBERS
    assert all(list(member.runs) == [0] for member in plan.members), "one seed, 0"
    assert len(plan.runs) == sum(MEMBERS.values()) + 1, "the supervised updates are made once"


def test_table_2_holds_for_every_run(plan, name):
    for run in plan.runs:
        config = run.config
        rollouts, update, data = config.rollouts, config.optimisation, config.data
        assert (rollouts.prompts_per_step, rollouts.samples_per_prompt) == (64, 4), run.name
        assert rollouts.max_staleness == 0, "each batch is drawn by the student that it updates"
        assert (data.max_prompt_tokens, rollouts.max_new_tokens) == (1024, 7168)
        assert (update.learning_rate, update.betas) == (1e-5, (0.9, 0.999))
        assert (update.weight_decay, update.max_grad_norm) == (0.01, 1.0)
        assert update.warmup_steps == (0 if run.after else 15)
        assert data.system_prompt == "Please reason step by step, and put your final answer within \\boxed{}."
        assert data.repo == "open-thoughts/OpenThoughts3-1.2M" and data.limit >= 25_600
        assert config.models.teacher == PAIRS[name][1] and (run.after or config.models.student == PAIRS[name][0])
        assert config.loss.aggregation == "token_mean"
        assert run.name == WARMUP or config.steps + run.first_step == 400
    assert plan.base.steps * 64 == 25_600


def test_the_learning_rate_rises_for_15_updates_and_stays():
    rising = [learning_rate_factor(15, step) for step in range(15)]
    assert rising == sorted(set(rising)) and rising[-1] == 1.0
    assert {learning_rate_factor(15, step) for step in STEPS[15:]} == {1.0}


def test_the_loss_is_reverse_kl_on_the_students_16_most_likely(plan):
    assert SUPPORT_SIZE == 16
    for member in plan.members:
        config = member.runs[0].config
        if member.family == "veto":
            assert config.loss.name == "veto"
        else:
            assert (config.loss.name, config.loss.normalisation) == ("reverse_kl", "surrogate"), member
        assert {config.sampling(step)[0].returned for step in STEPS} == {Return.SUPPORT}


def test_table_3_holds_for_every_run(plan, name):
    assert (UNFILTERED["top_p"], UNFILTERED["top_k"]) == (1.0, -1)
    for run in plan.runs:
        evaluation = run.config.evaluation
        if run.name == WARMUP:
            assert evaluation.every == 0, "its checkpoints are evaluated where ordinary training starts from them"
            continue
        assert (evaluation.every, evaluation.temperature, evaluation.max_new_tokens) == (20, 1.0, 8192)
        assert {b.name: b.samples for b in evaluation.benchmarks} == {n: SAMPLES[n] for n in SUITES[name]}
        assert all(evaluation.is_due(step, run.config.steps) for step in range(0, run.config.steps + 1, 20))
        assert run.config.checkpoints.every == 20, "every student that is evaluated can be chosen"


def test_the_grids_are_those_of_appendix_a2(plan):
    assert [b.method for b in behaviours(plan, "vanilla")] == ["student"]
    assert [(b.epsilon, b.warmup_steps) for b in behaviours(plan, "trb")] == list(product(EPSILONS, [15, 25, 50]))
    assert [b.epsilon for b in behaviours(plan, "fixed_epsilon")] == EPSILONS
    got = [(b.top_k, b.teacher_temperature) for b in behaviours(plan, "skd")]
    assert got == list(product([15, 25, 50], [0.2, 0.6, 1.0]))
    got = [(b.initial_temperature, b.warmup_steps) for b in behaviours(plan, "temperature")]
    assert got == list(product([0.8, 0.9, 0.95], [15, 25]))
    assert [config.loss.beta_start for config in configs(plan, "veto")] == [0.2, 0.4, 0.6, 0.8]
    for family in ("veto", "sft"):
        assert {behaviour.method for behaviour in behaviours(plan, family)} == {"student"}
    assert [member.runs[0].first_step for member in plan.members if member.family == "sft"] == SFT_STARTS


def test_every_rule_is_drawn_from_at_every_step(plan):
    """Which rule, which budget and which temperature: Eq. 3 and App. A.2, at all of the 400 steps."""
    rule = {"fixed_epsilon": Rule.TRUST_REGION, "skd": Rule.SKD}
    for member in plan.members:
        config = member.runs[0].config
        drawn = [config.sampling(step) for step in STEPS]
        behaviour = config.rollouts.behaviour
        if member.family == "temperature":
            tau, last = behaviour.initial_temperature, behaviour.warmup_steps
            assert [t for _, t in drawn] == pytest.approx([1 - (1 - tau) * max(0, 1 - k / last) for k in STEPS])
        else:
            assert {t for _, t in drawn} == {1.0}, member
        if member.family == "trb":
            epsilon, last = behaviour.epsilon, behaviour.warmup_steps
            assert [b.epsilon for b, _ in drawn] == pytest.approx([epsilon * max(0, 1 - k / last) for k in STEPS])
            assert {b.rule for b, _ in drawn[last:]} == {Rule.STUDENT}
        else:
            assert {b.rule for b, _ in drawn} == {rule.get(member.family, Rule.STUDENT)}, member
        if member.family == "fixed_epsilon":
            assert {b.epsilon for b, _ in drawn} == {behaviour.epsilon}


def test_table_4_holds_for_the_supervised_updates(plan):
    warm = next(run.config for run in plan.runs if run.name == WARMUP)
    assert warm.steps == 50 and warm.loss.name == "sft"
    assert {(blend.rule, temperature) for blend, temperature in map(warm.sampling, range(50))} == {(Rule.TEACHER, 1.0)}
    assert warm.longest_sequence == 8192 and warm.rollouts.max_new_tokens == 7168
    assert (warm.rollouts.prompts_per_step, warm.rollouts.samples_per_prompt) == (64, 4)
    assert (warm.optimisation.learning_rate, warm.optimisation.warmup_steps) == (1e-5, 15)
    assert warm.data == plan.base.data and warm.data.first_prompt == 0, "exactly the first 50 steps' prompts"
    made = range(warm.checkpoints.every, 51, warm.checkpoints.every)
    assert set(SFT_STARTS) <= set(made[-warm.checkpoints.keep_last :]), "still there when the last update is made"


def test_ordinary_training_goes_on_from_the_supervised_updates(plan):
    warm = next(run.config for run in plan.runs if run.name == WARMUP)
    for updates, config in zip(SFT_STARTS, configs(plan, "sft"), strict=True):
        start = warm.run_folder / "checkpoints" / f"step-{updates:06d}" / "student"
        assert config.models.student == str(start)
        assert (config.data.first_prompt, config.steps) == (updates * 64, 400 - updates)


def test_all_runs_share_the_prompts_and_their_order(plan):
    for run in plan.runs:
        assert run.config.seed == 0
        assert run.config.data.model_copy(update={"first_prompt": 0}) == plan.base.data, run.name
        assert run.config.data.first_prompt == 64 * run.first_step


def test_only_the_method_differs(plan):
    base = plan.base.model_dump(exclude={"name", "folder", "server"})
    for run in plan.runs:
        if run.after is None and run.name != WARMUP:
            own = run.config.model_dump(exclude={"name", "folder", "server"})
            different = {key for key in own if own[key] != base[key]}
            assert different <= {"rollouts", "loss"}, run.name
            assert own["rollouts"] | {"behaviour": None} == base["rollouts"] | {"behaviour": None}
            if "loss" in different:
                assert run.name.startswith("veto")


def test_the_studies_are_planned_without_models_and_without_a_network(name, monkeypatch, capsys, tmp_path):
    def refused(*_):
        raise AssertionError("planning a study connects to something")

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(socket.socket, "connect", refused)
    assert run_command(["--config", f"examples/study/paper-{name}.yaml", "--dry-run"]) == 0
    assert "44 runs, 17,160 updates from 4,392,960 responses, 900 evaluations" in capsys.readouterr().out


def responses(plan):
    """Of the whole study: all, and those of rules other than student."""
    drawn = Counter()
    for run in plan.runs:
        per_step = run.config.rollouts.prompts_per_step * run.config.rollouts.samples_per_prompt
        for step in range(run.config.steps):
            drawn[run.config.sampling(step)[0].rule] += per_step
    return drawn


def test_the_documented_figures_are_those_of_the_plans(plan, name):
    section = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8").split("## The paper's runs")[1]
    drawn = responses(plan)
    evaluation = sum(SAMPLES[b] * PROBLEMS[b] for b in SUITES[name])
    counts = [
        sum(drawn.values()),
        drawn[Rule.TRUST_REGION] + drawn[Rule.SKD],
        drawn[Rule.TEACHER],
        102_400 * 7168,
        sum(drawn.values()) * 7168,
        evaluation,
        21 * evaluation,
        900 * evaluation,
        900 * evaluation * 8192,
    ]
    assert [count for count in counts if f"{count:,}" not in section] == []
    column = list(PAIRS).index(name) + 1
    memory = server_memory(read_server_config(ROOT / "server_configs" / f"h100-qwen3-{name}-1gpu.yaml"), H100_BYTES)
    full = memory.context_length
    sizes = [memory.student.weight_bytes, memory.teacher.weight_bytes, memory.student_bytes(full)]
    sizes += [memory.blended_bytes(full), memory.teacher_bytes(full), memory.pool_bytes]
    sizes += [training_memory(plan.base, plan.study.processes).total]
    table = section.split("| memory")[1].split("\n\n")[0].splitlines()
    told = [cell for line in table[2:] for cell in line.strip("| ").split(" | ")[column].split(", ")]
    assert told == [f"{size / GIB:.1f}" for size in sizes]
