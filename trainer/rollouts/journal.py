"""The journal: every rollout on disk, synced, before it is used, so that a killed run loses none that was finished.

One file a step, ``step-000012.rollouts``: records one after the other, each a header (magic, length, CRC-32) and a
safetensors blob. A record that a kill or a full disk cut short is dropped when the file is opened again.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from sglang_trb.wire.record import Columns, Support, TokenStatistics
from trainer.atomic import sync, write_file
from trainer.errors import TrainerError
from trainer.rollouts.rollout import Refusal, Rollout, RolloutKey

Group = TypeVar("Group", bound=Columns)

_HEADER = struct.Struct("<4sQI")
_MAGIC = b"TRBJ"
_PAYLOAD_ERRORS = (ValueError, KeyError, TypeError, struct.error, SafetensorError)
"""What reading a record raises that is not one."""


class JournalBroken(TrainerError, RuntimeError):
    """A journal on disk says something else than this run can have written."""


class StepJournal:
    """The rollouts and refusals of one step, appended as they come.

    Use as a context manager. Opening repairs a torn end and reads what is there.

    Attributes:
        entries: what is safely on disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[RolloutKey, Rollout | Refusal] = {}

    def __enter__(self) -> StepJournal:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self.path.open("a+b")
        whole = 0
        for entry, whole in _records(self.path):  # noqa: B007  # the last one is what is needed
            self._keep(entry)
        self._stream.truncate(whole)
        sync(self.path.parent)
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def append(self, entry: Rollout | Refusal) -> None:
        """Write one and wait until it is on disk.

        Raises:
            OSError: the disk is full or gone; what was there before is whole.
        """
        start = self._stream.seek(0, os.SEEK_END)
        try:
            self._stream.write(_record(entry))
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError:
            os.ftruncate(self._stream.fileno(), start)
            raise
        self._keep(entry)

    def rollouts(self) -> list[Rollout]:
        """All rollouts in the order of their keys, whatever order they finished in."""
        return sorted((e for e in self.entries.values() if isinstance(e, Rollout)), key=lambda rollout: rollout.key)

    def refusals(self) -> list[Refusal]:
        """All refusals in the order of their keys."""
        return sorted((e for e in self.entries.values() if isinstance(e, Refusal)), key=lambda refusal: refusal.key)

    def forget_refusals(self) -> None:
        """Leave the refusals out, so that those rollouts can be asked for again."""
        if not self.refusals():
            return
        self._stream.close()
        write_file(self.path, b"".join(_record(rollout) for rollout in self.rollouts()))
        self._stream = self.path.open("a+b")
        self.entries = {key: entry for key, entry in self.entries.items() if isinstance(entry, Rollout)}

    def _keep(self, entry: Rollout | Refusal) -> None:
        if entry.key in self.entries:
            raise JournalBroken(f"{self.path} holds {entry.key} twice")
        self.entries[entry.key] = entry


def step_path(folder: Path, step: int) -> Path:
    """The journal of step k in a run's journal folder."""
    return folder / f"step-{step:06d}.rollouts"


def steps_kept(folder: Path) -> list[int]:
    """The steps that a run's journal folder has a journal of, in their order."""
    names = (re.fullmatch(r"step-(\d+)\.rollouts", path.name) for path in folder.glob("*.rollouts"))
    return sorted(int(found[1]) for found in names if found)


def read_step(path: Path, wanted: Callable[[RolloutKey], bool]) -> list[Rollout]:
    """Some rollouts of a journal in the order of their keys, without writing to it; also while a run does.

    An unfinished last record is left out, as nothing is lost by it. Rollouts that are not wanted are not read, so a few
    of a large journal are cheap.

    Raises:
        JournalBroken: a record is damaged; the message names the file and the place.
        OSError: the file cannot be read.
    """
    found = []
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        while stream.tell() + _HEADER.size <= size:
            start = stream.tell()
            try:
                rollout, end = _read_wanted(stream, wanted)
            except _PAYLOAD_ERRORS as error:
                raise JournalBroken(
                    f"{path}: damaged at byte {start} ({error}); remove it to go on without it"
                ) from None
            if end > size:
                break
            found += [rollout] if rollout is not None else []
            stream.seek(end)
    return sorted(found, key=lambda rollout: rollout.key)


