"""The data that a run was started with: a digest of every prompt and benchmark problem, ``data.json`` in its folder.

Rollouts, rewards and evaluations name a prompt by its position. So under a run that goes on each position must hold
what it held: the same question, gold answer and token ids.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.atomic import write_file
from trainer.data.limits import Limits
from trainer.errors import TrainerError

DATA_FILE = "data.json"
_DIGEST_CHARACTERS = 12


class OtherData(TrainerError, ValueError):
    """The data is not what the run was started with."""


class RecordBroken(TrainerError, ValueError):
    """A run's record of its data is damaged."""


@dataclasses.dataclass(frozen=True)
class BenchmarkData:
    """One benchmark.

    Attributes:
        source: the settings that choose its problems.
        digests: of its problems, in order.
    """

    source: dict[str, Any]
    digests: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class DataRecord:
    """What a run is made of.

    Attributes:
        limits: of the servers when it was started, which longer prompts were left out for; None: nobody asked.
        prompts: digests of the usable prompts, in their file's order.
        benchmarks: by name, those of earlier evaluations too.
    """

    limits: Limits | None
    prompts: tuple[str, ...]
    benchmarks: dict[str, BenchmarkData]

    def continued_by(self, now: DataRecord) -> DataRecord:
        """The record of a run that goes on with ``now``'s data.

        A benchmark may be added, and chosen anew by other settings; under the same settings it must be the same.

        Raises:
            OtherData: says what changed and what can be done.
        """
        _require_same("the training prompts", self.prompts, now.prompts)
        for name, benchmark in now.benchmarks.items():
            before = self.benchmarks.get(name)
            if before is not None and before.source == benchmark.source:
                _require_same(f"benchmark {name}", before.digests, benchmark.digests)
        return dataclasses.replace(self, benchmarks=self.benchmarks | now.benchmarks)


def digest(question: str, answer: str | None, token_ids: Sequence[int]) -> str:
    """Of all that decides about a prompt's rollouts and their grades."""
    content = json.dumps([question, answer, list(token_ids)])
    return hashlib.sha256(content.encode()).hexdigest()[:_DIGEST_CHARACTERS]


def read_data_record(folder: Path) -> DataRecord | None:
    """The record in a run's folder; None where there is none.

    Raises:
        RecordBroken: it is not what `write_data_record` wrote.
    """
    path = folder / DATA_FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        limits = values["limits"]
        benchmarks: Mapping[str, Any] = values["benchmarks"]
        return DataRecord(
            None if limits is None else Limits(**limits),
            tuple(values["prompts"]),
            {name: BenchmarkData(b["source"], tuple(b["digests"])) for name, b in benchmarks.items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordBroken(f"{path}: {error!r}; remove it to take the data as it is now for the run's") from None


def write_data_record(folder: Path, record: DataRecord) -> None:
    """Raises: OSError: the disk is full or gone; the record is as it was."""
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / DATA_FILE, json.dumps(dataclasses.asdict(record), ensure_ascii=False) + "\n")


def _require_same(what: str, before: Sequence[str], now: Sequence[str]) -> None:
    if tuple(before) == tuple(now):
        return
    shorter = min(len(before), len(now))
    first = next((i for i in range(shorter) if before[i] != now[i]), shorter)
    if sorted(before) == sorted(now):
        change = f"the same {len(now)} in another order, from number {first + 1} on"
    elif len(before) == len(now):
        changed = sum(old != new for old, new in zip(before, now, strict=True))
        change = f"{changed} of {len(now)} changed, the first is number {first + 1}"
    else:
        change = f"{len(now)} where there were {len(before)}; the first that differs is number {first + 1}"
    raise OtherData(
        f"{what}: got {change}; allowed: the questions, answers and chat template that the run was started with. "
        "Restore the file, or give the run another name"
    )
