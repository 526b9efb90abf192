"""What a study's file stands for, and who may work on which of its runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from sglang_trb.wire.params import Rule
from trainer.cli.study import run as run_command
from trainer.config.file import WrongConfig, load_config
from trainer.run.folder import claimed
from trainer.study.methods import METHODS
from trainer.study.outlook import describe
from trainer.study.plan import load_study, make_plan
from trainer.study.queue import STUDY_FILE, OtherStudy, Queue, ServersInUse, State

ROOT = Path(__file__).resolve().parents[2]
MICRO = ROOT / "examples" / "micro" / "trb.yaml"


def plan_of(tmp_path, **changes):
    values = {"name": "s", "folder": str(tmp_path), "base": str(MICRO), "families": ["vanilla"]} | changes
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return make_plan(load_study(tmp_path / "study.yaml"))


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "study").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_studies_can_be_planned(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert len(make_plan(load_study(path)).runs) > 1


def test_whether_its_evaluations_wait_is_no_part_of_a_run(tmp_path):
    """The study's servers are known when it is begun; two and more may be of one worker."""
    servers = {"server": {"urls": ["http://a", "http://b"]}}
    waits, beside = (
        plan_of(tmp_path, set=servers | {"evaluation.beside_training": beside, "evaluation.every": 20})
        for beside in (False, True)
    )
    assert beside.runs[0].config.evaluation.beside_training and waits.recorded() == beside.recorded()


def test_every_known_method_differs_from_the_base_in_its_own_fields_alone(tmp_path):
    """All see the same prompts in the same order, under one evaluation, whatever they change."""
    plan = plan_of(tmp_path, families=list(METHODS), set={"steps": 60})
    base = load_config(MICRO, ["steps=60"]).model_dump(exclude={"name", "folder", "server", "loss", "rollouts"})
    for member in plan.members:
        run = member.runs[0]
        own = run.config.model_dump(exclude={"name", "folder", "server", "loss", "rollouts"})
        if run.after is None:
            assert own == base, member
        else:  # later prompts of the same order, from a later student
            assert own["data"] | {"first_prompt": 0} == base["data"]
            prompts = run.config.rollouts.prompts_per_step
            assert own["data"]["first_prompt"] == run.first_step * prompts and own["steps"] == 60 - run.first_step
        assert run.config.rollouts.model_copy(update={"behaviour": None}) == load_config(MICRO).rollouts.model_copy(
            update={"behaviour": None}
        )


def test_the_papers_grids_have_the_papers_sizes(tmp_path):
    plan = plan_of(tmp_path, families=list(METHODS), set={"steps": 60})
    sizes = {family: sum(m.family == family for m in plan.members) for family in METHODS}
    paper = {"vanilla": 1, "trb": 15, "fixed_epsilon": 5, "skd": 9, "veto": 4, "temperature": 6, "sft": 3}
    assert {family: sizes[family] for family in paper} == paper


def test_supervised_updates_use_exactly_the_first_prompts(tmp_path):
    plan = plan_of(tmp_path, families=["vanilla", "sft"], set={"steps": 60})
    warm = next(run for run in plan.runs if run.name == "sft-warmup-seed-0")
    assert warm.config.steps == 50 and warm.config.data == plan.base.data
    assert warm.config.rollouts.prompts_per_step == plan.base.rollouts.prompts_per_step
    assert warm.config.loss.name == "sft" and warm.config.sampling(0)[0].rule is Rule.TEACHER
    starts = [member.runs[0].config.models.student for member in plan.members if member.family == "sft"]
    assert [Path(start).parent.name for start in starts] == ["step-000015", "step-000025", "step-000050"]
    kept = range(warm.config.checkpoints.every, 51, warm.config.checkpoints.every)
    assert {15, 25, 50} <= set(list(kept)[-warm.config.checkpoints.keep_last :])
    assert [run.name for run in plan.runs].index(warm.name) < min(i for i, r in enumerate(plan.runs) if r.after)


