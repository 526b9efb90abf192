"""Checkpoints and pushed weights are whole or not there, whatever ends the process that writes them."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys

import pytest

from trainer.atomic import UNFINISHED, new_folder, remove_folder, write_file
from trainer.learner.checkpoints import STATE, Best, CheckpointBroken, CheckpointStore


def make(store, *steps):
    for step in steps:
        with new_folder(store.path(step)) as folder:
            (folder / STATE).write_text(json.dumps({"step": step}))


def steps_of(store):
    return [checkpoint.step for checkpoint in store.all()]


def test_the_newest_and_the_best_are_kept(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2)
    assert store.latest() is None and store.best() is None
    make(store, 2, 10, 4)
    store.record_best(Best(2, 0.5))
    assert store.best() == Best(2, 0.5)
    make(store, 1_000_000)
    store.prune()
    assert steps_of(store) == [2, 10, 1_000_000]
    assert store.latest().state() == {"step": 1_000_000}


def test_what_is_still_to_be_evaluated_is_kept(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=1)
    make(store, 2, 4, 6, 8)
    store.prune({4, 20})
    assert steps_of(store) == [4, 8]
    store.prune()
    assert steps_of(store) == [8]


def test_the_best_has_the_highest_score_and_nan_is_never_it(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=1)
    best = []
    for step, score in enumerate([math.nan, 0.2, math.nan, 0.2, 0.5, 0.4]):
        store.record_best(Best(step, score))
        best.append(store.best() and store.best().step)
    assert best == [None, 1, 1, 1, 4, 4]
    (tmp_path / "best.json").write_text('{"step": 0, "score": NaN}')
    store.record_best(Best(6, 0.0))
    assert store.best() == Best(6, 0.0)


def test_the_state_must_be_of_its_step(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=1)
    make(store, 3)
    store.path(3).rename(store.path(4))
    with pytest.raises(CheckpointBroken, match="step: got 3; allowed: 4"):
        store.latest().state()
    (store.path(4) / STATE).write_text("{")
    with pytest.raises(CheckpointBroken, match=r"state\.json"):
        store.latest().state()


def test_a_folder_appears_only_when_it_is_whole(tmp_path):
    target = tmp_path / "sub" / "step-000001"

    def fill_the_disk():
        with new_folder(target) as folder:
            (folder / "half").write_text("x")
            assert not target.exists()
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fill_the_disk()
    assert list(target.parent.iterdir()) == []
    with new_folder(target) as folder:
        (folder / "whole").write_text("x")
    assert [path.name for path in target.parent.rglob("*")] == ["step-000001", "whole"]
    with pytest.raises(FileExistsError), new_folder(target):
        pass


@pytest.mark.parametrize("text", ["{nope", "[]", '{"step": 2}', '{"step": "x", "score": 1}'])
def test_a_damaged_record_of_the_best_is_named(tmp_path, text):
    (tmp_path / "best.json").write_text(text)
    with pytest.raises(CheckpointBroken, match=r"best\.json.*remove it"):
        CheckpointStore(tmp_path, keep_last=1).best()


@pytest.mark.parametrize("doing", ["write", "remove"])
def test_killed_at_any_system_call_it_is_never_half_there(tmp_path, doing):
    """A child ends itself without ceremony at its n-th look at the file system, for every n until it succeeds."""
    for n in range(200):
        folder = tmp_path / str(n)
        folder.mkdir()
        store = CheckpointStore(folder, keep_last=1)
        make(store, 1)
        if subprocess.run([sys.executable, "-c", _KILLED, str(folder), doing, str(n)], check=False).returncode == 0:
            break
        whole = [checkpoint.step for checkpoint in store.all()]
        assert whole in ([1], [1, 2]) if doing == "write" else whole in ([], [1])
        for checkpoint in store.all():
            assert checkpoint.state()["step"] == checkpoint.step
            assert len(list((checkpoint.folder / "parts").glob("*"))) == (3 if checkpoint.step == 2 else 0)
        store.remove_leftovers()
        assert not list(folder.glob(UNFINISHED + "*"))
    assert n >= 4


_KILLED = """
import os, sys
from pathlib import Path
from trainer.atomic import new_folder, remove_folder
folder, doing, last = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
calls = 0
def count(event, arguments):
    global calls
    if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.listdir"):
        calls += 1
        if calls > last:
            os._exit(9)
sys.addaudithook(count)
if doing == "remove":
    remove_folder(folder / "step-000001")
else:
    with new_folder(folder / "step-000002") as new:
        (new / "parts").mkdir()
        for i in range(3):
            (new / "parts" / str(i)).write_text("x")
        (new / "state.json").write_text('{"step": 2}')
"""


def test_a_file_is_replaced_at_once(tmp_path, monkeypatch):
    path = tmp_path / "best.json"
    write_file(path, "old")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            write_file(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    write_file(path, "new")
    assert path.read_text() == "new"


def test_removing_takes_the_name_first(tmp_path):
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    remove_folder(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []
