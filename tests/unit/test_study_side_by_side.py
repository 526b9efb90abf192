"""Fig. 8: rollouts of two methods that match, and what becomes of those that do not."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.study_folders import write_rollouts, write_run, write_study
from trainer.cli.report import run as report
from trainer.rollouts.journal import JournalBroken, read_step, rollout_keys
from trainer.study.page import write_study_report
from trainer.study.side_by_side import NOT_KEPT, PROMPTS, TOKENS

STUDENT = str(Path(__file__).resolve().parents[2] / "examples/micro/pair/student")
MODELS = {"student": STUDENT, "teacher": "t"}
TRB = {"method": "trb", "epsilon": 0.1, "warmup_steps": 3}


@pytest.fixture
def study(tmp_path):
    write_run(tmp_path, "v-0", 0.4, 0, models=MODELS, rollouts={"behaviour": {"method": "student"}})
    write_run(tmp_path, "a-0", 0.9, 0, models=MODELS, rollouts={"behaviour": TRB})
    write_study(tmp_path, [("vanilla", "Vanilla OPD", "", 0, ["v-0"]), ("trb", "TRB <b>", "", 0, ["a-0"])])
    return tmp_path


def journals(study, step, **changes):
    return [
        write_rollouts(study / "runs" / name, step, epsilon, seed=i, **changes)
        for i, (name, epsilon) in enumerate([("v-0", 0.0), ("a-0", 0.1 * (1 - step / 3))])
    ]


def shown(study):
    """The page, and the rows of the CSV (none where there is no file)."""
    page = write_study_report(study).read_text()
    path = study / "report" / "rollouts.csv"
    return page, list(csv.DictReader(path.open(newline=""))) if path.is_file() else []


def test_the_first_common_step_is_shown_with_every_token(study):
    journals(study, 1, prompts=PROMPTS + 2)
    _, trb = journals(study, 2)
    page, rows = shown(study)
    assert "The first rollouts of step 1 " in page and "ε = 0.06667" in page and NOT_KEPT[0] not in page
    assert page.count('<section class="completion') == 2 * PROMPTS == len({(r["prompt"], r["method"]) for r in rows})
    assert [(r["method"], int(r["place"])) for r in rows[:24]] == [
        (method, place) for method in ("Vanilla OPD", "TRB <b>") for place in range(12)
    ]
    first = read_step(study / "runs" / "a-0" / "journal" / trb.name.replace("2", "1"), lambda key: True)[0]
    assert [float(r["beta"]) for r in rows[12:24]] == first.tokens.beta.tolist()
    assert [float(r["kl_nats"]) for r in rows[12:24]] == first.tokens.kl.tolist()
    assert {float(r["beta"]) for r in rows[:12]} == {0}
    assert "script-src 'sha256-" in page and "TRB &lt;b&gt;" in page and "TRB <b>" not in page


def test_long_rollouts_are_cut_and_said_to_be(study):
    journals(study, 0, prompts=1, length=TOKENS + 5)
    page, rows = shown(study)
    assert len(rows) == 2 * TOKENS
    assert f"Vanilla OPD, the first {TOKENS} of {TOKENS + 5} tokens" in page


def test_what_models_write_is_escaped(study, monkeypatch):
    journals(study, 0, prompts=1)
    pieces = "trainer.study.side_by_side.token_pieces"
    monkeypatch.setattr(pieces, lambda tokenizer, ids: ["<script>alert(1)</script>\x1b"] * len(ids))
    page, rows = shown(study)
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;␛" in page
    assert rows[0]["token"].startswith("<script>")


@pytest.mark.parametrize("case", ["no journals", "no common step", "no budget left", "other prompts"])
def test_without_a_pair_there_is_a_note_and_no_empty_figure(study, case):
    if case == "no common step":
        write_rollouts(study / "runs" / "v-0", 0, 0.0)
        write_rollouts(study / "runs" / "a-0", 1, 0.1)
    elif case == "no budget left":
        journals(study, 3)
    elif case == "other prompts":
        write_rollouts(study / "runs" / "v-0", 1, 0.0, prompts=2)
        write_rollouts(study / "runs" / "a-0", 1, 0.1, prompts=9)
    page, rows = shown(study)
    assert NOT_KEPT[0] in page and "side by side</h2>" not in page and not rows
    assert "script-src 'none'" in page and "<script" not in page


def test_without_the_students_tokenizer_there_is_a_note(study):
    journals(study, 0)
    for name in ("v-0", "a-0"):
        path = study / "runs" / name / "run.json"
        path.write_text(path.read_text().replace(STUDENT, "nowhere/gone"))
    page, rows = shown(study)
    assert "no tokenizer of nowhere/gone is here" in page and not rows


def test_a_journal_is_read_without_being_changed_and_its_torn_end_is_left_out(study):
    path, _ = journals(study, 0, samples=2)
    whole = path.read_bytes()
    assert len(rollout_keys(path)) == 8
    (one,) = read_step(path, lambda key: (key.prompt, key.sample) == (2, 1))
    assert (one.key.prompt, one.key.sample, len(one)) == (2, 1, 12)
    for cut in (1, 20, 400):
        path.write_bytes(whole[:-cut])
        assert len(rollout_keys(path)) == 7 and path.read_bytes() == whole[:-cut]


@pytest.mark.parametrize(("place", "what"), [(0, "no record begins there"), (18, ""), (-1, "checksum does not fit")])
def test_a_damaged_journal_is_one_clear_line(study, capsys, place, what):
    path, _ = journals(study, 0, prompts=1)
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(JournalBroken, match=rf"step-000000.rollouts: damaged at byte 0 \(.*{what}.*remove it to go on"):
        report([str(study)])
