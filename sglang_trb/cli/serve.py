"""``trb serve``: checks what can be checked before minutes are spent, then SGLang's own launch, in this process.

Checked with sglang 0.5.21: the order of calls follows ``sglang/launch_server.py``.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

from sglang_trb.errors import InvalidParameter, TrbError
from sglang_trb.server_config import read_server_config

DESCRIPTION = """Serve a student and its teacher over HTTP: SGLang, with each request's tokens drawn from the blend
that its trb_* parameters ask for. Options that follow --config override the file and may be any of SGLang's
(sglang serve --help lists them), for example --port 30001 or --max-running-requests 32."""

EPILOG = """Once it is ready: GET /health, /trb/info (what is served), /metrics (with --enable-metrics); POST /generate,
/v1/chat/completions. Ctrl-C or SIGTERM stops it with all its processes. Exit status: 0 stopped, 1 failed, 2 wrong
usage."""


class ServerFailed(TrbError, RuntimeError):
    """A process of the server ended; its log says why."""


def run(argv: list[str]) -> int:
    """Run ``trb serve``; returns when the server has ended."""
    parser = argparse.ArgumentParser("trb serve", description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="FILE", help="server configuration: SGLang options in YAML")
    arguments, overrides = parser.parse_known_args(argv)
    try:
        read_server_config(arguments.config)
        command = ["--config", arguments.config, *overrides]
        options, effective = _parsed(command)
        _check(options)
    except InvalidParameter as error:
        print(f"trb serve: {error}", file=sys.stderr)
        return 2
    print(_banner(options, effective), flush=True)
    return _launch(command)


def _parsed(command: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """SGLang's own reading of file and command line, with its errors as InvalidParameter."""
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
    return parser.parse_args(effective), effective


class _Parser(argparse.ArgumentParser):
    """Says what is wrong without listing some hundred options first."""

    def error(self, message: str) -> NoReturn:
        raise InvalidParameter("SGLang option", message, "what `sglang serve --help` lists")


def _check(options: argparse.Namespace) -> None:
    """What would otherwise fail only after the models are loaded."""
    for flag in ("model_path", "speculative_draft_model_path"):
        path = getattr(options, flag)
        if path and path.startswith((".", "/", "~")) and not Path(path).expanduser().is_dir():
            hint = "; make it with examples/smollm2/make_pair.py" if "smollm2" in path else ""
            raise InvalidParameter(flag, path, f"a checkpoint folder, or a Hugging Face id{hint}")
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((options.host, options.port))
        except OSError as error:
            where = f"{options.host}:{options.port}"
            raise InvalidParameter("--port", where, f"an address that can be listened on ({error.strerror})") from None


def _banner(options: argparse.Namespace, effective: list[str]) -> str:
    address = f"http://{options.host}:{options.port}"
    look = "  ".join(f"{address}{path}" for path in ("/health", "/trb/info"))
    metrics = f"{address}/metrics" if options.enable_metrics else "off; add --enable-metrics"
    return f"""student   {options.model_path}
teacher   {options.speculative_draft_model_path}
address   {address}
look at   {look}
metrics   {metrics}
the same  sglang serve {shlex.join(effective)}
"""


def _launch(command: list[str]) -> int:
    from sglang.launch_server import run_server
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils import kill_process_tree

    # Until SGLang installs its own handlers, SIGTERM must unwind like Ctrl-C, and a child that fails must not make
    # SGLang kill this process too: that would read as exit status 137.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        server_args = prepare_server_args(command)
        server_args.custom_sigquit_handler = _child_failed
        run_server(server_args)
    except KeyboardInterrupt:
        pass
    finally:
        kill_process_tree(os.getpid(), include_parent=False)
    print("trb serve: stopped", file=sys.stderr)
    return 0


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def _child_failed(*_: Any) -> NoReturn:
    raise ServerFailed("a process of the server failed; the log above says why")
