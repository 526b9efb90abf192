"""``trb doctor``: what is installed, what would fail, and how to mend it.

Each line reads OK, NOTE (nothing to do unless you want what it names), MISSING or WRONG, with the remedy below it.
With ``--config`` it also checks a server configuration and prints the pair's memory plan. With ``--sglang`` it compares
SGLang's sources with those that this package was checked against, and nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from sglang_trb.checkpoints import memory
from sglang_trb.cli import compare_sglang, complain, machine
from sglang_trb.cli.checks import BAD, Check, verdict
from sglang_trb.engine.touch_points.checked import CHECKED_SGLANG
from sglang_trb.errors import InvalidParameter
from sglang_trb.launch.server_config import REQUIRED, read_server_config

TRANSFORMERS = "5.12.1"  # what that sglang was checked with
ENTRY_POINTS = {"sglang.srt.plugins": "trb", "sglang.srt.platforms": "trb_cpu"}
OPTIONAL = {
    "math-verify": "rewards and evaluation of mathematical answers",
    "deepspeed": "training on several GPUs with DeepSpeed",
}


def run(argv: list[str]) -> int:
    """Run ``trb doctor``.

    Returns:
        0 when nothing is missing or wrong, 1 otherwise, 2 when the command itself is wrong.
    """
    parser = argparse.ArgumentParser(prog="trb doctor", description=__doc__.split("\n\n", 1)[1])
    parser.add_argument("--config", metavar="FILE", help="also check this server configuration (SGLang's YAML)")
    parser.add_argument(
        "--sglang",
        nargs="*",
        metavar="VERSION|PATH",
        help="compare SGLang's sources, where this package touches them: the installed ones and any others, which are "
        "versions, wheels or unpacked wheels; exit status 1 when the installed ones have changed",
    )
    parser.add_argument("--download", action="store_true", help="with --sglang: fetch versions with pip")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    arguments = parser.parse_args(argv)
    if arguments.download and arguments.sglang is None:
        parser.error("--download fetches versions that --sglang names")
    if arguments.config is not None and arguments.sglang is not None:
        parser.error("--config and --sglang ask for different things: one at a time")
    try:
        if arguments.sglang is not None:
            return compare_sglang.run(arguments.sglang, download=arguments.download, as_json=arguments.json)
        options = None if arguments.config is None else read_server_config(arguments.config)
    except InvalidParameter as error:
        complain("doctor", error)
        return 2
    checks = [*installation_checks(), *entry_point_checks(os.environ)]
    plan = None
    if options is not None:
        checks += config_checks(options)
        plan, fits = plan_check(options)
        checks.append(fits)
    checks += machine.space_checks(options or {}, plan, "WRONG" if cuda_devices() else "NOTE")
    print(_as_json(checks, plan) if arguments.json else _as_text(checks, plan))
    return 1 if any(check.status in BAD for check in checks) else 0


def installation_checks() -> Iterator[Check]:
    """Versions of what blending needs, and whether this torch has CUDA devices."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield verdict(sys.version_info >= (3, 11), f"python {version}", "use Python 3.11 or later")
    devices = cuda_devices()
    setup = f"pip install sglang=={CHECKED_SGLANG}" if devices else "make setup (installs the CPU environment)"
    yield _package("torch", setup)
    yield _package("sglang", setup, exactly=CHECKED_SGLANG)
    yield _package("transformers", setup, checked_with=TRANSFORMERS)
    yield _package("triton", setup)
    yield _torchvision(setup)
    if devices:
        yield _package("flashinfer-python", setup)
        yield _package("sglang-kernel", setup)
        for name, size in devices:
            yield Check("OK", f"CUDA device {name}, {size / memory.GIB:.1f} GiB")
    else:
        yield Check("NOTE", "no CUDA device: this machine serves with --device cpu")
    yield from machine.gpu_checks(torch_cuda(), bool(devices))
    for name, purpose in OPTIONAL.items():
        found = installed_version(name)
        yield verdict(
            bool(found), f"{name} {found or 'is not installed'}, for {purpose}", f"pip install {name}", "NOTE"
        )


def entry_point_checks(environment: Mapping[str, str]) -> Iterator[Check]:
    """Whether SGLang finds the plugin and the CPU platform, and whether its variables hide them.

    Args:
        environment: where SGLANG_PLUGINS and SGLANG_PLATFORM are looked up.
    """
    for group, name in ENTRY_POINTS.items():
        remedy = "install the package: pip install --no-deps -e ."
        yield verdict(has_entry_point(group, name), f"entry point {group}: {name}", remedy, "MISSING")
    plugin, cpu_platform = ENTRY_POINTS.values()
    listed = environment.get("SGLANG_PLUGINS", "")
    needed = {plugin} if cuda_devices() else {plugin, cpu_platform}
    hidden = sorted(needed - {part.strip() for part in listed.split(",")})
    if listed and hidden:
        remedy = f"unset SGLANG_PLUGINS, or add to it: {','.join(hidden)}"
        yield Check("WRONG", f"SGLANG_PLUGINS={listed} hides {', '.join(hidden)} (it filters platforms too)", remedy)
    platform = environment.get("SGLANG_PLATFORM")
    if platform and platform != cpu_platform:
        yield Check("WRONG", f"SGLANG_PLATFORM={platform} hides the plugin of this package", "unset SGLANG_PLATFORM")
    elif platform and cuda_devices():
        what = f"SGLANG_PLATFORM={platform} asks for the CPU platform, which is not offered beside a GPU"
        yield Check("WRONG", what, "unset SGLANG_PLATFORM")