def rollout_keys(path: Path) -> list[RolloutKey]:
    """Which rollouts a journal has, in their order; raises as `read_step`."""
    keys: list[RolloutKey] = []

    def note(key: RolloutKey) -> bool:
        keys.append(key)
        return False

    read_step(path, note)
    return sorted(keys)


def _read_wanted(stream: BinaryIO, wanted: Callable[[RolloutKey], bool]) -> tuple[Rollout | None, int]:
    """The record at the stream's place, None for one that is not wanted, no rollout or cut short; and its end."""
    magic, length, checksum = _HEADER.unpack(stream.read(_HEADER.size))
    if magic != _MAGIC:
        raise ValueError("no record begins there")
    start = stream.tell()
    end = start + length
    if end > os.fstat(stream.fileno()).st_size:
        return None, end
    (described,) = struct.unpack("<Q", stream.read(8))
    meta = json.loads(json.loads(stream.read(min(described, length)))["__metadata__"]["entry"])
    if "refused" in meta or not wanted(RolloutKey(*meta["key"])):
        return None, end
    stream.seek(start)
    payload = stream.read(length)
    if zlib.crc32(payload) != checksum:
        raise ValueError("the checksum does not fit")
    entry = _from_bytes(payload)
    return entry if isinstance(entry, Rollout) else None, end


def set_aside(path: Path) -> Path:
    """Rename a step's journal, so that the step is drawn anew; returns where it is kept."""
    taken = (path.with_suffix(f".set-aside-{number:03d}") for number in itertools.count(1))
    kept = next(name for name in taken if not name.exists())
    path.rename(kept)
    sync(path.parent)
    return kept


def _records(path: Path) -> Iterator[tuple[Rollout | Refusal, int]]:
    """Each whole record and the offset behind it; stops at the first that is not whole."""
    end = 0
    with path.open("rb") as stream:
        while len(header := stream.read(_HEADER.size)) == _HEADER.size:
            magic, length, checksum = _HEADER.unpack(header)
            payload = stream.read(length) if magic == _MAGIC else b""
            if magic != _MAGIC or len(payload) != length or zlib.crc32(payload) != checksum:
                return
            end += _HEADER.size + length
            yield _from_bytes(payload), end


def _record(entry: Rollout | Refusal) -> bytes:
    payload = _to_bytes(entry)
    return _HEADER.pack(_MAGIC, len(payload), zlib.crc32(payload)) + payload


def _to_bytes(entry: Rollout | Refusal) -> bytes:
    key = [entry.key.step, entry.key.prompt, entry.key.sample]
    if isinstance(entry, Refusal):
        return save({}, metadata={"entry": json.dumps({"key": key, "refused": entry.reason})})
    arrays = {"prompt_ids": entry.prompt_ids, "token_ids": entry.token_ids_T}
    for group, columns in _groups(entry):
        arrays |= {f"{group}.{name}": array for name, array in columns.named().items()}
    meta = {"key": key, "weight_version": entry.weight_version, "finish": entry.finish}
    return save({name: np.ascontiguousarray(a) for name, a in arrays.items()}, metadata={"entry": json.dumps(meta)})


def _groups(rollout: Rollout) -> Iterator[tuple[str, Columns[np.ndarray]]]:
    """What a rollout has of its tokens, by name."""
    for name in ("tokens", "support", "teacher_support"):
        columns: Columns[np.ndarray] | None = getattr(rollout, name)
        if columns is not None:
            yield name, columns


def _from_bytes(payload: bytes) -> Rollout | Refusal:
    meta = _metadata(payload)
    key = RolloutKey(*meta["key"])
    if "refused" in meta:
        return Refusal(key, meta["refused"])
    arrays = load(payload)

    def group(name: str, columns: type[Group]) -> Group | None:
        its = {n.removeprefix(f"{name}."): array for n, array in arrays.items() if n.startswith(f"{name}.")}
        return columns(**its) if its else None

    return Rollout(
        key=key,
        weight_version=meta["weight_version"],
        finish=meta["finish"],
        prompt_ids=arrays["prompt_ids"],
        token_ids_T=arrays["token_ids"],
        tokens=group("tokens", TokenStatistics),
        support=group("support", Support),
        teacher_support=group("teacher_support", Support),
    )


def _metadata(payload: bytes) -> dict[str, Any]:
    """The JSON of ours in a safetensors header, which safetensors' own loader does not hand out."""
    (length,) = struct.unpack_from("<Q", payload)
    header = json.loads(payload[8 : 8 + length])
    return json.loads(header["__metadata__"]["entry"])
