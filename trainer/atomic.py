"""Folders and files that are either whole and on disk, or not there."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

UNFINISHED = ".unfinished-"
"""What the name of a folder begins with while it is written; one that is found later is a killed run's."""


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill; it gets its name ``target`` when the block ends well, after all of it is on disk.

    Raises:
        FileExistsError: ``target`` is there already.
        OSError: writing failed; what was written is removed.
    """
    if target.exists():
        raise FileExistsError(f"{target} is there already")
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(UNFINISHED + target.name)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        yield unfinished
        for path in [*unfinished.rglob("*"), unfinished]:
            sync(path)
        unfinished.rename(target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    sync(target.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that nobody ever sees a part of it under its name."""
    unfinished = folder.with_name(UNFINISHED + folder.name)
    shutil.rmtree(unfinished, ignore_errors=True)
    folder.rename(unfinished)
    shutil.rmtree(unfinished)


def write_file(target: Path, content: str | bytes) -> None:
    """Replace a file at once: readers see the old or the new, whole.

    Raises:
        OSError: the disk is full or gone; the file is as it was.
    """
    unfinished = target.with_name(UNFINISHED + target.name)
    try:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
        sync(unfinished)
        unfinished.replace(target)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, os.fspath(target)) from None
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    sync(target.parent)


def sync(path: Path) -> None:
    """Wait until a file or a folder's list of names is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
