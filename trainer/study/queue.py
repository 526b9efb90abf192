"""Which runs of a study are done, failed, taken or free: files in its folder, for every machine that sees them.

A run is taken by a lock on a file, which ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainer.atomic import write_file
from trainer.errors import TrainerError
from trainer.run.folder import FolderInUse, claimed
from trainer.study.plan import RUNS, Plan, PlannedRun

STUDY_FILE = "study.json"
_STATES = "states"


class OtherStudy(TrainerError, ValueError):
    """The folder holds another study, or a damaged record of one."""


class ServersInUse(TrainerError, RuntimeError):
    """Another worker of the study trains on these servers."""


class State(enum.Enum):
    """Of a run, as far as files can say."""

    DONE = "done"
    FAILED = "failed"
    TO_DO = "to do"


class Queue:
    """The runs of a study, for those who work on them.

    Args:
        plan: of the study.

    Raises:
        OtherStudy: the folder holds a study with other runs; more families and seeds may be added to one.
    """

    def __init__(self, plan: Plan) -> None:
        self._folder = plan.study.study_folder
        self._states = self._folder / _STATES
        self._states.mkdir(parents=True, exist_ok=True)
        with self._locked(self._folder / ".study.lock", wait=True):
            known = read_recorded(self._folder)
            now = plan.recorded()
            for name, digest in known.items():
                if name not in now:
                    raise OtherStudy(
                        f"{self._folder}: got a study without {name!r}, which was begun there; allowed: the same runs "
                        "and more, or another name"
                    )
                if now[name] != digest:
                    raise OtherStudy(
                        f"{self._folder}: got other settings of {name!r} than those that were begun there; allowed: "
                        "the same, or another name"
                    )
            record = {"runs": now, "members": plan.described(), "base": plan.base.model_dump(mode="json")}
            write_file(self._folder / STUDY_FILE, json.dumps(record, indent=2, ensure_ascii=False) + "\n")

    def state(self, run: PlannedRun) -> State:
        """Of one run; one that is being worked on is to do."""
        return state_of(self._folder, run.name)

    @contextlib.contextmanager
    def taken(self, run: PlannedRun) -> Iterator[bool]:
        """Keep others from a run while the block runs; False: somebody else has it, or what is left of them."""
        with self._locked(self._states / f"{run.name}.lock", wait=False) as free:
            yield free and not _in_use(self._folder / RUNS / run.name)

    def end(self, run: PlannedRun, state: State, about: str = "") -> None:
        """Record how a run ended, with a line for people."""
        write_file(self._path(run, state), about + "\n")
        if state is State.DONE:
            self._path(run, State.FAILED).unlink(missing_ok=True)

    def why(self, run: PlannedRun) -> str:
        """What was recorded of a run that failed."""
        return self._path(run, State.FAILED).read_text(encoding="utf-8", errors="replace").strip()

    @contextlib.contextmanager
    def servers(self, urls: Sequence[str]) -> Iterator[None]:
        """Keep other workers from these servers while the block runs: one run at a time has a server.

        Raises:
            ServersInUse: another worker of the study has them.
        """
        digest = hashlib.sha256("\n".join(sorted(urls)).encode()).hexdigest()[:16]
        with self._locked(self._states / f"servers-{digest}.lock", wait=False) as free:
            if not free:
                raise ServersInUse(
                    f"server.urls: got {', '.join(urls)}, where another worker trains; allowed: servers of its own"
                )
            yield

    def _path(self, run: PlannedRun, state: State) -> Path:
        return _state_file(self._folder, run.name, state)

    @contextlib.contextmanager
    def _locked(self, path: Path, *, wait: bool) -> Iterator[bool]:
        with path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True


def state_of(folder: Path, run: str) -> State:
    """Of a run of the study in a folder, by its name."""
    return next((s for s in (State.DONE, State.FAILED) if _state_file(folder, run, s).is_file()), State.TO_DO)


def read_recorded(folder: Path) -> dict[str, str]:
    """Names and digests of the runs of the study that is in a folder; {} where there is none.

    Raises:
        OtherStudy: its record is damaged.
    """
    path = folder / STUDY_FILE
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["runs"])
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise OtherStudy(f"{path}: got a damaged record ({error}); allowed: what trb study wrote") from None


def _state_file(folder: Path, run: str, state: State) -> Path:
    return folder / _STATES / f"{run}.{state.value}"


def _in_use(run_folder: Path) -> bool:
    """Whether a process trains there, such as one whose study has been killed."""
    if not run_folder.is_dir():
        return False
    try:
        with claimed(run_folder):
            return False
    except FolderInUse:
        return True
