"""SGLang options for our commands: read with SGLang's own parser, checked before any model is loaded."""

from __future__ import annotations

import argparse
from pathlib import Path

from sglang_trb.errors import InvalidParameter
from sglang_trb.launch.server_config import read_server_config

CPU_OPTIONS = "--device cpu --dtype float32 --grammar-backend none --sleep-on-idle"
CPU_MEMORY = "--context-length 2048 --max-total-tokens 8192 --max-running-requests 32"


def config_command(path: str, overrides: list[str]) -> list[str]:
    """SGLang's command line for a configuration file; what follows the file overrides it."""
    read_server_config(path)
    return ["--config", path, *overrides]


def pair_command(student: str, teacher: str) -> list[str]:
    """SGLang's command line for a pair without a configuration file, on this machine's GPU or else its CPU."""
    import torch

    models = ["--model-path", student, "--speculative-draft-model-path", teacher]
    blending = ["--sampling-backend", "trb", "--sampling-defaults", "openai"]
    device = [] if torch.cuda.is_available() else f"{CPU_OPTIONS} {CPU_MEMORY}".split()
    return [*models, *blending, *device]


def parse(command: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Read a command line as SGLang will.

    Returns:
        The options, and the command line with the configuration file spelled out.

    Raises:
        InvalidParameter: an option or value that SGLang does not know, or a model folder that is not there.
    """
    from sglang_trb.engine import launcher

    options, effective = launcher.parse(command)
    for flag in ("model_path", "speculative_draft_model_path"):
        _check_model(flag, getattr(options, flag))
    return options, effective


def _check_model(flag: str, path: str | None) -> None:
    if path is None or not path.startswith((".", "/", "~")):  # not given, or an id on the hub
        return
    if not (Path(path).expanduser() / "config.json").is_file():
        hint = "; make it with examples/smollm2/make_pair.py" if "smollm2" in path else ""
        raise InvalidParameter(flag, path, f"a checkpoint folder (with a config.json), or a Hugging Face id{hint}")
