"""The command line: `trb`."""

import sys


def complain(command: str, error: object) -> None:
    """Say on one line of stderr what is wrong."""
    print(f"trb {command}:", *str(error).split(), file=sys.stderr)
