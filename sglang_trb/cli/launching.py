"""SGLang options for our commands: read with SGLang's own parser, checked before any model is loaded.

Checked with sglang 0.5.21.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sglang_trb.errors import InvalidParameter, TrbError
from sglang_trb.launch.server_config import read_server_config

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

CPU_OPTIONS = "--device cpu --dtype float32 --attention-backend torch_native --grammar-backend none --sleep-on-idle"
CPU_MEMORY = "--context-length 2048 --max-total-tokens 8192 --max-running-requests 32"


class ServerFailed(TrbError, RuntimeError):
    """A process of SGLang ended; its log says why."""


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
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import ServerArgs
    from sglang.srt.utils.server_args_config_parser import ConfigArgumentMerger

    load_plugins()  # they add choices, such as the sampling backend
    parser = _Parser(allow_abbrev=False)
    ServerArgs.add_cli_args(parser)
    try:
        effective = ConfigArgumentMerger(parser).merge_config_with_args(command)
    except ValueError as error:
        raise InvalidParameter("--config", command[1], str(error)) from None
    options = parser.parse_args(effective)
    for flag in ("model_path", "speculative_draft_model_path"):
        _check_model(flag, getattr(options, flag))
    return options, effective


def server_args(command: list[str]) -> ServerArgs:
    """What SGLang is launched with, after `parse` has found nothing wrong."""
    from sglang.srt.server_args import prepare_server_args

    args = prepare_server_args(command)
    # SGLang's own handler kills this process when a child fails, which reads as exit status 137.
    args.custom_sigquit_handler = _child_failed
    if args.device == "cpu":
        _tune_cpu()
    return args


def _tune_cpu() -> None:
    """Environment of SGLang's processes on a CPU, unless it is set; measured on 2 cores with a pair of 135 M."""
    # Half the CPUs compute, the rest is for tokenizing, HTTP and clients: 16 requests 28 → 44 tokens/s.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // 2)))
    # OpenMP's threads spin while they wait; beside any other busy process that costs 10 to 50 times the speed.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _child_failed(*_: Any) -> NoReturn:
    raise ServerFailed("a process of SGLang failed; the log above says why")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong without listing some hundred options first."""

    def error(self, message: str) -> NoReturn:
        raise InvalidParameter("SGLang option", message, "what `sglang serve --help` lists")


def _check_model(flag: str, path: str | None) -> None:
    if path is None or not path.startswith((".", "/", "~")):  # not given, or an id on the hub
        return
    if not (Path(path).expanduser() / "config.json").is_file():
        hint = "; make it with examples/smollm2/make_pair.py" if "smollm2" in path else ""
        raise InvalidParameter(flag, path, f"a checkpoint folder (with a config.json), or a Hugging Face id{hint}")
