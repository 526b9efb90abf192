"""docs/touch_points.md: ``python -m sglang_trb.engine.touch_points.page > docs/touch_points.md``."""

from __future__ import annotations

from sglang_trb.engine.touch_points.checked import CHECKED_SGLANG
from sglang_trb.engine.touch_points.points import TouchPoint
from sglang_trb.engine.touch_points.table import TOUCH_POINTS

_PAGE = f"""# Where SGLang is touched

Every object of SGLang {CHECKED_SGLANG} that sglang-trb overrides, wraps, subclasses, or uses for what it does inside.
This page is written from `sglang_trb/engine/touch_points/table.py`:
`python -m sglang_trb.engine.touch_points.page > docs/touch_points.md`.

- The plug-in takes its hooks from this table and puts nothing else in place. SGLang's plug-in loader fails open: it
  logs an error and the server serves on. So every process compares the whole table with what SGLang holds before it
  serves (`hooks.require_in_force`): in the main process before options are resolved, when the tokenizer manager is
  made and before the HTTP server starts; in a scheduler process when the worker and when the sampler are made.
- With any other version of SGLang nothing is replaced, and `--sampling-backend trb` refuses to start.
- `checked.json` beside the table has a digest of each definition, with comments, docstrings and formatting left out.
  `trb doctor --sglang` compares the installed sources with it; [SGLang versions](sglang_versions.md) has the result for
  later versions.
- Tests fail when an import from SGLang, a hook, or a member that a subclass leans on is not in the table.

Names of SGLang are below `sglang`, ours below `sglang_trb.engine`.

"""

_HEAD = "| SGLang | ours | what for | proof |\n|---|---|---|---|\n"


def page() -> str:
    """The whole page; a section for each way of touching."""
    sections = []
    for how in dict.fromkeys(point.how for point in TOUCH_POINTS):
        rows = (_row(point) for point in TOUCH_POINTS if point.how is how)
        sections.append(f"## {how.value.capitalize()}\n\n{_HEAD}{''.join(rows)}")
    return _PAGE + "\n".join(sections)


def _row(point: TouchPoint) -> str:
    members = f": {', '.join(f'`{member}`' for member in point.members)}" if point.members else ""
    return f"| `{point.name}`{members} | `{point.ours}` | {point.reason} | {point.proof} |\n"


if __name__ == "__main__":
    print(page(), end="")
