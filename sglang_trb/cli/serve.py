"""``trb serve``: checks what can be checked before minutes are spent, then SGLang's own launch, in this process."""

from __future__ import annotations

import argparse
import ctypes
import os
import shlex
import signal
import socket
import sys
from itertools import pairwise

from sglang_trb.cli import complain, launching
from sglang_trb.errors import InvalidParameter, ServerFailed
from sglang_trb.launch.local_server import ADMIN_KEY_VARIABLE, PARENT_VARIABLE

_PR_SET_PDEATHSIG = 1

DESCRIPTION = """Serve a student and its teacher over HTTP: SGLang, with each request's tokens drawn from the blend
that its trb_* parameters ask for. Options that follow --config override the file and may be any of SGLang's
(sglang serve --help lists them), for example --port 30001 or --max-running-requests 32."""

EPILOG = """Once it is ready: GET /health, /trb/info (what is served), /metrics (with --enable-metrics); POST /generate,
/v1/chat/completions. The admin key of the weight updates may be in the environment variable TRB_ADMIN_KEY instead of
--admin-api-key. Ctrl-C or SIGTERM stops it with all its processes. Exit status: 0 stopped, 1 failed, 2 wrong usage."""

STOPPED = "trb serve: stopped"


def run(argv: list[str]) -> int:
    """Run ``trb serve``; returns when the server has ended."""
    parser = argparse.ArgumentParser("trb serve", description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="FILE", help="server configuration: SGLang options in YAML")
    arguments, overrides = parser.parse_known_args(argv)
    key = os.environ.pop(ADMIN_KEY_VARIABLE, None)
    if key and not any(option.startswith("--admin-api-key") for option in overrides):
        overrides = [*overrides, f"--admin-api-key={key}"]  # as one word: it may begin with a dash
    try:
        command = launching.config_command(arguments.config, overrides)
        options, effective = launching.parse(command)
        _check_address(options.host, options.port)
    except InvalidParameter as error:
        complain("serve", error)
        return 2
    _end_with_parent()
    print(_banner(options, effective), flush=True)
    from sglang_trb.engine import launcher

    launcher.serve(command, stopped=STOPPED)
    print(STOPPED, file=sys.stderr)
    return 0


def _end_with_parent() -> None:
    """A server that a program started for itself must not outlive it, however that ends (Linux)."""
    parent = os.environ.pop(PARENT_VARIABLE, None)
    if parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it ended before the kernel knew of our wish
        raise ServerFailed(f"the process {parent} that wanted this server is gone ({PARENT_VARIABLE})")


def _check_address(host: str, port: int) -> None:
    """SGLang would find a busy port only after it has loaded the models."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            allowed = f"an address that can be listened on ({getattr(error, 'strerror', error)})"
            raise InvalidParameter("--port", f"{host}:{port}", allowed) from None


def _banner(options: argparse.Namespace, effective: list[str]) -> str:
    address = f"http://{options.host}:{options.port}"
    look = "  ".join(f"{address}{path}" for path in ("/health", "/trb/info"))
    metrics = f"{address}/metrics" if options.enable_metrics else "off; add --enable-metrics"
    return f"""student   {options.model_path}
teacher   {options.speculative_draft_model_path}
address   {address}
look at   {look}
metrics   {metrics}
the same  sglang serve {shlex.join(_without_secrets(effective))}
"""


def _without_secrets(command: list[str]) -> list[str]:
    """The command line with the values of keys hidden: what is printed ends up in logs."""
    words = [word for option in command for word in _option_and_value(option)]
    hidden = ["***" if flag.endswith(("-key", "-password")) else value for flag, value in pairwise(words)]
    return [*words[:1], *hidden]


def _option_and_value(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith("--") else [word]
