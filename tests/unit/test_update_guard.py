"""The guard that decides whether a server may answer requests during and after weight updates."""

from __future__ import annotations

import pytest

from sglang_trb.engine.update_guard import BUSY, HALF_WRITTEN, TEACHER_CHANGED, UNTOUCHED, UPDATING, UpdateGuard


@pytest.fixture
def guard() -> UpdateGuard:
    return UpdateGuard()


def test_a_session_refuses_until_it_ends(guard: UpdateGuard) -> None:
    assert guard.refusal is None
    guard.begun()
    assert guard.refusal == UPDATING
    guard.wrote(True, "Success")
    assert guard.refusal == UPDATING
    guard.ended()
    assert guard.refusal is None


@pytest.mark.parametrize("message", [UNTOUCHED + "wrong name", BUSY])
def test_a_failure_that_wrote_nothing_changes_nothing(guard: UpdateGuard, message: str) -> None:
    guard.replaced(False, message)
    assert guard.refusal is None
    guard.begun()
    guard.wrote(False, message)
    guard.ended()
    assert guard.refusal is None


def test_a_half_written_student_is_refused_until_an_update_succeeds(guard: UpdateGuard) -> None:
    guard.begun()
    guard.wrote(True, "Success")
    guard.wrote(False, "RuntimeError: size mismatch")
    guard.ended()
    assert guard.refusal == HALF_WRITTEN
    guard.begun()
    guard.ended()
    assert guard.refusal == HALF_WRITTEN, "an empty session repairs nothing"
    guard.begun()
    guard.wrote(True, "Success")
    guard.ended()
    assert guard.refusal is None


def test_a_failed_disk_load_is_refused_until_one_succeeds(guard: UpdateGuard) -> None:
    guard.replaced(False, "Failed to update weights: …")
    assert guard.refusal == HALF_WRITTEN
    guard.replaced(False, UNTOUCHED + "no such folder")
    assert guard.refusal == HALF_WRITTEN
    guard.replaced(True, "Succeeded")
    assert guard.refusal is None


def test_one_replica_that_wrote_makes_a_joint_answer_half_written(guard: UpdateGuard) -> None:
    guard.replaced(False, f"{UNTOUCHED}x | Success")
    assert guard.refusal == HALF_WRITTEN


def test_a_part_that_is_missing_after_another_was_written_is_half_way(guard: UpdateGuard) -> None:
    guard.begun()
    guard.wrote(True, "Success")
    guard.wrote(False, UNTOUCHED + "wrong name")
    guard.ended()
    assert guard.refusal == HALF_WRITTEN


@pytest.mark.parametrize("parts", [0, 1])
def test_an_abandoned_session_is_half_way_if_it_wrote(guard: UpdateGuard, parts: int) -> None:
    guard.begun()
    for _ in range(parts):
        guard.wrote(True, "Success")
    guard.abandoned()
    assert guard.refusal == (HALF_WRITTEN if parts else None)
    guard.begun()
    guard.wrote(True, "Success")
    guard.ended()
    assert guard.refusal is None


def test_a_changed_teacher_refuses_for_good(guard: UpdateGuard) -> None:
    assert not guard.looked_at_teacher("unchanged")
    assert (guard.refusal, guard.teacher_is_whole) == (None, True)
    assert guard.looked_at_teacher(f"{TEACHER_CHANGED} (a tensor is not what was loaded)")
    guard.replaced(True, "Success")
    guard.begun()
    assert guard.refusal.startswith(TEACHER_CHANGED)
    assert not guard.updating, "probes fail"
    guard.ended()
    assert guard.refusal.startswith(TEACHER_CHANGED)
