"""The journal keeps every whole record and nothing else, wherever a kill or a full disk cuts it."""

from __future__ import annotations

import dataclasses
import errno
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.rollout_answers import make_rollout
from trainer.rollouts.journal import JournalBroken, StepJournal, set_aside, step_path
from trainer.rollouts.rollout import Refusal, RolloutKey


def same(a, b) -> bool:
    """Bit for bit."""
    ours, theirs = dataclasses.asdict(a), dataclasses.asdict(b)

    def equal(x, y):
        if isinstance(x, dict):
            return x.keys() == y.keys() and all(equal(x[k], y[k]) for k in x)
        if isinstance(x, np.ndarray):
            return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
        return x == y

    return equal(ours, theirs)


def test_what_was_appended_is_read_back_bit_for_bit(tmp_path):
    path = step_path(tmp_path, 12)
    assert path.name == "step-000012.rollouts"
    entries = [make_rollout(RolloutKey(12, 3, 1), 5), make_rollout(RolloutKey(12, 2, 0), 1, teacher_support=True)]
    entries[0].tokens.kl[0], entries[0].support.teacher_logprob[0, 3] = np.inf, -np.inf
    refusal = Refusal(RolloutKey(12, 9, 0), "a row of NaN")
    with StepJournal(path) as journal:
        for entry in (*entries, refusal):
            journal.append(entry)
    with StepJournal(path) as journal:
        assert [rollout.key for rollout in journal.rollouts()] == [entries[1].key, entries[0].key]
        assert all(same(journal.entries[entry.key], entry) for entry in entries)
        assert journal.refusals() == [refusal]


def test_a_journal_of_an_earlier_version_is_read_and_written_byte_for_byte(tmp_path):
    """Written before the record of a token had a class of its own: two rollouts, one with both supports, a refusal."""
    old = Path(__file__).parent / "data/step-000012.rollouts"
    copy = Path(shutil.copy(old, tmp_path))
    with StepJournal(copy) as journal:
        entries = list(journal.entries.values())
    want = [make_rollout(RolloutKey(12, 3, 1), 3), make_rollout(RolloutKey(12, 3, 2), 2, teacher_support=True)]
    assert all(same(*pair) for pair in zip(entries, want, strict=False))
    assert entries[2:] == [Refusal(RolloutKey(12, 4, 0), "a row of NaN")]
    with StepJournal(tmp_path / "again") as again:
        for entry in entries:
            again.append(entry)
    assert again.path.read_bytes() == old.read_bytes() == copy.read_bytes()


def test_cut_anywhere_it_keeps_the_whole_records_and_goes_on(tmp_path):
    path = step_path(tmp_path, 0)
    first, second, third = (make_rollout(RolloutKey(0, i, 0), 3) for i in range(3))
    with StepJournal(path) as journal:
        journal.append(first)
        after_first = path.stat().st_size
        journal.append(second)
    whole = path.read_bytes()
    for cut in [0, 1, 15, 16, after_first - 1, after_first, after_first + 1, after_first + 17, len(whole) - 1]:
        path.write_bytes(whole[:cut])
        kept = [first] if cut >= after_first else []
        with StepJournal(path) as journal:
            assert [entry.key for entry in journal.rollouts()] == [entry.key for entry in kept]
            journal.append(third)
        with StepJournal(path) as journal:
            assert [entry.key for entry in journal.rollouts()] == [entry.key for entry in [*kept, third]]


@pytest.mark.parametrize("position", [0, 5, 14, 40, -1])
def test_a_record_that_was_changed_is_not_read(tmp_path, position):
    path = step_path(tmp_path, 0)
    with StepJournal(path) as journal:
        journal.append(make_rollout(RolloutKey(0, 0, 0), 3))
    damaged = bytearray(path.read_bytes())
    damaged[position] ^= 0x40
    path.write_bytes(damaged)
    with StepJournal(path) as journal:
        assert journal.entries == {}


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    """fsync is where a full disk may show last."""
    path = step_path(tmp_path, 0)
    with StepJournal(path) as journal:
        journal.append(make_rollout(RolloutKey(0, 0, 0), 3))
        size = path.stat().st_size

        def full(_):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            with pytest.raises(OSError, match="No space left"):
                journal.append(make_rollout(RolloutKey(0, 1, 0), 3))
        assert path.stat().st_size == size
        assert RolloutKey(0, 1, 0) not in journal.entries
        journal.append(make_rollout(RolloutKey(0, 1, 0), 3))
    with StepJournal(path) as journal:
        assert len(journal.entries) == 2


def test_a_journal_that_is_set_aside_is_kept_and_its_step_starts_anew(tmp_path):
    path = step_path(tmp_path, 3)
    for count in (1, 2):
        with StepJournal(path) as journal:
            assert not journal.entries
            journal.append(make_rollout(RolloutKey(3, count, 0), 3))
        whole = path.read_bytes()
        kept = set_aside(path)
        assert (kept.name, kept.read_bytes()) == (f"step-000003.set-aside-00{count}", whole)
        assert not [*tmp_path.glob("*.rollouts")], "what is removed with old journals"


def test_a_rollout_is_kept_once(tmp_path):
    with StepJournal(step_path(tmp_path, 0)) as journal:
        journal.append(make_rollout(RolloutKey(0, 0, 0), 3))
        with pytest.raises(JournalBroken, match="twice"):
            journal.append(make_rollout(RolloutKey(0, 0, 0), 3))
