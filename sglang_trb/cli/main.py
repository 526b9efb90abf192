"""``trb``: finds the subcommand, loads only that one, and turns errors into one line and an exit status.

Exit status: 0 done, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import importlib
import os
import sys

from sglang_trb import __version__
from sglang_trb.cli import complain
from sglang_trb.errors import TrbError

COMMANDS = {
    "serve": "serve a student and its teacher over HTTP (SGLang with blending)",
    "generate": "draw a few rollouts in this process and look at them",
    "doctor": "check the installation and say what is missing",
}
"""Each name is a module of this package with ``run(argv) -> exit status``."""

USAGE = f"""usage: trb COMMAND [options]

Trust-region behaviour blending for on-policy distillation, inside SGLang.

commands:
{chr(10).join(f"  {name:10}{purpose}" for name, purpose in COMMANDS.items())}

  trb COMMAND --help tells what a command does; trb --version prints {__version__}
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the return value is the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if name == "--version":
        print(f"trb {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"trb: {name!r} is not a command; there are: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return _run(name, rest)


def _run(name: str, arguments: list[str]) -> int:
    try:
        return importlib.import_module(f"sglang_trb.cli.{name}").run(arguments)
    except TrbError as error:
        complain(name, error)
    except KeyboardInterrupt:
        complain(name, "interrupted")
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


if __name__ == "__main__":
    sys.exit(main())
