"""SGLang's own option parser, launch and engine, for the command line; only this module starts SGLang.

The order of calls follows ``sglang/launch_server.py``.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import Any, NoReturn

from sglang.launch_server import run_server
from sglang.srt.entrypoints.engine import Engine
from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import ServerArgs, prepare_server_args
from sglang.srt.utils import kill_process_tree
from sglang.srt.utils.server_args_config_parser import ConfigArgumentMerger

from sglang_trb.errors import InvalidParameter, ServerFailed


def parse(command: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Read a command line as SGLang will.

    Returns:
        The options, and the command line with the configuration file spelled out.

    Raises:
        InvalidParameter: an option or value that SGLang does not know.
    """
    load_plugins()  # they add choices, such as the sampling backend
    parser = _Parser(allow_abbrev=False)
    ServerArgs.add_cli_args(parser)
    try:
        effective = ConfigArgumentMerger(parser).merge_config_with_args(command)
    except ValueError as error:
        raise InvalidParameter("--config", command[1], str(error)) from None
    return parser.parse_args(effective), effective


def serve(command: list[str], stopped: str) -> None:
    """Serve until a signal ends it; then no process of SGLang is left.

    Args:
        command: SGLang's command line, in which `parse` has found nothing wrong.
        stopped: what to say on stderr when a signal ends it while it starts.
    """

    def stop(*_: Any) -> NoReturn:
        _end_children()
        print(stopped, file=sys.stderr, flush=True)
        os._exit(0)

    # While SGLang starts; once it serves, it and uvicorn shut down in order and then come back to these. A handler that
    # raised could be swallowed wherever the signal happens to arrive, and the server would start after all.
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        run_server(_server_args(command))
    except KeyboardInterrupt:
        pass
    finally:
        _end_children()


def engine(command: list[str]) -> Engine:
    """SGLang's engine in this process, for a ``with`` block.

    Args:
        command: SGLang's command line, in which `parse` has found nothing wrong.
    """
    return Engine(server_args=_server_args(command))


def _server_args(command: list[str]) -> ServerArgs:
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
    # A step of a small pair is thousands of small operations, each cheaper without autograd's bookkeeping: 1.1 times.
    os.environ.setdefault("SGLANG_ENABLE_TORCH_INFERENCE_MODE", "1")


def _end_children() -> None:
    kill_process_tree(os.getpid(), include_parent=False)


def _child_failed(*_: Any) -> NoReturn:
    raise ServerFailed("a process of SGLang failed; the log above says why")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong without listing some hundred options first."""

    def error(self, message: str) -> NoReturn:
        raise InvalidParameter("SGLang option", message, "what `sglang serve --help` lists")
