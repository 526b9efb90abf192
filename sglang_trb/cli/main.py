"""``trb``: finds the subcommand, loads only that one, and turns errors into one line and an exit status.

Exit status: 0 done, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.metadata import entry_points

from sglang_trb import __version__
from sglang_trb.cli import complain
from sglang_trb.errors import TrbError

COMMANDS = {
    "serve": "serve a student and its teacher over HTTP (SGLang with blending)",
    "generate": "draw a few rollouts in this process and look at them",
    "doctor": "check the installation and say what is missing",
}
"""Each name is a module of this package with ``run(argv) -> exit status``."""

ENTRY_POINTS = "trb.commands"
"""Other packages' commands: an entry point of this group names such a table, in the package of its modules."""

USAGE = """usage: trb COMMAND [options]

Trust-region behaviour blending for on-policy distillation, inside SGLang.

commands:
{commands}

  trb COMMAND --help tells what a command does; trb --version prints {version}
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the return value is the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    commands = _commands()
    if name in ("-h", "--help", "help"):
        lines = "\n".join(f"  {command:10}{purpose}" for command, (_, purpose) in commands.items())
        print(USAGE.format(commands=lines, version=__version__), end="")
        return 0 if arguments else 2
    if name == "--version":
        print(f"trb {__version__}")
        return 0
    if name not in commands:
        print(f"trb: {name!r} is not a command; there are: {', '.join(commands)}", file=sys.stderr)
        return 2
    return _run(name, commands[name][0], rest)


def _commands() -> dict[str, tuple[str, str]]:
    """The module and the purpose of every command, ours first."""
    commands = {name: (f"sglang_trb.cli.{name}", purpose) for name, purpose in COMMANDS.items()}
    for entry in entry_points(group=ENTRY_POINTS):
        commands |= {name: (f"{entry.module}.{name}", purpose) for name, purpose in entry.load().items()}
    return commands


def _run(name: str, module: str, arguments: list[str]) -> int:
    try:
        return importlib.import_module(module).run(arguments)
    except TrbError as error:
        complain(name, error)
    except KeyboardInterrupt:
        complain(name, "interrupted")
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a full disk, a file that may not be read
        complain(name, error)
    return 1


if __name__ == "__main__":
    sys.exit(main())
