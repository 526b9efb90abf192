"""The server's keys can be sent, and are shown nowhere: not by a route, not in the log, not in the list of processes.

SGLang puts its whole configuration, keys included, into ``/server_info`` and into a line of its log.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from sglang.srt.server_args import ServerArgs

from sglang_trb.engine.backend import asks_to_blend
from sglang_trb.errors import NotInForce
from sglang_trb.launch.local_server import ADMIN_KEY_VARIABLE

SECRETS = ("api_key", "admin_api_key", "ssl_keyfile_password")
"""Options of SGLang whose values are keys."""

HIDDEN = "***"

_WORD = r"(?<![^\s\0='\"])%s(?![^\s\0'\"])"
"""A key as an argument of its own, or behind ``--option=``; not where it happens to be a part of another word."""

_VARIABLE = re.compile(rb"(?:^|\0)%s=([^\0]*)" % ADMIN_KEY_VARIABLE.encode())

_MEMORY_FIELDS = slice(45, 49)
"""Of ``/proc/self/stat``, after the name: where this process's command line, and what it found in its environment,
begin and end in its memory."""


def require_sendable(server_args: ServerArgs) -> None:
    """Raise unless a client could send the keys: a stray line end or a foreign letter would shut everybody out.

    Raises:
        NotInForce: names the option, and not its value.
    """
    for name in SECRETS[:2]:
        key = getattr(server_args, name)
        if key and not (key.isascii() and key.isprintable() and key == key.strip()):
            raise NotInForce(f"{name} is no printable ASCII, or begins or ends with a space; no client could send it")


def decide(original: Callable[..., Any], *, authorization_header: str | None, **others: Any) -> Any:
    """Hook around ``decide_request_auth``, which cannot compare letters beyond ASCII: what has them is a wrong key."""
    if authorization_header is not None and not authorization_header.isascii():
        authorization_header = None
    return original(authorization_header=authorization_header, **others)


def hide_in_options(original: Callable[..., dict[str, Any]], server_args: ServerArgs) -> dict[str, Any]:
    """Hook around ``ServerArgs.resolved_dict``, from which routes, log lines and crash dumps take the options."""
    options = original(server_args)
    if asks_to_blend(server_args):
        options |= {name: HIDDEN for name in SECRETS if options.get(name)}
    return options


def hide_in_command_line(server_args: ServerArgs) -> None:
    """Remove the keys from what SGLang, Python and the kernel remember of the command line."""
    for secret in {value for name in SECRETS if (value := getattr(server_args, name))}:
        word = re.compile(_WORD % re.escape(secret))
        if server_args.launch_command is not None:
            server_args._launch_command = word.sub(HIDDEN, server_args.launch_command)
        sys.argv = [word.sub(HIDDEN, argument) for argument in sys.argv]
        _overwrite_in_kernel_command_line(re.compile((_WORD % re.escape(secret)).encode()))


def _overwrite_in_kernel_command_line(word: re.Pattern[bytes]) -> None:
    """``ps`` and ``/proc/PID/cmdline`` read the words that a process was started with from its own memory (Linux).

    So does ``ps e`` the environment, where the admin key's variable still stands after `trb serve` has removed it.
    """
    with open("/proc/self/stat", "rb") as stream:
        fields = stream.read().rpartition(b")")[2].split()
    start, end, first, last = (int(field) for field in fields[_MEMORY_FIELDS])
    for found in word.finditer(ctypes.string_at(start, end - start)):
        ctypes.memset(start + found.start(), ord("*"), len(found.group()))
    if ADMIN_KEY_VARIABLE not in os.environ:
        for found in _VARIABLE.finditer(ctypes.string_at(first, last - first)):
            ctypes.memset(first + found.start(1), ord("*"), len(found.group(1)))