def test_a_setting_of_two_families_is_run_once(tmp_path):
    student = {"set": {"rollouts.behaviour": {"method": "student"}}}
    plan = plan_of(tmp_path, families={"vanilla": None, "control": student}, seeds=[0, 1])
    assert [run.name for run in plan.runs] == ["vanilla-seed-0", "vanilla-seed-1"]
    assert [member.runs[1].name for member in plan.members] == ["vanilla-seed-1"] * 2
    assert "2 runs, 60 updates from 15,360 responses, 8 evaluations" in list(describe(plan))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"families": ["vanila"]}, "families.vanila: got no such method; allowed: vanilla, trb, .*, or any name with"),
        ({"families": {}}, "families: got {}; allowed"),
        ({"families": ["vanilla", 3]}, "families: got"),
        ({"families": {"trb": {"gird": {}}}}, "families.trb.gird: there is no such field"),
        ({"families": {"trb": {"grid": {"rollouts.behaviour.epsilon": []}}}}, "families.trb: grid.*got no value"),
        ({"families": {"trb": {"grid": {"rollouts.behaviour.epsilon": [-1]}}}}, "families.trb, .*epsilon: got -1"),
        ({"families": {"sft": {"sft_updates": [0]}}}, "families.sft: sft_updates: got .0.; allowed: 1 and more"),
        (
            {"families": {"sft": {"sft_updates": [30]}}},
            "families.sft.sft_updates: got 30; allowed: less than",
        ),
        ({"seeds": []}, "seeds: got"),
        ({"seeds": [1, 1]}, "seeds: got .1, 1.; allowed: different numbers"),
        ({"base": "nowhere.yaml"}, "nowhere.yaml'; allowed: a YAML file"),
        ({"name": "../x"}, "name: got '../x'"),
        ({"sedes": [1]}, "sedes: there is no such field; did you mean seeds?"),
        ({"set": {"stepz": 1}}, "stepz: there is no such field; did you mean steps?"),
    ],
)
def test_wrong_studies_are_one_clear_line(tmp_path, changes, says, capsys):
    with pytest.raises(WrongConfig, match=says):
        plan_of(tmp_path, **changes)
    assert run_command(["--config", str(tmp_path / "study.yaml")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("trb study: ") and said.count("\n") == 1


def test_states_are_kept_and_a_run_is_one_workers(tmp_path):
    plan = plan_of(tmp_path, seeds=[0, 1])
    queue, other = Queue(plan), Queue(plan)
    run, next_run = plan.runs
    with queue.taken(run) as mine, other.taken(run) as theirs, other.taken(next_run) as free:
        assert mine and not theirs and free
    with claimed(run.config.run_folder), queue.taken(run) as mine:
        assert not mine, "what is left of a killed worker still trains there"
    queue.end(run, State.FAILED, "the disk is full")
    assert other.state(run) is State.FAILED and other.why(run) == "the disk is full"
    queue.end(run, State.DONE)
    assert other.state(run) is State.DONE and other.state(next_run) is State.TO_DO
    with queue.servers(["http://a"]), other.servers(["http://b"]):
        taken = other.servers(["http://a"])
        with pytest.raises(ServersInUse, match="got http://a, where another worker trains"):
            taken.__enter__()


def test_a_study_may_grow_and_another_is_refused(tmp_path):
    Queue(plan_of(tmp_path))
    Queue(plan_of(tmp_path, families=["vanilla", "trb"], seeds=[0, 1]))
    with pytest.raises(OtherStudy, match="got a study without 'vanilla-seed-1'"):
        Queue(plan_of(tmp_path, families=["vanilla", "trb"]))
    with pytest.raises(OtherStudy, match="got other settings of 'vanilla-seed-0'"):
        Queue(plan_of(tmp_path, families=["vanilla", "trb"], seeds=[0, 1], set={"steps": 7}))
    Queue(plan_of(tmp_path, families=["vanilla", "trb"], seeds=[0, 1], set={"server.max_in_flight": 3}))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"runs": 3}', "null", '{"run'])
def test_a_damaged_record_is_named(tmp_path, text):
    plan = plan_of(tmp_path)
    Queue(plan)
    (tmp_path / "s" / STUDY_FILE).write_text(text)
    with pytest.raises(OtherStudy, match=f"{STUDY_FILE}: got a damaged record"):
        Queue(plan)


def test_the_record_says_what_the_report_needs(tmp_path):
    Queue(plan_of(tmp_path, families=["sft"], set={"steps": 60}, seeds=[3]))
    members = json.loads((tmp_path / "s" / STUDY_FILE).read_text())["members"]
    assert members[1] == {
        "family": "sft",
        "title": "SFT warm-up",
        "setting": "25 updates",
        "first_step": 25,
        "runs": {"3": "sft-sft-25-seed-3"},
    }


def test_methods_meet_where_they_should(tmp_path):
    """TRB without a budget is vanilla OPD, without annealing fixed ε, after its warm-up vanilla OPD again."""
    grids = {"rollouts.behaviour.epsilon": [0.0, 0.02], "rollouts.behaviour.warmup_steps": [15]}
    fixed = {"grid": {"rollouts.behaviour.epsilon": [0.02]}}
    plan = plan_of(tmp_path, families={"vanilla": {}, "trb": {"grid": grids}, "fixed_epsilon": fixed})
    vanilla, without, trb, fixed = (member.runs[0].config for member in plan.members)
    for step in range(30):
        assert without.sampling(step) == vanilla.sampling(step)
        assert fixed.sampling(step) == trb.sampling(0)
        assert (trb.sampling(step) == vanilla.sampling(step)) is (step >= 15)