def config_checks(options: Mapping[str, Any]) -> Iterator[Check]:
    """What a blending server needs of its options; the server itself checks the same table at start-up."""
    for name, role in (("model_path", "student"), ("speculative_draft_model_path", "teacher")):
        value = options.get(name)
        remedy = f"set it to the folder or Hugging Face id of the {role}"
        yield verdict(bool(value), f"{name} (the {role}) {value or 'is not set'}", remedy, "MISSING")
    backend = options.get("sampling_backend")
    yield verdict(backend == "trb", f"sampling_backend {backend}", "set it to trb: others draw from the student alone")
    yield from _required_options(options)
    half = options.get("dtype", "auto") not in ("float32", "float")
    if half and not options.get("enable_fp32_lm_head"):
        what = "half-precision logits: budgets below 0.005 nats are not kept accurately"
        yield Check("NOTE", what, "set enable_fp32_lm_head: true")
    if options.get("device") == "cuda" and not cuda_devices():
        yield Check("NOTE", "the configuration is for a GPU, this machine has none; the plan assumes an H100 (80 GB)")


def plan_check(options: Mapping[str, Any]) -> tuple[memory.MemoryPlan | None, Check]:
    """The memory plan of a configuration, if it can be made, and whether one sequence of full length fits."""
    if None in (installed_version("torch"), installed_version("transformers")):
        return None, Check("NOTE", "no memory plan: it is made with torch and transformers")
    try:
        plan = memory.plan(options, device_bytes(options))
    except InvalidParameter as error:
        return None, Check("WRONG", f"no memory plan: {error}", "give the option, or the path of the model")
    what = f"memory for {plan.tokens:,} tokens; context_length is {plan.context_length:,}"
    remedy = "a shorter context_length, a larger mem_fraction_static or max_total_tokens, or a larger device"
    if plan.step_bytes > plan.left_bytes:
        what = f"a step takes up to {plan.step_bytes / memory.GIB:.2f} GiB, {plan.left_bytes / memory.GIB:.2f} are left"
        remedy = "a smaller max_running_requests or mem_fraction_static, or a larger device"
    return plan, verdict(plan.fits, what, remedy)


def device_bytes(options: Mapping[str, Any]) -> int:
    """Memory of the first device of the kind the configuration names; of an H100 where it has no such GPU."""
    if options.get("device") == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    devices = cuda_devices()
    return devices[0][1] if devices else memory.H100_BYTES


def cuda_devices() -> list[tuple[str, int]]:
    """Name and memory in bytes of each CUDA device; empty without torch."""
    if installed_version("torch") is None:
        return []
    import torch

    properties = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    return [(device.name, device.total_memory) for device in properties]


def torch_cuda() -> str | None:
    """The CUDA version that torch was built for; None for a CPU build, and without torch."""
    if installed_version("torch") is None:
        return None
    import torch

    return torch.version.cuda


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def has_entry_point(group: str, name: str) -> bool:
    """Whether an installed distribution registers the entry point."""
    return bool(importlib.metadata.entry_points(group=group, name=name))


def import_error(module: str) -> str | None:
    """Why a module cannot be imported; None when it can."""
    try:
        importlib.import_module(module)
    except (ImportError, RuntimeError) as error:
        return str(error)
    return None


def _package(name: str, remedy: str, *, exactly: str | None = None, checked_with: str | None = None) -> Check:
    found = installed_version(name)
    if found is None:
        return Check("MISSING", name, remedy)
    if exactly not in (None, found):
        return Check(
            "WRONG", f"{name} {found}; this package works with {exactly} only", f"pip install {name}=={exactly}"
        )
    if checked_with not in (None, found):
        return Check("NOTE", f"{name} {found}; checked with {checked_with}")
    return Check("OK", f"{name} {found}")


def _torchvision(remedy: str) -> Check:
    """SGLang imports torchvision; beside a CPU torch its wheel needs the shim that `make setup` installs."""
    found = installed_version("torchvision")
    if found is None:
        return Check("MISSING", "torchvision", remedy)
    error = import_error("torchvision")
    if error is not None:
        return Check("WRONG", f"torchvision {found} cannot be imported: {error}", remedy)
    return Check("OK", f"torchvision {found}")


def _required_options(options: Mapping[str, Any]) -> Iterator[Check]:
    for name, (needed, reason) in REQUIRED.items():
        if name not in options and name != "sampling_defaults":  # the only one whose default is not what is needed
            continue
        value = options.get(name)
        right = value == needed or (needed is False and not value)
        yield verdict(right, f"{name} {value}", f"set it to {needed}: {reason}")


def _as_text(checks: list[Check], plan: memory.MemoryPlan | None) -> str:
    lines = []
    for check in checks:
        lines.append(f"{check.status:8}{check.what}")
        if check.remedy:
            lines.append(f"{'':8}→ {check.remedy}")
    bad = sum(check.status in BAD for check in checks)
    summary = f"{bad} of {len(checks)} checks failed" if bad else f"all {len(checks)} checks passed"
    return "\n".join([*lines, *(["", plan.render()] if plan else []), "", summary])


def _as_json(checks: list[Check], plan: memory.MemoryPlan | None) -> str:
    report: dict[str, Any] = {"checks": [dataclasses.asdict(check) for check in checks], "memory": None}
    if plan is not None:
        derived = {name: getattr(plan, name) for name in ("static_bytes", "pool_bytes", "tokens", "fits")}
        report["memory"] = dataclasses.asdict(plan) | derived
    return json.dumps(report, indent=2)
