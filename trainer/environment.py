"""What a process of the trainer needs in its environment before torch is imported."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def wait_passively(environment: MutableMapping[str, str], devices: Path = Path("/dev")) -> None:
    """Where the student is trained on a CPU, OpenMP's threads sleep while they wait, unless the user says otherwise.

    Waiting threads spin by default: beside two busy processes on two cores that made an update 20 times as slow, and
    saves a fifth of it on a machine that has nothing else to do. OpenMP reads the variable once, when torch loads it.

    Args:
        environment: of this process; what it starts inherits it.
        devices: where the system lists its devices.
    """
    hidden = environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if hidden or _is_for_cpus() or not any(devices.glob("nvidia[0-9]*")):
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _is_for_cpus() -> bool:
    """Whether that is all that the installed torch can do; without one, `trb doctor` still has to start."""
    try:
        return version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False


wait_passively(os.environ)
