"""The configuration: strict, overridable, and every shipped one parses; the paper's have Table 2's numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from sglang_trb.wire.params import Return, Rule
from trainer.config.file import WrongConfig, dump_config, load_config
from trainer.config.run import RunConfig

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(p for p in (ROOT / "examples").rglob("*.yaml") if p.parent.name != "study")
MINIMAL = {
    "name": "run",
    "models": {"student": "s", "teacher": "t"},
    "data": {"path": "problems.jsonl"},
    "loss": {"name": "reverse_kl"},
    "server": {"urls": ["http://127.0.0.1:30000"]},
}


@pytest.fixture
def minimal(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_configurations_parse_and_survive_being_written(path, tmp_path):
    config = load_config(path)
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.yaml") == config


@pytest.mark.parametrize("path", [p for p in SHIPPED if p.parent.name == "paper"], ids=lambda path: path.name)
def test_the_papers_settings_are_table_2(path):
    config = load_config(path)
    optimisation, rollouts = config.optimisation, config.rollouts
    assert (optimisation.learning_rate, optimisation.warmup_steps) == (1e-5, 15)
    assert (optimisation.betas, optimisation.weight_decay, optimisation.max_grad_norm) == ((0.9, 0.999), 0.01, 1.0)
    assert (rollouts.prompts_per_step, rollouts.samples_per_prompt) == (64, 4)
    assert (config.data.max_prompt_tokens, rollouts.max_new_tokens, config.steps) == (1024, 7168, 400)
    assert config.data.system_prompt == r"Please reason step by step, and put your final answer within \boxed{}."
    evaluation = config.evaluation
    assert (evaluation.every, evaluation.temperature, evaluation.max_new_tokens) == (20, 1.0, 8192)
    samples = {b.name: b.samples for b in evaluation.benchmarks}
    assert (
        samples.items()
        <= {"gsm8k": 32, "math500": 64, "olympiad": 64, "amc": 512, "aime24": 512, "aime25": 512}.items()
    )


def test_there_are_shipped_configurations():
    assert {"trb-1.7b-8b.yaml", "trb-0.6b-4b.yaml", "trb.yaml"} <= {path.name for path in SHIPPED}


def test_the_defaults_are_the_papers(minimal):
    config = load_config(minimal)
    assert config.optimisation.learning_rate == 1e-5 and config.rollouts.max_new_tokens == 7168
    assert config.sampling(0)[0].epsilon == 0.01 and config.sampling(25)[0].rule is Rule.STUDENT


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("steps=7", lambda c: c.steps == 7),
        ("optimisation.learning_rate=1e-3", lambda c: c.optimisation.learning_rate == 1e-3),
        ("optimisation.learning_rate=3E-4", lambda c: c.optimisation.learning_rate == 3e-4),
        ("rollouts.behaviour={method: student}", lambda c: c.rollouts.behaviour.method == "student"),
        ("rollouts.behaviour.epsilon=0.05", lambda c: c.rollouts.behaviour.epsilon == 0.05),
        ("data.system_prompt=null", lambda c: c.data.system_prompt is None),
        ("optimisation.micro_batch_tokens=8192", lambda c: c.optimisation.micro_batch_tokens == c.longest_sequence),
        ("loss={name: jsd, mixture: 0.1}", lambda c: c.loss.mixture == 0.1),
    ],
)
def test_overrides(minimal, override, read):
    if override.startswith("rollouts.behaviour.epsilon"):
        minimal.write_text(yaml.safe_dump(MINIMAL | {"rollouts": {"behaviour": {"method": "trb"}}}))
    assert read(load_config(minimal, [override]))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("steps=0", "steps: got 0; allowed: .*greater than or equal to 1"),
        ("stesp=1", "stesp: there is no such field; did you mean steps"),
        ("optimisation.lr=1", "optimisation.lr: there is no such field; there are: learning_rate"),
        ("optimisation.learning_rate=fast", "optimisation.learning_rate: got 'fast'"),
        ("optimisation.learning_rate=.nan", "optimisation.learning_rate: got nan"),
        ("rollouts.behaviour={method: trb, epsilon: -1}", "epsilon: got -1"),
        ("rollouts.behaviour={method: magic}", "magic"),
        ("optimisation.micro_batch_tokens=8191", "micro_batch_tokens: got 8191; allowed: at least 8192, the longest"),
        ("optimisation.micro_batch_tokens=0", "optimisation.micro_batch_tokens: got 0"),
        ("server.launch=x.yaml", "urls .* or launch"),
        ("name=../up", "name: got '../up'"),
        ("server.launch_options=[--admin-api-key, secret]", "launch_options: got a key, .*admin_key_variable"),
        ("server.launch_options=[--api-key=secret]", "launch_options: got a key, .*admin_key_variable"),
        ("steps", "allowed: key.sub=value"),
        ("steps.of=3", "steps.of|steps: got"),
        ("models=null", "models: got None"),
    ],
)
def test_wrong_values_are_named(minimal, override, says):
    with pytest.raises(WrongConfig, match=says):
        load_config(minimal, [override])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "got NoneType; allowed: a mapping"),
        ("- 1", "got list"),
        ("a: [", r"--config: got .*run.yaml'; allowed: a YAML file \(while parsing .* line 1, column 5: a: \[ \^\)$"),
        ("steps: 1\nsteps: 2", "given twice"),
        (None, "allowed: a YAML file"),
        (b"\xff\xfe\x00", "UTF-8"),
    ],
)
def test_unreadable_files_are_named(tmp_path, text, says):
    path = tmp_path / "run.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(WrongConfig, match=says):
        load_config(path)


def test_missing_fields_are_all_named(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("name: run")
    with pytest.raises(WrongConfig) as caught:
        load_config(path)
    for field in ("models", "data", "loss", "server"):
        assert f"{field}: a value is required" in str(caught.value)


BEHAVIOURS = [
    ({"method": "trb", "epsilon": 0.02, "warmup_steps": 4}, 1, Rule.TRUST_REGION, 0.015, 1.0),
    ({"method": "trb", "epsilon": 0.02, "warmup_steps": 4}, 4, Rule.STUDENT, 0.0, 1.0),
    ({"method": "fixed_epsilon", "epsilon": 0.05}, 399, Rule.TRUST_REGION, 0.05, 1.0),
    ({"method": "student"}, 0, Rule.STUDENT, 0.0, 1.0),
    ({"method": "temperature_warmup", "initial_temperature": 0.8, "warmup_steps": 10}, 5, Rule.STUDENT, 0.0, 0.9),
    ({"method": "skd", "top_k": 15, "teacher_temperature": 0.6}, 3, Rule.SKD, 0.0, 1.0),
    ({"method": "mixture", "alpha": 0.3}, 3, Rule.MIXTURE, 0.0, 1.0),
    ({"method": "teacher"}, 3, Rule.TEACHER, 0.0, 1.0),
]


@pytest.mark.parametrize(("behaviour", "step", "rule", "epsilon", "temperature"), BEHAVIOURS)
def test_behaviours(behaviour, step, rule, epsilon, temperature):
    config = RunConfig.model_validate(MINIMAL | {"rollouts": {"behaviour": behaviour}})
    blend, drawn_at = config.sampling(step)
    assert (blend.rule, blend.returned) == (rule, Return.SUPPORT)
    assert (blend.epsilon, drawn_at) == (pytest.approx(epsilon), pytest.approx(temperature))


def test_a_loss_that_needs_the_teachers_support_asks_for_it():
    config = RunConfig.model_validate(MINIMAL | {"loss": {"name": "entropy_aware"}})
    assert config.sampling(0)[0].returned is Return.SUPPORT_BOTH


def test_every_field_says_what_it_is():
    def undocumented(model, path):
        for name, field in model.model_fields.items():
            nested = getattr(field.annotation, "model_fields", None)
            if nested is not None:
                yield from undocumented(field.annotation, [*path, name])
            elif not field.description:
                yield ".".join([*path, name])

    assert list(undocumented(RunConfig, [])) == []


def test_the_papers_problem_sets_are_known_by_name(minimal):
    sets = "[math500, {name: gsm8k, path: local.jsonl}, {name: aime24, samples: 8}, {name: mine, path: mine.jsonl}]"
    config = load_config(minimal, [f"evaluation.benchmarks={sets}"])
    math500, gsm8k, aime24, mine = config.evaluation.benchmarks
    assert (math500.repo, math500.samples, math500.question_field) == ("HuggingFaceH4/MATH-500", 64, "problem")
    assert (gsm8k.path, gsm8k.repo, gsm8k.samples) == ("local.jsonl", None, 32)
    assert (aime24.repo, aime24.split, aime24.samples) == ("HuggingFaceH4/aime_2024", "train", 8)
    assert (mine.path, mine.samples) == ("mine.jsonl", 1)
    assert load_config(minimal, [f"evaluation.benchmarks={sets}"]) == config
    with pytest.raises(WrongConfig, match="a name alone stands for one of gsm8k, math500"):
        load_config(minimal, ["evaluation.benchmarks=[math5000]"])


def documented_baselines():
    """Method and overrides of each row of the table in docs/training.md."""
    section = (ROOT / "docs" / "training.md").read_text().split("## The paper's baselines")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (`.+`) \|$", section, flags=re.MULTILINE)
    return [pytest.param(re.findall(r"`(.+?)`", overrides), id=method) for method, overrides in rows]


@pytest.mark.parametrize("overrides", documented_baselines())
def test_documented_baselines_are_configurations(overrides):
    config = load_config(ROOT / "examples" / "paper" / "trb-1.7b-8b.yaml", overrides)
    assert all(config.sampling(step)[0].returned.includes(Return.SUPPORT) for step in (0, config.steps))


def test_a_server_for_evaluations(minimal):
    """It is none of the others, and what it evaluates is a checkpoint."""
    two = ["evaluation.beside_training=true", "server.urls=[http://a, http://b]"]
    assert load_config(minimal, two).evaluation.beside_training
    assert load_config(minimal, [*two, "evaluation.every=40"]).checkpoints.every == 20
    for servers in ("server.urls=[http://a, http://b, http://a/]", "server={launch: x.yaml}"):
        with pytest.raises(
            WrongConfig, match=r"^evaluation\.beside_training: got true with server\.urls \[.*\]; allowed"
        ):
            load_config(minimal, [two[0], servers])
    with pytest.raises(
        WrongConfig, match=r"^evaluation\.every: got 30 with checkpoints\.every 20; allowed .* multiple"
    ):
        load_config(minimal, [*two, "evaluation.every=30"])


def test_all_baselines_are_documented():
    assert len(documented_baselines()) == 10


def test_bfloat16_needs_a_zero_stage(minimal):
    with pytest.raises(WrongConfig, match=r"optimisation\.zero_stage: got 0 with models\.dtype bfloat16"):
        load_config(minimal, ["optimisation.zero_stage=0"])
    assert load_config(minimal, ["optimisation.zero_stage=0", "models.dtype=float32"]).optimisation.zero_stage == 0


@pytest.mark.parametrize(
    "override",
    ["name=2024-02-31", "steps=!!int abc", "steps=!exponent abc", "seed=" + "9" * 5000, "name=" + "[" * 5000],
)
def test_values_that_yaml_cannot_make(minimal, override):
    with pytest.raises(WrongConfig, match="allowed: a YAML value"):
        load_config(minimal, [override])


@pytest.mark.parametrize("text", ["? [1]\n: 2\n? [1]\n: 3\n", "a: " + "[" * 5000])
def test_files_that_yaml_cannot_read(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(WrongConfig, match="allowed: a YAML file"):
        load_config(tmp_path / "c.yaml")


def test_merge_keys_work(minimal):
    with minimal.open("a") as stream:
        stream.write("rollouts: &r {max_new_tokens: 5}\n")
    assert load_config(minimal).rollouts.max_new_tokens == 5
    minimal.write_text(minimal.read_text().replace("rollouts: &r {", "rollouts: {<<: {prompts_per_step: 3}, "))
    assert load_config(minimal).rollouts.prompts_per_step == 3


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("folder=~nosuchuser/x", "folder: got '~nosuchuser/x'; allowed: a path"),
        ("evaluation.benchmarks=[gsm8k, gsm8k]", "evaluation: benchmarks: got 'gsm8k' twice"),
        ("evaluation.benchmarks=[{name: .., path: x}]", "evaluation.benchmarks.0.name"),
        ("rollouts.max_staleness=-1", "rollouts.max_staleness"),
        ("rollouts.max_staleness=17", "rollouts.max_staleness"),
        ("rollouts.max_staleness=1.5", "rollouts.max_staleness"),
        (
            "evaluation.beside_training=true",
            "evaluation.beside_training: got true with server.urls ['http://127.0.0.1:30000']; allowed: false, or true "
            "with two servers and more",
        ),
        ("evaluation.beside_training=1.5", "evaluation.beside_training"),
    ],
)
def test_names_paths_and_ranges(minimal, override, says):
    with pytest.raises(WrongConfig, match=re.escape(says)):
        load_config(minimal, [override])
