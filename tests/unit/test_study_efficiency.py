"""App. C: what a server took for a pair is recorded beside the prediction, and shown by the study's page."""

from __future__ import annotations

import csv

import pytest

from sglang_trb.checkpoints.memory import model_memory
from tests.pairs import build_pair
from tests.study_folders import write_run, write_study
from trainer.config.run import Models
from trainer.records import RecordsBroken, read_memory, write_memory
from trainer.run.memory import server_memory
from trainer.study.page import write_study_report

TOKENS = 1024 + 7168


@pytest.fixture(scope="module")
def models():
    pair = build_pair("plain")
    return Models(student=str(pair.student), teacher=str(pair.teacher), dtype="float32")


def account(models, **changes):
    """Of a server that loaded the pair in float32."""
    memory = {"max_total_tokens": 4096, "step_bytes": 5}
    for name in ("student", "teacher"):
        of = model_memory(getattr(models, name), dtype="float32")
        memory |= {f"{name}_weight_bytes": of.weight_bytes, f"{name}_kv_bytes_per_token": of.kv_bytes_per_token}
        memory[f"{name}_element_bytes"] = 4
    return {"tp_size": 1, "memory": memory | changes}


@pytest.fixture
def study(tmp_path):
    write_run(tmp_path, "v-0", 0.5, 0)
    write_study(tmp_path, [("vanilla", "Vanilla OPD", "", 0, ["v-0"])])
    return tmp_path


def test_predicted_and_allocated_stand_side_by_side(study, models):
    found = server_memory(models, account(models, teacher_kv_bytes_per_token=1000))
    student, teacher = (model_memory(getattr(models, name), dtype="float32") for name in ("student", "teacher"))
    write_memory(study / "runs" / "v-0", found)
    page = write_study_report(study).read_text()
    rows = {r["quantity"]: r for r in csv.DictReader((study / "report" / "memory.csv").open())}
    added = rows["Added by the teacher (Eq. 6)"]
    assert int(added["predicted_bytes"]) == teacher.weight_bytes + TOKENS * teacher.kv_bytes_per_token
    assert int(added["allocated_bytes"]) == teacher.weight_bytes + TOKENS * 1000
    alone = rows["Student alone (Eq. 4)"]
    assert int(alone["predicted_bytes"]) == int(alone["allocated_bytes"])
    assert int(alone["allocated_bytes"]) == student.weight_bytes + TOKENS * student.kv_bytes_per_token
    blended = int(rows["Blended (Eq. 5)"]["predicted_bytes"])
    assert blended == int(alone["predicted_bytes"]) + int(added["predicted_bytes"])
    apart = 100 * (1000 / teacher.kv_bytes_per_token - 1)
    assert f"A sequence of {TOKENS} tokens" in page and "hold 4096 tokens" in page
    assert page.count('data-name="Apart">equal') == 4 and f">{apart:+.2g}%".replace("-", "−") in page


def test_the_prediction_has_the_servers_element_size_and_ranks(models):
    half = server_memory(models, account(models, student_element_bytes=2, teacher_element_bytes=2) | {"tp_size": 2})
    whole = server_memory(models, account(models))
    assert whole.predicted == whole.allocated and (half.ranks, half.pool_tokens) == (2, 4096)
    assert half.predicted.student_kv * 4 == whole.predicted.student_kv


def test_without_a_record_or_a_prediction_nothing_is_made_up(study, models):
    assert "Memory of a sequence" not in write_study_report(study).read_text()
    assert not (study / "report" / "memory.csv").exists() and read_memory(study) is None
    assert server_memory(models, {}) is None and server_memory(models, account(models, max_total_tokens="many")) is None
    unknown = server_memory(models.model_copy(update={"teacher": str(study)}), account(models))
    assert unknown.predicted is None
    write_memory(study / "runs" / "v-0", unknown)
    page = write_study_report(study).read_text()
    assert page.count('data-name="Predicted">–') == page.count('data-name="Apart">–') == 7


def test_a_damaged_record_is_one_clear_line(study, models):
    write_memory(study / "runs" / "v-0", server_memory(models, account(models)))
    path = study / "runs" / "v-0" / "memory.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(RecordsBroken, match="v-0/memory.json: .*; remove it to go on without it"):
        write_study_report(study)
