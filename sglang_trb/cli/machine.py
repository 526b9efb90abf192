"""What `trb doctor` asks of the machine itself: driver, compilers, disk, shared memory.

SGLang compiles kernels when it first needs them, with nvcc and a C++ compiler that no pip package brings; Triton
compiles its launchers with a C compiler and Python's headers.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sglang_trb.checkpoints.memory import GIB, MemoryPlan
from sglang_trb.cli.checks import Check, verdict

SPARE_DISK = 5 * GIB
"""For compiled kernels, logs and a run's records, beside the models."""

SHARED_MEMORY = Path("/dev/shm")
SHARED_MEMORY_NEEDED = GIB
"""NCCL's buffers and a part of a tensor push (push.bucket_mib); a container gets 64 MiB unless told otherwise."""

MODEL_OPTIONS = ("model_path", "speculative_draft_model_path")


def gpu_checks(torch_cuda: str | None, devices: bool) -> Iterator[Check]:
    """Whether the driver serves torch's CUDA and kernels can be compiled; nothing on a machine without an NVIDIA GPU.

    Args:
        torch_cuda: the CUDA version that torch was built for, such as ``13.0``; None for a CPU build.
        devices: whether torch sees a GPU.
    """
    driver = driver_cuda()
    if driver is None and not devices:
        return
    if torch_cuda is None:
        remedy = "for the GPU: a fresh environment, and there: pip install '.[server,trainer]'"
        yield Check("NOTE", f"the driver has CUDA {driver}, this torch is a CPU build: the GPU is left alone", remedy)
        return
    major = torch_cuda.split(".")[0]
    if driver is not None:  # a container may be without nvidia-smi
        what = f"the driver has CUDA {driver}, torch was built for CUDA {torch_cuda}"
        remedy = f"a newer driver: one that has CUDA {major} or later (nvidia-smi shows it)"
        yield verdict(int(driver.split(".")[0]) >= int(major), what, remedy)
    yield from _compilers(major)


def _compilers(cuda_major: str) -> Iterator[Check]:
    toolkit = f"apt-get install cuda-toolkit-{cuda_major} from NVIDIA's repository, or set CUDA_HOME to one"
    nvcc = find_nvcc(os.environ)
    release = None if nvcc is None else _first_match(r"release (\d+\.\d+)", run_command([nvcc, "--version"]))
    if release is None:
        yield Check("MISSING", "nvcc, with which SGLang compiles kernels at its first decode", toolkit)
    else:
        right = release.split(".")[0] == cuda_major
        yield verdict(right, f"nvcc {release} ({nvcc}); torch's CUDA is {cuda_major}", toolkit, "NOTE")
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    missing = [name for name in ("gcc", "g++") if shutil.which(name) is None] + ([] if headers else ["Python.h"])
    what = f"{', '.join(missing) or 'gcc, g++ and Python.h'}, with which kernels and their launchers are compiled"
    yield verdict(not missing, what, "apt-get install build-essential python3-dev", "MISSING")


def space_checks(options: Mapping[str, Any], plan: MemoryPlan | None, otherwise: str) -> Iterator[Check]:
    """Free disk for what a configuration would download, and shared memory.

    Args:
        options, plan: the server configuration and its memory plan; empty and None without one.
        otherwise: the status where space is short.
    """
    cache = hub_cache(os.environ)
    models = [] if plan is None else zip(MODEL_OPTIONS, (plan.student, plan.teacher), strict=True)
    missing = [model.weight_bytes for name, model in models if not _is_here(str(options[name]), cache)]
    free, needed = free_bytes(cache), SPARE_DISK + sum(missing)
    what = f"{free / GIB:.1f} GiB of disk free at {cache}, {needed / GIB:.1f} needed"
    what += " with the models to download" if missing else ""
    yield verdict(free >= needed, what, "free some, or set HF_HOME to a folder of a larger disk", otherwise)
    shared = free_bytes(SHARED_MEMORY)
    what = f"{shared / GIB:.1f} GiB free at {SHARED_MEMORY}, {SHARED_MEMORY_NEEDED / GIB:.0f} needed"
    remedy = "in a container: docker run --shm-size 16g (or --ipc host); else: mount -o remount,size=16G /dev/shm"
    yield verdict(shared >= SHARED_MEMORY_NEEDED, what, remedy, otherwise)


def driver_cuda() -> str | None:
    """The newest CUDA that the NVIDIA driver serves, such as ``13.0``; None without a driver that answers."""
    return _first_match(r"CUDA (?:UMD )?Version\s*:\s*(\d+\.\d+)", run_command(["nvidia-smi"]))


def find_nvcc(environment: Mapping[str, str]) -> str | None:
    """Where SGLang's just-in-time builds find nvcc: CUDA_HOME or CUDA_PATH, else PATH, else /usr/local/cuda."""
    home = environment.get("CUDA_HOME") or environment.get("CUDA_PATH")
    if home:
        return shutil.which("nvcc", path=f"{home}/bin")
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def hub_cache(environment: Mapping[str, str]) -> Path:
    """Where models of the Hugging Face hub are kept."""
    home = environment.get("HF_HOME") or os.path.join(environment.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(environment.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()


def free_bytes(path: Path) -> int:
    """Free bytes where a path is, or would be once it exists."""
    return shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.is_dir())).free


def run_command(argv: list[str]) -> str:
    """The standard output of a command; empty where it is missing, fails or does not end in time."""
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _is_here(model: str, cache: Path) -> bool:
    return Path(model).expanduser().is_dir() or (cache / f"models--{model.replace('/', '--')}").is_dir()


def _first_match(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return None if found is None else found[1]
